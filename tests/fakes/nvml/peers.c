/* Calls that the sampler does not make and other tools do: for measuring their cost beside it (scripts/overhead). */
#define _GNU_SOURCE
#include <string.h>
#include <time.h>

#include "calls.h"

#define PCIE_WINDOW_NS 20000000

typedef struct {
    unsigned pid;
    unsigned long long timestamp_us;
    unsigned sm, memory, encoder, decoder;
} sample_t;
_Static_assert(sizeof(sample_t) == 32, "nvmlProcessUtilizationSample_t has 32 bytes");

static int with_period(struct device *device, const char *field, unsigned *value, unsigned *period_us) {
    *period_us = 167000;
    return read_u32(device, field, value);
}

/* nvml.h: "queries a byte counter over a 20ms interval"; the caller waits for it. */
static int pcie_throughput(struct device *device, unsigned *kib_per_s) {
    struct timespec window = {0, PCIE_WINDOW_NS};
    nanosleep(&window, NULL);
    return read_u32(device, "pcie_throughput_kib", kib_per_s);
}

/* One sample per process that computes, with the device's utilization. */
static int process_utilization(struct device *device, sample_t *samples, unsigned *count) {
    unsigned room = samples ? *count : 0, found = 0, busy = 0;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (read_u32(device, "utilization_percent", &busy)) busy = 0;
    for (int i = 0; i < scenario.process_count; i++) {
        const struct process *process = &scenario.processes[i];
        if (process->graphics || strcmp(process->device, device->key)) continue;
        if (found < room)
            samples[found] = (sample_t){process->pid, now.tv_sec * 1000000ull + now.tv_nsec / 1000, busy, 0, 0, 0};
        found++;
    }
    *count = found;
    if (!found) return NVML_ERROR_NOT_FOUND;
    return found > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

DEVICE_CALL(nvmlDeviceGetFanSpeed, (void *handle, unsigned *percent), read_u32(device, "fan_percent", percent))
DEVICE_CALL(nvmlDeviceGetComputeMode, (void *handle, unsigned *mode), read_u32(device, "compute_mode", mode))
DEVICE_CALL(nvmlDeviceGetDisplayMode, (void *handle, unsigned *mode), read_u32(device, "display_mode", mode))
DEVICE_CALL(nvmlDeviceGetDisplayActive, (void *handle, unsigned *active), read_u32(device, "display_active", active))
/* Windows only. */
DEVICE_CALL(nvmlDeviceGetDriverModel, (void *handle, unsigned *now, unsigned *next),
            (device == NULL || now == next) ? NVML_ERROR_INVALID_ARGUMENT : NVML_ERROR_NOT_SUPPORTED)
DEVICE_CALL(nvmlDeviceGetEncoderUtilization, (void *handle, unsigned *percent, unsigned *period_us),
            with_period(device, "encoder_percent", percent, period_us))
DEVICE_CALL(nvmlDeviceGetDecoderUtilization, (void *handle, unsigned *percent, unsigned *period_us),
            with_period(device, "decoder_percent", percent, period_us))
DEVICE_CALL(nvmlDeviceGetPcieThroughput, (void *handle, unsigned direction, unsigned *kib_per_s),
            direction > 1 ? NVML_ERROR_INVALID_ARGUMENT : pcie_throughput(device, kib_per_s))
DEVICE_CALL(nvmlDeviceGetProcessUtilization,
            (void *handle, sample_t *samples, unsigned *count, unsigned long long since_us),
            ((void)since_us, process_utilization(device, samples, count)))
