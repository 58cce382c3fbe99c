/* Processes on a device, and MIG instances. */
#define _GNU_SOURCE
#include <string.h>

#include "calls.h"

#define MAX_MIG 7

static bool runs(const struct process *process, const struct device *device, bool graphics, int64_t now_ns) {
    return process->graphics == graphics && !strcmp(process->device, device->key) && process->from_ns <= now_ns &&
           now_ns < process->until_ns;
}

static int processes(const struct device *device, bool graphics, unsigned *count, nvmlProcessInfo_v2_t *infos) {
    unsigned room = *count, found = 0;
    int64_t now_ns = scenario_now_ns();
    for (int i = 0; i < scenario.process_count; i++) {
        const struct process *process = &scenario.processes[i];
        if (!runs(process, device, graphics, now_ns)) continue;
        if (infos && found < room)
            infos[found] = (nvmlProcessInfo_v2_t){process->pid, process->bytes, process->gpu_instance,
                                                  process->compute_instance};
        found++;
    }
    *count = found;
    return found > room || (found && !infos) ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

static int most_instances(struct device *device, unsigned *count) {
    unsigned mode;
    int code = read_u32(device, "mig_mode", &mode);
    *count = code ? 0 : MAX_MIG;
    return NVML_SUCCESS;
}

static int instance_by_slot(struct device *device, unsigned slot, void **handle) {
    unsigned mode;
    int code = read_u32(device, "mig_mode", &mode);
    if (code) return code;
    for (unsigned i = scenario.gpus; mode && i < scenario.device_count; i++)
        if (scenario.devices[i].parent == device && scenario.devices[i].slot == slot)
            return handle_of(&scenario.devices[i], handle);
    return slot < MAX_MIG ? NVML_ERROR_NOT_FOUND : NVML_ERROR_INVALID_ARGUMENT;
}

static int parent_of(struct device *device, void **parent) {
    return device->parent ? handle_of(device->parent, parent) : NVML_ERROR_INVALID_ARGUMENT;
}

static int is_instance(const struct device *device, unsigned *yes) {
    *yes = device->parent != NULL;
    return NVML_SUCCESS;
}

static int instance_id(const struct device *device, unsigned id, unsigned *value) {
    *value = id;
    return device->parent ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

static int attributes(struct device *device, nvmlDeviceAttributes_t *found) {
    unsigned long long bytes;
    if (!device->parent) return NVML_ERROR_NOT_SUPPORTED;
    int code = read_u64(device, "memory_total_bytes", &bytes);
    if (code) return code;
    memset(found, 0, sizeof *found);
    if (read_u32(device, "multiprocessors", &found->multiprocessorCount)) found->multiprocessorCount = 0;
    found->gpuInstanceSliceCount = found->computeInstanceSliceCount = 1;
    found->memorySizeMB = bytes >> 20;
    return NVML_SUCCESS;
}

#define PROCESS_PARAMETERS (void *handle, unsigned *count, nvmlProcessInfo_v2_t *infos)
DEVICE_CALL(nvmlDeviceGetComputeRunningProcesses_v2, PROCESS_PARAMETERS, processes(device, false, count, infos))
DEVICE_CALL(nvmlDeviceGetComputeRunningProcesses_v3, PROCESS_PARAMETERS, processes(device, false, count, infos))
DEVICE_CALL(nvmlDeviceGetGraphicsRunningProcesses_v2, PROCESS_PARAMETERS, processes(device, true, count, infos))
DEVICE_CALL(nvmlDeviceGetGraphicsRunningProcesses_v3, PROCESS_PARAMETERS, processes(device, true, count, infos))

DEVICE_CALL(nvmlDeviceGetMaxMigDeviceCount, (void *handle, unsigned *count), most_instances(device, count))
DEVICE_CALL(nvmlDeviceGetMigDeviceHandleByIndex, (void *handle, unsigned slot, void **instance),
            instance_by_slot(device, slot, instance))
DEVICE_CALL(nvmlDeviceGetDeviceHandleFromMigDeviceHandle, (void *handle, void **parent), parent_of(device, parent))
DEVICE_CALL(nvmlDeviceIsMigDeviceHandle, (void *handle, unsigned *yes), is_instance(device, yes))
DEVICE_CALL(nvmlDeviceGetGpuInstanceId, (void *handle, unsigned *id), instance_id(device, device->gpu_instance, id))
DEVICE_CALL(nvmlDeviceGetComputeInstanceId, (void *handle, unsigned *id),
            instance_id(device, device->compute_instance, id))
DEVICE_CALL(nvmlDeviceGetAttributes_v2, (void *handle, nvmlDeviceAttributes_t *found), attributes(device, found))
