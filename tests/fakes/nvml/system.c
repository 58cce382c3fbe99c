/* The system, and how a device is found and named. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "calls.h"

static int by_index(unsigned index, void **handle) {
    return index < scenario.gpus ? handle_of(&scenario.devices[index], handle) : NVML_ERROR_INVALID_ARGUMENT;
}

static int by_text(const char *field, const char *wanted, void **handle) {
    if (!wanted) return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned i = 0; i < scenario.device_count; i++) {
        const char *text = texts_get(scenario.devices[i].key, field);
        if (text && !strcasecmp(text, wanted)) return handle_of(&scenario.devices[i], handle);
    }
    return NVML_ERROR_NOT_FOUND;
}

/* Both forms of a bus id are taken: 0000:1B:00.0 and 00000000:1B:00.0. */
static int by_bus_id(const char *wanted, void **handle) {
    char padded[32];
    if (wanted && strcspn(wanted, ":") == 4) {
        snprintf(padded, sizeof padded, "0000%s", wanted);
        wanted = padded;
    }
    return by_text("pci_bus_id", wanted, handle);
}

static int index_of(const struct device *device, unsigned *index) {
    *index = device->parent ? device->slot : device->index;
    return NVML_SUCCESS;
}

static int pci_info(struct device *device, nvmlPciInfo_t *info) {
    const char *id = texts_get(device->parent ? device->parent->key : device->key, "pci_bus_id");
    if (!info) return NVML_ERROR_INVALID_ARGUMENT;
    if (!id) return NVML_ERROR_NOT_SUPPORTED;
    memset(info, 0, sizeof *info);
    if (sscanf(id, "%x:%x:%x.", &info->domain, &info->bus, &info->device) != 3) return NVML_ERROR_UNKNOWN;
    if (read_u32(device, "pci_device_id", &info->pciDeviceId)) info->pciDeviceId = 0x000010DE;
    snprintf(info->busId, sizeof info->busId, "%.31s", id);
    snprintf(info->busIdLegacy, sizeof info->busIdLegacy, "%04x:%02x:%02x.0", info->domain & 0xFFFF, info->bus & 0xFF,
             info->device & 0xFF);
    return NVML_SUCCESS;
}

static int count_gpus(unsigned *count) {
    *count = scenario.gpus;
    return NVML_SUCCESS;
}

static int capability(struct device *device, int *major, int *minor) {
    struct device *whole = device->parent ? device->parent : device;
    int code = read_i32(whole, "compute_major", major);
    return code ? code : read_i32(whole, "compute_minor", minor);
}

static int of_parent_u32(struct device *device, const char *field, unsigned *value) {
    return read_u32(device->parent ? device->parent : device, field, value);
}

CALL(nvmlSystemGetDriverVersion, (char *text, unsigned length), read_text("system", "driver_version", text, length))
CALL(nvmlSystemGetNVMLVersion, (char *text, unsigned length), read_text("system", "nvml_version", text, length))
CALL(nvmlSystemGetCudaDriverVersion, (int *version), read_i32(NULL, "cuda_version", version))
CALL(nvmlSystemGetCudaDriverVersion_v2, (int *version), read_i32(NULL, "cuda_version", version))
CALL(nvmlDeviceGetCount, (unsigned *count), count_gpus(count))
CALL(nvmlDeviceGetCount_v2, (unsigned *count), count_gpus(count))
CALL(nvmlDeviceGetHandleByIndex, (unsigned index, void **handle), by_index(index, handle))
CALL(nvmlDeviceGetHandleByIndex_v2, (unsigned index, void **handle), by_index(index, handle))
CALL(nvmlDeviceGetHandleByUUID, (const char *uuid, void **handle), by_text("uuid", uuid, handle))
CALL(nvmlDeviceGetHandleBySerial, (const char *serial, void **handle), by_text("serial", serial, handle))
CALL(nvmlDeviceGetHandleByPciBusId, (const char *id, void **handle), by_bus_id(id, handle))
CALL(nvmlDeviceGetHandleByPciBusId_v2, (const char *id, void **handle), by_bus_id(id, handle))
DEVICE_CALL(nvmlDeviceGetIndex, (void *handle, unsigned *index), index_of(device, index))
DEVICE_CALL(nvmlDeviceGetMinorNumber, (void *handle, unsigned *number),
            device->parent ? NVML_ERROR_NOT_SUPPORTED : index_of(device, number))
DEVICE_CALL(nvmlDeviceGetName, (void *handle, char *text, unsigned length), read_text(device->key, "name", text, length))
DEVICE_CALL(nvmlDeviceGetUUID, (void *handle, char *text, unsigned length), read_text(device->key, "uuid", text, length))
DEVICE_CALL(nvmlDeviceGetSerial, (void *handle, char *text, unsigned length),
            read_text(device->key, "serial", text, length))
DEVICE_CALL(nvmlDeviceGetBoardPartNumber, (void *handle, char *text, unsigned length),
            read_text(device->key, "board_part_number", text, length))
DEVICE_CALL(nvmlDeviceGetPciInfo_v3, (void *handle, nvmlPciInfo_t *info), pci_info(device, info))
DEVICE_CALL(nvmlDeviceGetCudaComputeCapability, (void *handle, int *major, int *minor), capability(device, major, minor))
DEVICE_CALL(nvmlDeviceGetArchitecture, (void *handle, unsigned *value), of_parent_u32(device, "architecture", value))
DEVICE_CALL(nvmlDeviceGetNumaNodeId, (void *handle, unsigned *value), read_u32(device, "numa_node", value))
DEVICE_CALL(nvmlDeviceGetNumGpuCores, (void *handle, unsigned *value), read_u32(device, "cores", value))
DEVICE_CALL(nvmlDeviceGetPersistenceMode, (void *handle, unsigned *value), read_u32(device, "persistence_mode", value))
DEVICE_CALL(nvmlDeviceGetPerformanceState, (void *handle, unsigned *value), read_u32(device, "performance_state", value))
DEVICE_CALL(nvmlDeviceGetCurrPcieLinkGeneration, (void *handle, unsigned *value), read_u32(device, "pcie_gen", value))
DEVICE_CALL(nvmlDeviceGetCurrPcieLinkWidth, (void *handle, unsigned *value), read_u32(device, "pcie_width", value))
DEVICE_CALL(nvmlDeviceGetMaxPcieLinkGeneration, (void *handle, unsigned *value),
            read_u32(device, "pcie_gen_max", value))
DEVICE_CALL(nvmlDeviceGetMaxPcieLinkWidth, (void *handle, unsigned *value), read_u32(device, "pcie_width_max", value))

EXPORT const char *nvmlErrorString(nvmlReturn_t code);
const char *nvmlErrorString(nvmlReturn_t code) {
    switch (code) {
        case NVML_SUCCESS: return "The operation was successful";
        case NVML_ERROR_UNINITIALIZED: return "Uninitialized";
        case NVML_ERROR_INVALID_ARGUMENT: return "Invalid Argument";
        case NVML_ERROR_NOT_SUPPORTED: return "Not Supported";
        case NVML_ERROR_GPU_IS_LOST: return "GPU is lost";
        case NVML_ERROR_ARGUMENT_VERSION_MISMATCH: return "The provided version is invalid/unsupported";
        case NVML_ERROR_NOT_READY: return "The system is not ready for the request";
        case NVML_ERROR_GPU_NOT_FOUND: return "No GPUs were found";
        default: return "Unknown Error";
    }
}
