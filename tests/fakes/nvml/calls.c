/* Start and end of the library, faults, handles and the log. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "calls.h"

#define HANDLE_MAGIC 0x4E564D4Cu
#define POLL_MS 2

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t loaded = PTHREAD_ONCE_INIT;
static int running, session; /* calls of nvmlInit that were not shut down; which initialisation this is */
static int64_t initialised_ns;
static struct handle *handles;
static int log_file = -1;

static void load(void) {
    const char *path = getenv("AGPROF_FAKE_NVML_LOG");
    scenario_load();
    if (path && *path && (log_file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644)) < 0)
        die("log %s can't be written", path);
}

/* For tests that use one process for several scenarios: forget everything; the next call reads the environment again. */
EXPORT void agprof_fake_reset(void);
void agprof_fake_reset(void) {
    static const pthread_once_t unused = PTHREAD_ONCE_INIT;
    pthread_mutex_lock(&lock);
    scenario_clear();
    if (log_file >= 0) close(log_file);
    log_file = -1;
    running = 0;
    handles = NULL; /* not freed: a thread may still be in a call */
    loaded = unused;
    pthread_mutex_unlock(&lock);
}

static bool covers(int64_t from_ns, int64_t until_ns, int64_t now_ns) { return from_ns <= now_ns && now_ns < until_ns; }

static bool is_init(const char *name) { return !strncmp(name, "nvmlInit", 8); }

/* The rule's turn, which is counted. */
static bool strikes(struct rule *rule, const char *name, const struct device *device, int64_t now_ns) {
    const char *key = !device ? "" : device->key;
    if (name && strcmp(rule->call, "*") && strcmp(rule->call, name)) return false;
    if (*rule->device && strcmp(rule->device, key)) return false;
    if (!covers(rule->from_ns, rule->until_ns, now_ns)) return false;
    long turn = rule->seen++ - rule->after;
    return turn >= 0 && (rule->times < 0 || turn < rule->times);
}

static int library_fault(const char *name, int64_t now_ns) {
    for (int i = 0; i < scenario.gone_count; i++) {
        const struct span *gone = &scenario.gone[i];
        if (covers(gone->from_ns, gone->until_ns, now_ns)) return gone->code;
        if (!is_init(name) && gone->until_ns <= now_ns && running && initialised_ns < gone->until_ns)
            return NVML_ERROR_UNINITIALIZED;
    }
    return NVML_SUCCESS;
}

bool device_lost(const struct device *device, int *code) {
    const char *key = device->parent ? device->parent->key : device->key;
    for (int i = 0; i < scenario.lost_count; i++) {
        const struct span *lost = &scenario.lost[i];
        if (!strcmp(lost->device, key) && covers(lost->from_ns, lost->until_ns, scenario_now_ns())) {
            *code = lost->code;
            return true;
        }
    }
    return false;
}

struct device *device_of(void *opaque) {
    const struct handle *handle = opaque;
    return handle && handle->magic == HANDLE_MAGIC && handle->session == session ? handle->device : NULL;
}

int handle_of(struct device *device, void **handle) {
    int code;
    if (!device) return NVML_ERROR_NOT_FOUND;
    if (device_lost(device, &code)) return code;
    *handle = &handles[device - scenario.devices];
    return NVML_SUCCESS;
}

int rule_for_field(const struct device *device, unsigned field) {
    int code = NVML_SUCCESS;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < scenario.rule_count; i++) {
        struct rule *rule = &scenario.rules[i];
        if (rule->kind == RULE_FIELD && rule->field == field && strikes(rule, NULL, device, scenario_now_ns()) && !code)
            code = rule->code;
    }
    pthread_mutex_unlock(&lock);
    return code;
}

static void hang(int64_t duration_ns) {
    int64_t end_ns = scenario_now_ns() + duration_ns;
    while (scenario_now_ns() < end_ns) pause_ms(POLL_MS);
}

static int apply_rules(const char *name, const struct device *device, int64_t now_ns, int64_t *hang_ns) {
    int code = NVML_SUCCESS;
    for (int i = 0; i < scenario.rule_count; i++) {
        struct rule *rule = &scenario.rules[i];
        if (rule->kind == RULE_FIELD || !strikes(rule, name, device, now_ns)) continue;
        if (rule->kind == RULE_HANG) *hang_ns = rule->hang_ns;
        else if (rule->kind == RULE_EXIT) {
            pthread_mutex_unlock(&lock);
            exit(rule->code);
        } else if (!code) code = rule->code;
    }
    return code;
}

struct call enter(const char *name, void *handle, bool takes_device) {
    struct call call = {.name = name};
    int64_t hang_ns = 0;
    pthread_once(&loaded, load);
    pthread_mutex_lock(&lock);
    int64_t now_ns = scenario_now_ns();
    bool ready = running > 0 || is_init(name);
    if (takes_device && ready) call.device = device_of(handle);
    call.code = library_fault(name, now_ns);
    if (!call.code && !ready) call.code = NVML_ERROR_UNINITIALIZED;
    if (!call.code && takes_device && !call.device) call.code = NVML_ERROR_INVALID_ARGUMENT;
    int code = apply_rules(name, call.device, now_ns, &hang_ns);
    pthread_mutex_unlock(&lock);
    if (code && (!call.code || is_init(name))) call.code = code;
    if (hang_ns) hang(hang_ns);
    if (!call.code && call.device) device_lost(call.device, &call.code);
    return call;
}

nvmlReturn_t leave(struct call *call, int code) {
    if (log_file >= 0) {
        char line[160];
        int length = snprintf(line, sizeof line, "%.6f %s %s %d\n", (double)scenario_now_ns() / 1e9, call->name,
                              call->device ? call->device->key : "-", code);
        if (write(log_file, line, (size_t)length) < 0) die("the log can't be written");
    }
    return (nvmlReturn_t)code;
}

static int start(void) {
    pthread_mutex_lock(&lock);
    if (library_fault("nvmlShutdown", scenario_now_ns())) running = 0; /* lost in between: begin anew */
    if (running++ == 0) {
        session++;
        initialised_ns = scenario_now_ns();
        handles = calloc(MAX_DEVICES, sizeof *handles);
        for (unsigned i = 0; i < scenario.device_count; i++)
            handles[i] = (struct handle){HANDLE_MAGIC, session, &scenario.devices[i]};
    }
    pthread_mutex_unlock(&lock);
    return NVML_SUCCESS;
}

static int stop(void) {
    pthread_mutex_lock(&lock);
    running--;
    pthread_mutex_unlock(&lock);
    return NVML_SUCCESS;
}

static int first_init(void) {
#ifdef EXITS_AT_INIT
    exit(1);
#endif
    return start();
}

#ifdef EXITS_AT_LOAD
__attribute__((constructor)) static void exit_at_load(void) { exit(1); }
#endif

CALL(nvmlInit, (void), first_init())
CALL(nvmlInit_v2, (void), first_init())
CALL(nvmlInitWithFlags, (unsigned flags), ((void)flags, first_init()))
CALL(nvmlShutdown, (void), stop())

static int text_of(const char *text, char *buffer, unsigned length) {
    if (!text) return NVML_ERROR_NOT_SUPPORTED;
    if (!buffer) return NVML_ERROR_INVALID_ARGUMENT;
    if (strlen(text) >= length) return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(buffer, text);
    return NVML_SUCCESS;
}

int read_text(const char *device, const char *field, char *buffer, unsigned length) {
    return text_of(texts_get(device, field), buffer, length);
}

/* Fractions are cut off, as by a counter; the millionth keeps what is whole but for rounding. */
static int read_floor(struct device *device, const char *field, number *value) {
    int code = series_value(device ? device->key : "system", field, scenario_now_ns(), value);
    *value += *value >= 0 ? (number)1e-6 : (number)-1e-6;
    return code;
}

int read_u32(struct device *device, const char *field, unsigned *value) {
    number found = 0;
    int code = read_floor(device, field, &found);
    if (!code) *value = (unsigned)(unsigned long long)found;
    return code;
}

int read_u64(struct device *device, const char *field, unsigned long long *value) {
    number found = 0;
    int code = read_floor(device, field, &found);
    if (!code) *value = (unsigned long long)found;
    return code;
}

int read_i32(struct device *device, const char *field, int *value) {
    number found = 0;
    int code = read_floor(device, field, &found);
    if (!code) *value = (int)found;
    return code;
}
