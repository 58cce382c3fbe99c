/* nvmlDeviceGetFieldValues: many values in one call, each with a return code of its own. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "calls.h"

/* Seconds since 1970 that scenario time 0 is shown as. */
#define EPOCH_US INT64_C(1700000000000000)

static const struct {
    unsigned id;
    const char *field; /* the scenario's name, or NULL for field.ID */
    nvmlValueType_t type;
} known[] = {
    {1, "ecc_mode", TYPE_U32}, {3, "ecc_corrected", TYPE_U64}, {4, "ecc_uncorrected", TYPE_U64},
    {5, "ecc_aggregate_corrected", TYPE_U64}, {6, "ecc_aggregate_uncorrected", TYPE_U64},
    {82, "memory_temperature_c", TYPE_U32}, {83, "energy_mj", TYPE_U64}, {91, "nvlinks", TYPE_U32},
    {142, "remapped_corrected", TYPE_U32}, {143, "remapped_uncorrected", TYPE_U32}, {144, "remap_pending", TYPE_U32},
    {145, "remap_failed", TYPE_U32}, {185, "power_average_mw", TYPE_U32}, {186, "power_instant_mw", TYPE_U32},
    {187, "power_limit_min_mw", TYPE_U32}, {188, "power_limit_max_mw", TYPE_U32},
    {189, "power_limit_default_mw", TYPE_U32}, {190, "power_limit_mw", TYPE_U32}, {191, "energy_mj", TYPE_U64},
    {192, "power_limit_mw", TYPE_U32},
};

static bool per_link(unsigned id) { return (id >= 138 && id <= 141) || (id >= 201 && id <= 222); }

static void name_of(const nvmlFieldValue_t *value, char *name, size_t size, nvmlValueType_t *type) {
    bool whole = !value->scopeId || value->scopeId == NVML_SCOPE_ALL || per_link(value->fieldId);
    snprintf(name, size, whole ? "field.%u" : "field.%u.%u", value->fieldId, value->scopeId);
    *type = TYPE_U64;
    for (unsigned i = 0; i < sizeof known / sizeof *known; i++) {
        if (known[i].id == value->fieldId) {
            *type = known[i].type;
            if (whole) snprintf(name, size, "%s", known[i].field);
        }
    }
}

/* The share of one link, of what is given for all. */
static int share_of_link(struct device *device, unsigned link, number *value) {
    unsigned links;
    int code = read_u32(device, "nvlinks", &links);
    if (code) return code;
    if (link >= links) return NVML_ERROR_INVALID_ARGUMENT;
    *value /= links;
    return NVML_SUCCESS;
}

static void put(nvmlFieldValue_t *value, number found) {
    number rounded = found + (found >= 0 ? (number)1e-6 : (number)-1e-6);
    memset(&value->value, 0, sizeof value->value);
    switch (value->valueType) {
        case TYPE_F64: value->value.dVal = (double)found; break;
        case TYPE_U32: value->value.uiVal = (unsigned)(unsigned long long)rounded; break;
        case TYPE_ULONG: value->value.ulVal = (unsigned long)rounded; break;
        case TYPE_U64: value->value.ullVal = (unsigned long long)rounded; break;
        case TYPE_I64: value->value.sllVal = (long long)rounded; break;
        case TYPE_I32: value->value.siVal = (int)rounded; break;
        case TYPE_U16: value->value.usVal = (unsigned short)rounded; break;
    }
}

static void read_field(struct device *device, nvmlFieldValue_t *value, int64_t now_ns) {
    char name[NAME_LENGTH];
    nvmlValueType_t type;
    number found = 0;
    name_of(value, name, sizeof name, &type);
    int code = rule_for_field(device, value->fieldId);
    if (!code) code = series_value(device->key, name, now_ns, &found);
    if (!code && per_link(value->fieldId) && value->scopeId != NVML_SCOPE_ALL)
        code = share_of_link(device, value->scopeId, &found);
    series_type_of(device->key, name, &type);
    value->timestamp = EPOCH_US + now_ns / 1000;
    value->latencyUsec = 1;
    value->nvmlReturn = (nvmlReturn_t)code;
    /* As the driver does, what failed is not touched: type and value stay what the caller had there. */
    if (code) return;
    value->valueType = type;
    put(value, found);
}

static int field_values(struct device *device, int count, nvmlFieldValue_t *values) {
    int64_t now_ns = scenario_now_ns(); /* one time for all */
    if (count < 1 || !values) return NVML_ERROR_INVALID_ARGUMENT;
    for (int i = 0; i < count; i++) read_field(device, &values[i], now_ns);
    return NVML_SUCCESS;
}

DEVICE_CALL(nvmlDeviceGetFieldValues, (void *handle, int count, nvmlFieldValue_t *values),
            field_values(device, count, values))
