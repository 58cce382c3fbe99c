/* Readings of one device. */
#define _GNU_SOURCE
#include <string.h>

#include "calls.h"

#define COUNTER_VOLATILE 0
#define ERROR_CORRECTED 0

static int memory(struct device *device, nvmlMemory_v2_t *info) {
    int code = read_u64(device, "memory_total_bytes", &info->total);
    if (!code) code = read_u64(device, "memory_used_bytes", &info->used);
    if (!code && read_u64(device, "memory_reserved_bytes", &info->reserved)) info->reserved = 0;
    info->free = info->total - info->used - info->reserved;
    return code;
}

static int memory_v1(struct device *device, nvmlMemory_t *info) {
    nvmlMemory_v2_t new = {0};
    if (!info) return NVML_ERROR_INVALID_ARGUMENT;
    int code = memory(device, &new);
    if (!code) *info = (nvmlMemory_t){.total = new.total, .free = new.free, .used = new.used + new.reserved};
    return code;
}

static int memory_v2(struct device *device, nvmlMemory_v2_t *info) {
    if (!info) return NVML_ERROR_INVALID_ARGUMENT;
    if (info->version != VERSION(nvmlMemory_v2_t, 2)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    return memory(device, info);
}

static int utilization(struct device *device, nvmlUtilization_t *info) {
    int code = read_u32(device, "utilization_percent", &info->gpu);
    return code ? code : read_u32(device, "memory_utilization_percent", &info->memory);
}

static int limits(struct device *device, unsigned *lowest, unsigned *highest) {
    int code = read_u32(device, "power_limit_min_mw", lowest);
    return code ? code : read_u32(device, "power_limit_max_mw", highest);
}

static int clock_of(struct device *device, unsigned type, unsigned *mhz) {
    static const char *names[] = {"graphics_clock_mhz", "sm_clock_mhz", "memory_clock_mhz", "video_clock_mhz"};
    return type < 4 ? read_u32(device, names[type], mhz) : NVML_ERROR_INVALID_ARGUMENT;
}

static int max_clock(struct device *device, unsigned type, unsigned *mhz) {
    static const char *names[] = {"max_graphics_clock_mhz", "max_sm_clock_mhz", "max_memory_clock_mhz",
                                  "max_video_clock_mhz"};
    return type < 4 ? read_u32(device, names[type], mhz) : NVML_ERROR_INVALID_ARGUMENT;
}

static int temperature(struct device *device, unsigned sensor, unsigned *celsius) {
    return sensor ? NVML_ERROR_INVALID_ARGUMENT : read_u32(device, "temperature_c", celsius);
}

static int temperature_v(struct device *device, nvmlTemperature_v1_t *info) {
    if (info->version != VERSION(nvmlTemperature_v1_t, 1)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    return info->sensorType ? NVML_ERROR_INVALID_ARGUMENT : read_i32(device, "temperature_c", &info->temperature);
}

static int ecc_errors(struct device *device, unsigned type, unsigned counter, unsigned long long *count) {
    static const char *names[2][2] = {{"ecc_corrected", "ecc_uncorrected"},
                                      {"ecc_aggregate_corrected", "ecc_aggregate_uncorrected"}};
    return type > 1 || counter > 1 ? NVML_ERROR_INVALID_ARGUMENT : read_u64(device, names[counter][type], count);
}

static int same_twice(struct device *device, const char *field, unsigned *current, unsigned *pending) {
    int code = read_u32(device, field, current);
    if (!code) *pending = *current;
    return code;
}

static int remapped(struct device *device, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                    unsigned *failed) {
    int code = read_u32(device, "remapped_corrected", corrected);
    if (!code) code = read_u32(device, "remapped_uncorrected", uncorrected);
    if (!code) code = read_u32(device, "remap_pending", pending);
    return code ? code : read_u32(device, "remap_failed", failed);
}

static int nvlink_state(struct device *device, unsigned link, unsigned *active) {
    unsigned up, all;
    int code = read_u32(device, "nvlinks", &up);
    if (code) return code;
    if (read_u32(device, "nvlinks_max", &all)) all = up;
    if (link >= all) return NVML_ERROR_INVALID_ARGUMENT;
    *active = link < up;
    return NVML_SUCCESS;
}

DEVICE_CALL(nvmlDeviceGetMemoryInfo, (void *handle, nvmlMemory_t *info), memory_v1(device, info))
DEVICE_CALL(nvmlDeviceGetMemoryInfo_v2, (void *handle, nvmlMemory_v2_t *info), memory_v2(device, info))
DEVICE_CALL(nvmlDeviceGetUtilizationRates, (void *handle, nvmlUtilization_t *info), utilization(device, info))
DEVICE_CALL(nvmlDeviceGetPowerUsage, (void *handle, unsigned *mw), read_u32(device, "power_usage_mw", mw))
DEVICE_CALL(nvmlDeviceGetEnforcedPowerLimit, (void *handle, unsigned *mw), read_u32(device, "power_limit_mw", mw))
DEVICE_CALL(nvmlDeviceGetPowerManagementLimit, (void *handle, unsigned *mw), read_u32(device, "power_limit_mw", mw))
DEVICE_CALL(nvmlDeviceGetPowerManagementDefaultLimit, (void *handle, unsigned *mw),
            read_u32(device, "power_limit_default_mw", mw))
DEVICE_CALL(nvmlDeviceGetPowerManagementLimitConstraints, (void *handle, unsigned *lowest, unsigned *highest),
            limits(device, lowest, highest))
DEVICE_CALL(nvmlDeviceGetTotalEnergyConsumption, (void *handle, unsigned long long *mj),
            read_u64(device, "energy_mj", mj))
DEVICE_CALL(nvmlDeviceGetClockInfo, (void *handle, unsigned type, unsigned *mhz), clock_of(device, type, mhz))
DEVICE_CALL(nvmlDeviceGetMaxClockInfo, (void *handle, unsigned type, unsigned *mhz), max_clock(device, type, mhz))
DEVICE_CALL(nvmlDeviceGetCurrentClocksEventReasons, (void *handle, unsigned long long *mask),
            read_u64(device, "event_reasons", mask))
DEVICE_CALL(nvmlDeviceGetCurrentClocksThrottleReasons, (void *handle, unsigned long long *mask),
            read_u64(device, "event_reasons", mask))
DEVICE_CALL(nvmlDeviceGetSupportedClocksEventReasons, (void *handle, unsigned long long *mask),
            read_u64(device, "supported_event_reasons", mask))
DEVICE_CALL(nvmlDeviceGetSupportedClocksThrottleReasons, (void *handle, unsigned long long *mask),
            read_u64(device, "supported_event_reasons", mask))
DEVICE_CALL(nvmlDeviceGetTemperature, (void *handle, unsigned sensor, unsigned *celsius),
            temperature(device, sensor, celsius))
DEVICE_CALL(nvmlDeviceGetTemperatureV, (void *handle, nvmlTemperature_v1_t *info), temperature_v(device, info))
DEVICE_CALL(nvmlDeviceGetEccMode, (void *handle, unsigned *current, unsigned *pending),
            same_twice(device, "ecc_mode", current, pending))
DEVICE_CALL(nvmlDeviceGetTotalEccErrors, (void *handle, unsigned type, unsigned counter, unsigned long long *count),
            ecc_errors(device, type, counter, count))
DEVICE_CALL(nvmlDeviceGetMemoryErrorCounter,
            (void *handle, unsigned type, unsigned counter, unsigned location, unsigned long long *count),
            ((void)location, ecc_errors(device, type, counter, count)))
DEVICE_CALL(nvmlDeviceGetRemappedRows,
            (void *handle, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed),
            remapped(device, corrected, uncorrected, pending, failed))
DEVICE_CALL(nvmlDeviceGetNvLinkState, (void *handle, unsigned link, unsigned *active),
            nvlink_state(device, link, active))
DEVICE_CALL(nvmlDeviceGetMigMode, (void *handle, unsigned *current, unsigned *pending),
            same_twice(device, "mig_mode", current, pending))
