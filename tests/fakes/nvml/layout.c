/* Sizes and offsets as this compiler makes them, to be held against the binding's. */
#include <stddef.h>
#include <stdio.h>

#include "abi.h"
#include "calls.h"

EXPORT int agprof_fake_layout(char *buffer, unsigned length);

static char *out;
static unsigned room;

static void line(const char *type, const char *member, size_t offset, size_t size) {
    int written = snprintf(out, room, "%s %s %zu %zu\n", type, member, offset, size);
    out += written;
    room -= (unsigned)written;
}

#define SIZE(type) line(#type, "-", 0, sizeof(type));
#define MEMBER(type, member) line(#type, #member, offsetof(type, member), sizeof(((type *)0)->member));

/* Lines `TYPE MEMBER OFFSET SIZE`, and `TYPE - 0 SIZE` for the whole. */
int agprof_fake_layout(char *buffer, unsigned length) {
    out = buffer;
    room = length;
    SIZE(nvmlPciInfo_t)
    MEMBER(nvmlPciInfo_t, busIdLegacy)
    MEMBER(nvmlPciInfo_t, domain)
    MEMBER(nvmlPciInfo_t, bus)
    MEMBER(nvmlPciInfo_t, device)
    MEMBER(nvmlPciInfo_t, pciDeviceId)
    MEMBER(nvmlPciInfo_t, pciSubSystemId)
    MEMBER(nvmlPciInfo_t, busId)
    SIZE(nvmlMemory_t)
    MEMBER(nvmlMemory_t, total)
    MEMBER(nvmlMemory_t, free)
    MEMBER(nvmlMemory_t, used)
    SIZE(nvmlMemory_v2_t)
    MEMBER(nvmlMemory_v2_t, version)
    MEMBER(nvmlMemory_v2_t, total)
    MEMBER(nvmlMemory_v2_t, reserved)
    MEMBER(nvmlMemory_v2_t, free)
    MEMBER(nvmlMemory_v2_t, used)
    SIZE(nvmlUtilization_t)
    MEMBER(nvmlUtilization_t, gpu)
    MEMBER(nvmlUtilization_t, memory)
    SIZE(nvmlProcessInfo_v2_t)
    MEMBER(nvmlProcessInfo_v2_t, pid)
    MEMBER(nvmlProcessInfo_v2_t, usedGpuMemory)
    MEMBER(nvmlProcessInfo_v2_t, gpuInstanceId)
    MEMBER(nvmlProcessInfo_v2_t, computeInstanceId)
    SIZE(nvmlValue_t)
    SIZE(nvmlFieldValue_t)
    MEMBER(nvmlFieldValue_t, fieldId)
    MEMBER(nvmlFieldValue_t, scopeId)
    MEMBER(nvmlFieldValue_t, timestamp)
    MEMBER(nvmlFieldValue_t, latencyUsec)
    MEMBER(nvmlFieldValue_t, valueType)
    MEMBER(nvmlFieldValue_t, nvmlReturn)
    MEMBER(nvmlFieldValue_t, value)
    SIZE(nvmlTemperature_v1_t)
    MEMBER(nvmlTemperature_v1_t, version)
    MEMBER(nvmlTemperature_v1_t, sensorType)
    MEMBER(nvmlTemperature_v1_t, temperature)
    SIZE(nvmlEventData_t)
    MEMBER(nvmlEventData_t, device)
    MEMBER(nvmlEventData_t, eventType)
    MEMBER(nvmlEventData_t, eventData)
    MEMBER(nvmlEventData_t, gpuInstanceId)
    MEMBER(nvmlEventData_t, computeInstanceId)
    SIZE(metricInfo_t)
    SIZE(nvmlGpmMetric_t)
    MEMBER(nvmlGpmMetric_t, metricId)
    MEMBER(nvmlGpmMetric_t, nvmlReturn)
    MEMBER(nvmlGpmMetric_t, value)
    MEMBER(nvmlGpmMetric_t, metricInfo)
    SIZE(nvmlGpmMetricsGet_t)
    MEMBER(nvmlGpmMetricsGet_t, version)
    MEMBER(nvmlGpmMetricsGet_t, numMetrics)
    MEMBER(nvmlGpmMetricsGet_t, sample1)
    MEMBER(nvmlGpmMetricsGet_t, sample2)
    MEMBER(nvmlGpmMetricsGet_t, metrics)
    SIZE(nvmlGpmSupport_t)
    MEMBER(nvmlGpmSupport_t, version)
    MEMBER(nvmlGpmSupport_t, isSupportedDevice)
    SIZE(nvmlDeviceAttributes_t)
    MEMBER(nvmlDeviceAttributes_t, multiprocessorCount)
    MEMBER(nvmlDeviceAttributes_t, memorySizeMB)
    return room > 1;
}
