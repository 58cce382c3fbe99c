/* Reads a scenario. A line that is not understood ends the process: a test must not run on half of what it says. */
#define _GNU_SOURCE
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scenario.h"

#define MAX_WORDS 16

struct scenario scenario;

static const char *file_name = "?";
static int line_number;

void die(const char *format, ...) {
    va_list arguments;
    fprintf(stderr, "fake NVML: %s:%d: ", file_name, line_number);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    _Exit(99);
}

int code_of_name(const char *name) {
    static const struct {
        const char *name;
        int code;
    } codes[] = {
#define CODE(x) {#x, x}
        CODE(NVML_SUCCESS), CODE(NVML_ERROR_UNINITIALIZED), CODE(NVML_ERROR_INVALID_ARGUMENT),
        CODE(NVML_ERROR_NOT_SUPPORTED), CODE(NVML_ERROR_NO_PERMISSION), CODE(NVML_ERROR_NOT_FOUND),
        CODE(NVML_ERROR_INSUFFICIENT_SIZE), CODE(NVML_ERROR_DRIVER_NOT_LOADED), CODE(NVML_ERROR_TIMEOUT),
        CODE(NVML_ERROR_IRQ_ISSUE), CODE(NVML_ERROR_LIBRARY_NOT_FOUND), CODE(NVML_ERROR_FUNCTION_NOT_FOUND),
        CODE(NVML_ERROR_CORRUPTED_INFOROM), CODE(NVML_ERROR_GPU_IS_LOST), CODE(NVML_ERROR_RESET_REQUIRED),
        CODE(NVML_ERROR_OPERATING_SYSTEM), CODE(NVML_ERROR_LIB_RM_VERSION_MISMATCH), CODE(NVML_ERROR_IN_USE),
        CODE(NVML_ERROR_MEMORY), CODE(NVML_ERROR_NO_DATA), CODE(NVML_ERROR_INSUFFICIENT_RESOURCES),
        CODE(NVML_ERROR_ARGUMENT_VERSION_MISMATCH), CODE(NVML_ERROR_DEPRECATED), CODE(NVML_ERROR_NOT_READY),
        CODE(NVML_ERROR_GPU_NOT_FOUND), CODE(NVML_ERROR_INVALID_STATE), CODE(NVML_ERROR_UNKNOWN),
#undef CODE
    };
    for (unsigned i = 0; i < sizeof codes / sizeof *codes; i++)
        if (!strcmp(codes[i].name, name)) return codes[i].code;
    return -1;
}

static int code_or_die(const char *name) {
    int code = code_of_name(name);
    if (code < 0) die("%s is not a return code that the fake knows", name);
    return code;
}

static long long whole(const char *text) {
    char *end;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end) die("%s is not a whole number", text);
    return value;
}

static unsigned long long whole_unsigned(const char *text) {
    char *end;
    unsigned long long value = strtoull(text, &end, 0);
    if (end == text || *end) die("%s is not a whole number", text);
    return value;
}

static int64_t nanoseconds(const char *text) {
    char *end;
    long double seconds = strtold(text, &end);
    if (end == text || *end) die("%s is not a time in seconds", text);
    return (int64_t)roundl(seconds * 1e9L);
}

struct device *scenario_device(const char *key) {
    for (unsigned i = 0; i < scenario.device_count; i++)
        if (!strcmp(scenario.devices[i].key, key)) return &scenario.devices[i];
    return NULL;
}

static struct device *device_or_die(const char *key) {
    struct device *device = scenario_device(key);
    if (!device) die("no device %s", key);
    return device;
}

/* Runs `body` with `key` for each device that a word names: "*" is every whole GPU. */
#define FOR_DEVICES(word, key)                                                              \
    if (strcmp(word, "*")) device_or_die(word);                                             \
    for (unsigned device_ = 0; device_ < scenario.device_count; device_++)                  \
        for (const char *key = scenario.devices[device_].key; key; key = NULL)              \
            if (!strcmp(word, key) || (!strcmp(word, "*") && !scenario.devices[device_].parent))

/* The option `name=value` among words, or `other` where it is not given. Every word must be a known option. */
static const char *option(char **words, const char *name, const char *other) {
    size_t length = strlen(name);
    for (; *words; words++)
        if (!strncmp(*words, name, length) && (*words)[length] == '=') return *words + length + 1;
    return other;
}

static void check_options(char **words, const char *known) {
    for (; *words; words++) {
        char name[NAME_LENGTH] = " ";
        size_t length = strcspn(*words, "=");
        if ((*words)[length] != '=' || length > 16) die("%s is not name=value", *words);
        strncat(name, *words, length);
        strcat(name, " ");
        if (!strstr(known, name)) die("option %s is none of:%s", *words, known);
    }
}

static void add_window(char **words, int64_t *from_ns, int64_t *until_ns) {
    const char *until = option(words, "until", NULL);
    *from_ns = nanoseconds(option(words, "from", "0"));
    *until_ns = until ? nanoseconds(until) : FOREVER;
}

#define APPEND(list, count, item)                                              \
    do {                                                                       \
        list = realloc(list, (size_t)((count) + 1) * sizeof *(list));          \
        list[(count)++] = item;                                                \
    } while (0)

static void add_rule(enum rule_kind kind, char **words) {
    struct rule rule = {.kind = kind};
    const char *subject = words[1], *effect = words[2], *gpu = option(words + 3, "gpu", "");
    check_options(words + 3, " gpu from until after times ");
    if (kind == RULE_FIELD) rule.field = (unsigned)whole_unsigned(subject);
    else strncpy(rule.call, subject, sizeof rule.call - 1);
    if (kind == RULE_HANG) rule.hang_ns = nanoseconds(effect);
    else if (kind == RULE_EXIT) rule.code = (int)whole(effect);
    else rule.code = code_or_die(effect);
    if (*gpu) strncpy(rule.device, device_or_die(gpu)->key, sizeof rule.device - 1);
    add_window(words + 3, &rule.from_ns, &rule.until_ns);
    rule.after = (long)whole(option(words + 3, "after", "0"));
    rule.times = (long)whole(option(words + 3, "times", "-1"));
    APPEND(scenario.rules, scenario.rule_count, rule);
}

static void add_process(char **words) {
    struct process process = {.pid = (unsigned)whole(words[2]), .graphics = !strcmp(words[3], "graphics")};
    check_options(words + 5, " from until gi ci ");
    strncpy(process.device, device_or_die(words[1])->key, sizeof process.device - 1);
    if (!process.graphics && strcmp(words[3], "compute")) die("%s is neither compute nor graphics", words[3]);
    process.bytes = strcmp(words[4], "unknown") ? whole_unsigned(words[4]) : UINT64_MAX;
    add_window(words + 5, &process.from_ns, &process.until_ns);
    process.gpu_instance = (unsigned)whole_unsigned(option(words + 5, "gi", "0xFFFFFFFF"));
    process.compute_instance = (unsigned)whole_unsigned(option(words + 5, "ci", "0xFFFFFFFF"));
    APPEND(scenario.processes, scenario.process_count, process);
}

static void add_event(char **words) {
    static const char *names[] = {"ecc_single", "ecc_double", "pstate", "xid", "clock", NULL, NULL, "power_source",
                                  "mig_config", "ecc_single_storm", "dram_retirement", "dram_retirement_failure",
                                  "poison", "poison_fatal", "gpu_unavailable", "recovery_action"};
    struct event event = {.time_ns = nanoseconds(words[1]), .data = whole_unsigned(words[4])};
    strncpy(event.device, device_or_die(words[2])->key, sizeof event.device - 1);
    for (unsigned bit = 0; bit < sizeof names / sizeof *names; bit++)
        if (names[bit] && !strcmp(names[bit], words[3])) event.type = 1ULL << bit;
    if (!event.type) event.type = whole_unsigned(words[3]);
    APPEND(scenario.events, scenario.event_count, event);
}

static void add_mig(char **words) {
    struct device *parent = device_or_die(words[1]);
    if (scenario.device_count == MAX_DEVICES) die("more than %d devices", MAX_DEVICES);
    struct device *device = &scenario.devices[scenario.device_count++];
    *device = (struct device){.parent = parent, .index = parent->index, .slot = (unsigned)whole_unsigned(words[2])};
    check_options(words + 3, " gi ci ");
    snprintf(device->key, sizeof device->key, "%u.%u", parent->index, device->slot);
    device->gpu_instance = (unsigned)whole_unsigned(option(words + 3, "gi", words[2]));
    device->compute_instance = (unsigned)whole_unsigned(option(words + 3, "ci", "0"));
}

static void add_span(char **words, bool gone) {
    struct span span = {.code = code_or_die(option(words, "code", gone ? "NVML_ERROR_UNKNOWN" : "NVML_ERROR_GPU_IS_LOST"))};
    check_options(words, " from until code ");
    add_window(words, &span.from_ns, &span.until_ns);
    if (gone) {
        APPEND(scenario.gone, scenario.gone_count, span);
    } else {
        strncpy(span.device, device_or_die(words[-1])->key, sizeof span.device - 1);
        APPEND(scenario.lost, scenario.lost_count, span);
    }
}

static void set_gpus(const char *count) {
    unsigned long long gpus = whole_unsigned(count);
    if (scenario.device_count || gpus > 16) die("gpus %s: must be the first statement, and at most 16", count);
    scenario.gpus = (unsigned)gpus;
    for (unsigned i = 0; i < scenario.gpus; i++) {
        struct device *device = &scenario.devices[scenario.device_count++];
        *device = (struct device){.index = i, .gpu_instance = NOT_GIVEN, .compute_instance = NOT_GIVEN};
        snprintf(device->key, sizeof device->key, "%u", i);
    }
}

static nvmlValueType_t type_of_name(const char *name) {
    static const char *names[] = {"f64", "u32", "ulong", "u64", "i64", "i32", "u16"};
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(names[i], name)) return (nvmlValueType_t)i;
    die("%s is not a type", name);
}

static void add_text(char *line) {
    char device[NAME_LENGTH], field[NAME_LENGTH];
    int offset = 0;
    if (sscanf(line, " text %63s %63s %n", device, field, &offset) != 2 || !line[offset]) die("text DEVICE FIELD TEXT");
    if (!strcmp(device, "system")) {
        texts_set(device, field, line + offset);
        return;
    }
    FOR_DEVICES(device, key) texts_set(key, field, line + offset);
}

static void statement(char **words, int count) {
    const char *name = words[0];
    bool known = true;
    if (!strcmp(name, "gpus") && count == 2) set_gpus(words[1]);
    else if (!strcmp(name, "start_monotonic_ns") && count == 2) clock_start_at(whole(words[1]));
    else if (!strcmp(name, "value") && count == 4) series_add(words[1], words[2], 0, "=", words[3]);
    else if (!strcmp(name, "at") && count == 6) {
        FOR_DEVICES(words[2], key)
            if (!series_add(key, words[3], nanoseconds(words[1]), words[4], words[5])) die("%s %s", words[4], words[5]);
    } else if (!strcmp(name, "wrap") && count == 4) {
        FOR_DEVICES(words[1], key) series_wrap(key, words[2], (unsigned)whole(words[3]));
    } else if (!strcmp(name, "period") && count == 4) {
        FOR_DEVICES(words[1], key) series_period(key, words[2], nanoseconds(words[3]));
    } else if (!strcmp(name, "type") && count == 3) {
        FOR_DEVICES("*", key) series_type(key, words[1], type_of_name(words[2]));
    } else if (!strcmp(name, "process") && count >= 5) add_process(words);
    else if (!strcmp(name, "event") && count == 5) add_event(words);
    else if (!strcmp(name, "mig") && count >= 3) add_mig(words);
    else if (!strcmp(name, "fail") && count >= 3) add_rule(RULE_FAIL, words);
    else if (!strcmp(name, "fail_field") && count >= 3) add_rule(RULE_FIELD, words);
    else if (!strcmp(name, "hang") && count >= 3) add_rule(RULE_HANG, words);
    else if (!strcmp(name, "exit") && count >= 3) add_rule(RULE_EXIT, words);
    else if (!strcmp(name, "lost") && count >= 2) add_span(words + 2, false);
    else if (!strcmp(name, "gone")) add_span(words + 1, true);
    else known = false;
    if (!known) die("statement %s with %d words is not understood", name, count);
}

static void read_line(char *line) {
    char *words[MAX_WORDS + 1] = {0}, *rest = NULL;
    int count = 0;
    line[strcspn(line, "\r\n")] = 0;
    if (!strncmp(line, "text ", 5)) {
        add_text(line);
        return;
    }
    line[strcspn(line, "#")] = 0;
    for (char *word = strtok_r(line, " \t", &rest); word; word = strtok_r(NULL, " \t", &rest)) {
        if (count == MAX_WORDS) die("more than %d words", MAX_WORDS);
        words[count++] = word;
    }
    if (count) statement(words, count);
}

void scenario_load(void) {
    char line[1024];
    const char *path = getenv("AGPROF_FAKE_NVML");
    clock_start();
    if (!path || !*path) return; /* a machine without a GPU: NVML loads and counts none */
    file_name = path;
    line_number = 0;
    FILE *file = fopen(path, "re");
    if (!file) die("can't be opened");
    while (fgets(line, sizeof line, file)) {
        line_number++;
        read_line(line);
    }
    fclose(file);
    series_sort();
}

void scenario_clear(void) {
    free(scenario.processes);
    free(scenario.events);
    free(scenario.rules);
    free(scenario.lost);
    free(scenario.gone);
    memset(&scenario, 0, sizeof scenario);
    series_clear();
    texts_clear();
    clock_stop();
}
