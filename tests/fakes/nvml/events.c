/* Event sets. An event goes to the first set that waits for it, once; one from before the set's registration is past. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "calls.h"

#define SET_MAGIC 0x45565453u
#define MAX_REGISTRATIONS 64
#define POLL_MS 2

struct event_set {
    uint32_t magic;
    int count;
    struct {
        void *handle;
        char device[16];
        unsigned long long types;
        int64_t since_ns;
    } registered[MAX_REGISTRATIONS];
};

static pthread_mutex_t queue = PTHREAD_MUTEX_INITIALIZER;

static struct event_set *set_of(void *opaque) {
    struct event_set *set = opaque;
    return set && set->magic == SET_MAGIC ? set : NULL;
}

static int create(void **opaque) {
    struct event_set *set = calloc(1, sizeof *set);
    set->magic = SET_MAGIC;
    *opaque = set;
    return NVML_SUCCESS;
}

static int release(void *opaque) {
    struct event_set *set = set_of(opaque);
    if (!set) return NVML_ERROR_INVALID_ARGUMENT;
    set->magic = 0; /* the memory is kept: another thread may still wait on it */
    return NVML_SUCCESS;
}

static int supported_types(struct device *device, unsigned long long *types) {
    if (read_u64(device, "supported_event_types", types)) *types = device->parent ? 0 : 0xFFFF;
    return NVML_SUCCESS;
}

static int add(struct device *device, void *handle, unsigned long long types, void *opaque) {
    struct event_set *set = set_of(opaque);
    unsigned long long possible;
    supported_types(device, &possible);
    if (!set || !types) return NVML_ERROR_INVALID_ARGUMENT;
    if (types & ~possible) return NVML_ERROR_NOT_SUPPORTED;
    if (set->count == MAX_REGISTRATIONS) return NVML_ERROR_MEMORY;
    pthread_mutex_lock(&queue);
    strcpy(set->registered[set->count].device, device->key);
    set->registered[set->count].handle = handle;
    set->registered[set->count].types = types;
    set->registered[set->count++].since_ns = scenario_now_ns();
    pthread_mutex_unlock(&queue);
    return NVML_SUCCESS;
}

static bool deliver(struct event_set *set, struct event *event, nvmlEventData_t *data) {
    for (int i = 0; i < set->count; i++) {
        if (strcmp(set->registered[i].device, event->device) || !(set->registered[i].types & event->type) ||
            event->time_ns < set->registered[i].since_ns)
            continue;
        *data = (nvmlEventData_t){set->registered[i].handle, event->type, event->data, NOT_GIVEN, NOT_GIVEN};
        event->delivered = true;
        return true;
    }
    return false;
}

static bool next_event(struct event_set *set, nvmlEventData_t *data) {
    bool found = false;
    int64_t now_ns = scenario_now_ns();
    pthread_mutex_lock(&queue);
    for (int i = 0; i < scenario.event_count && !found; i++) {
        struct event *event = &scenario.events[i];
        found = !event->delivered && event->time_ns <= now_ns && deliver(set, event, data);
    }
    pthread_mutex_unlock(&queue);
    return found;
}

static bool any_left(void) {
    for (int i = 0; i < scenario.event_count; i++)
        if (!scenario.events[i].delivered) return true;
    return false;
}

static int64_t monotonic_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000) + now.tv_nsec / 1000000;
}

/* Waits on the machine's clock, whatever the scenario's is. */
static int wait_for(void *opaque, nvmlEventData_t *data, unsigned timeout_ms) {
    struct event_set *set = set_of(opaque);
    int64_t end_ms = monotonic_ms() + timeout_ms;
    if (!set || !data) return NVML_ERROR_INVALID_ARGUMENT;
    while (set->magic == SET_MAGIC) {
        if (next_event(set, data)) return NVML_SUCCESS;
        if (monotonic_ms() >= end_ms) break;
        /* A driver sleeps until something happens; looking again and again would be counted as the caller's CPU time. */
        pause_ms(any_left() ? POLL_MS : end_ms - monotonic_ms());
    }
    return NVML_ERROR_TIMEOUT;
}

CALL(nvmlEventSetCreate, (void **set), create(set))
CALL(nvmlEventSetFree, (void *set), release(set))
CALL(nvmlEventSetWait, (void *set, nvmlEventData_t *data, unsigned timeout_ms), wait_for(set, data, timeout_ms))
CALL(nvmlEventSetWait_v2, (void *set, nvmlEventData_t *data, unsigned timeout_ms), wait_for(set, data, timeout_ms))
DEVICE_CALL(nvmlDeviceGetSupportedEventTypes, (void *handle, unsigned long long *types), supported_types(device, types))
DEVICE_CALL(nvmlDeviceRegisterEvents, (void *handle, unsigned long long types, void *set),
            add(device, handle, types, set))
