/* The scenario: devices, values over time, processes, events, faults. Its format is in README.md. */
#ifndef SCENARIO_H
#define SCENARIO_H

#include <stdbool.h>
#include <stdint.h>

#include "abi.h"

#define MAX_DEVICES 72 /* 8 GPUs with 7 MIG instances each, and room */
#define NAME_LENGTH 64
#define TEXT_LENGTH 256
#define FOREVER INT64_MAX
#define NOT_GIVEN UINT32_MAX

typedef _Float128 number; /* holds every 64-bit counter with a fraction, and what wrapped off above it */

struct device {
    char key[16];           /* "3", or "3.1" for MIG slot 1 of GPU 3 */
    struct device *parent;  /* NULL for a whole GPU */
    unsigned index, slot, gpu_instance, compute_instance;
};

struct process {
    char device[16];
    unsigned pid, gpu_instance, compute_instance;
    bool graphics;
    unsigned long long bytes;
    int64_t from_ns, until_ns;
};

struct event {
    char device[16];
    int64_t time_ns;
    unsigned long long type, data;
    bool delivered;
};

enum rule_kind { RULE_FAIL, RULE_FIELD, RULE_HANG, RULE_EXIT };

struct rule {
    enum rule_kind kind;
    char call[NAME_LENGTH]; /* "*" for each */
    char device[16];        /* "" for each */
    unsigned field;
    int code;               /* return code, or exit status */
    int64_t hang_ns, from_ns, until_ns;
    long after, times;      /* the first `after` pass, then `times` are struck; -1: all of them */
    long seen;
};

struct span {
    char device[16];
    int64_t from_ns, until_ns;
    int code;
};

struct scenario {
    unsigned gpus, device_count;
    struct device devices[MAX_DEVICES];
    struct process *processes;
    struct event *events;
    struct rule *rules;
    struct span *lost, *gone;
    int process_count, event_count, rule_count, lost_count, gone_count;
};

extern struct scenario scenario;

void scenario_load(void);  /* from the environment; ends the process with 99 where a line is not understood */
void scenario_clear(void);

/* clock.c */
int64_t scenario_now_ns(void);
void clock_start(void);
void clock_start_at(int64_t monotonic_ns);
void clock_stop(void);
void pause_ms(int milliseconds);

/* parse.c */
_Noreturn void die(const char *format, ...);
struct device *scenario_device(const char *key);
int code_of_name(const char *name); /* -1 where there is none of that name */

/* series.c: values over time */
void series_clear(void);
bool series_add(const char *device, const char *field, int64_t time_ns, const char *operator, const char *operand);
void series_sort(void);
void series_wrap(const char *device, const char *field, unsigned bits);
void series_period(const char *device, const char *field, int64_t period_ns);
void series_type(const char *device, const char *field, nvmlValueType_t type);
bool series_type_of(const char *device, const char *field, nvmlValueType_t *type);
bool series_known(const char *device, const char *prefix);
int series_value(const char *device, const char *field, int64_t time_ns, number *value); /* an nvmlReturn_t */
int series_mean(const char *device, const char *field, int64_t from_ns, int64_t to_ns, double *mean);

/* texts.c */
void texts_clear(void);
void texts_set(const char *device, const char *field, const char *text);
const char *texts_get(const char *device, const char *field); /* NULL where there is none */

#endif
