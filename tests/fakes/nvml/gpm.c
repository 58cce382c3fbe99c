/* GPM: two samples, and what happened between them. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>

#include "calls.h"

#define SAMPLE_MAGIC 0x47504D53u

struct sample {
    uint32_t magic;
    struct device *device;
    int64_t time_ns;
};

static struct sample *sample_of(void *opaque) {
    struct sample *sample = opaque;
    return sample && sample->magic == SAMPLE_MAGIC ? sample : NULL;
}

static int allocate(void **opaque) {
    struct sample *sample = calloc(1, sizeof *sample);
    sample->magic = SAMPLE_MAGIC;
    *opaque = sample;
    return NVML_SUCCESS;
}

static int release(void *opaque) {
    struct sample *sample = sample_of(opaque);
    if (!sample) return NVML_ERROR_INVALID_ARGUMENT;
    sample->magic = 0;
    free(sample);
    return NVML_SUCCESS;
}

static bool supported(const struct device *device) { return series_known(device->key, "gpm."); }

static int support(const struct device *device, nvmlGpmSupport_t *answer) {
    if (answer->version != 1) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    answer->isSupportedDevice = supported(device);
    return NVML_SUCCESS;
}

static int take(struct device *device, void *opaque) {
    struct sample *sample = sample_of(opaque);
    if (!sample) return NVML_ERROR_INVALID_ARGUMENT;
    if (!supported(device)) return NVML_ERROR_NOT_SUPPORTED;
    sample->device = device;
    sample->time_ns = scenario_now_ns();
    return NVML_SUCCESS;
}

static int take_of_instance(struct device *device, unsigned id, void *opaque) {
    for (unsigned i = scenario.gpus; i < scenario.device_count; i++)
        if (scenario.devices[i].parent == device && scenario.devices[i].gpu_instance == id)
            return take(&scenario.devices[i], opaque);
    return NVML_ERROR_INVALID_ARGUMENT;
}

static int metrics(nvmlGpmMetricsGet_t *get) {
    const struct sample *first = sample_of(get->sample1), *second = sample_of(get->sample2);
    if (get->version != 1) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (!first || !second || !first->device || first->device != second->device || get->numMetrics > NVML_GPM_METRIC_MAX)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (first->time_ns >= second->time_ns) return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned i = 0; i < get->numMetrics; i++) {
        char name[NAME_LENGTH];
        nvmlGpmMetric_t *metric = &get->metrics[i];
        snprintf(name, sizeof name, "gpm.%u", metric->metricId);
        metric->nvmlReturn =
            (nvmlReturn_t)series_mean(first->device->key, name, first->time_ns, second->time_ns, &metric->value);
    }
    return NVML_SUCCESS;
}

CALL(nvmlGpmSampleAlloc, (void **sample), allocate(sample))
CALL(nvmlGpmSampleFree, (void *sample), release(sample))
CALL(nvmlGpmMetricsGet, (nvmlGpmMetricsGet_t *get), metrics(get))
DEVICE_CALL(nvmlGpmQueryDeviceSupport, (void *handle, nvmlGpmSupport_t *answer), support(device, answer))
DEVICE_CALL(nvmlGpmSampleGet, (void *handle, void *sample), take(device, sample))
DEVICE_CALL(nvmlGpmMigSampleGet, (void *handle, unsigned id, void *sample), take_of_instance(device, id, sample))
