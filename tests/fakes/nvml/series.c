/* Values over time: points, and what holds between and after them. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "scenario.h"

#define MAX_SERIES 8192
#define SECOND_NS 1000000000

enum point_kind { HOLD, LINE, GROWTH, INTEGRAL, FAILURE };

struct point {
    enum point_kind kind;
    int64_t time_ns;
    number operand;
    int code;
    char other[NAME_LENGTH];
    int line; /* order in the file, so that sorting by time is stable */
};

struct series {
    char device[16], field[NAME_LENGTH];
    struct point *points;
    int count;
    unsigned wrap_bits;
    int64_t period_ns;
    bool typed;
    nvmlValueType_t type;
};

static struct series *table[MAX_SERIES]; /* open addressing */
static int point_lines, series_made;

static unsigned slot_of(const char *device, const char *field) {
    uint32_t hash = 2166136261u;
    for (const char *c = device; *c; c++) hash = (hash ^ (unsigned char)*c) * 16777619u;
    hash = (hash ^ '/') * 16777619u;
    for (const char *c = field; *c; c++) hash = (hash ^ (unsigned char)*c) * 16777619u;
    unsigned slot = hash % MAX_SERIES;
    while (table[slot] && (strcmp(table[slot]->device, device) || strcmp(table[slot]->field, field)))
        slot = (slot + 1) % MAX_SERIES;
    return slot;
}

static struct series *find(const char *device, const char *field) { return table[slot_of(device, field)]; }

static struct series *find_or_make(const char *device, const char *field) {
    unsigned slot = slot_of(device, field);
    if (!table[slot]) {
        if (++series_made > MAX_SERIES / 2) die("more than %d fields", MAX_SERIES / 2);
        table[slot] = calloc(1, sizeof **table);
        strncpy(table[slot]->device, device, sizeof table[slot]->device - 1);
        strncpy(table[slot]->field, field, sizeof table[slot]->field - 1);
        table[slot]->wrap_bits = 64;
    }
    return table[slot];
}

void series_clear(void) {
    series_made = 0;
    for (int i = 0; i < MAX_SERIES; i++) {
        if (table[i]) {
            free(table[i]->points);
            free(table[i]);
            table[i] = NULL;
        }
    }
}

bool series_add(const char *device, const char *field, int64_t time_ns, const char *operator, const char *operand) {
    struct point point = {.time_ns = time_ns, .line = point_lines++};
    if (!strcmp(operator, "!")) {
        point.kind = FAILURE;
        if ((point.code = code_of_name(operand)) < 0) return false;
    } else if (!strcmp(operator, "integral")) {
        point.kind = INTEGRAL;
        strncpy(point.other, operand, sizeof point.other - 1);
    } else {
        static const char operators[] = "=~+";
        static const enum point_kind kinds[] = {HOLD, LINE, GROWTH};
        const char *found = strchr(operators, operator[0]);
        char *end;
        if (!operator[0] || operator[1] || !found) return false;
        point.kind = kinds[found - operators];
        point.operand = strtold(operand, &end);
        if (*end || end == operand) return false;
    }
    struct series *series = find_or_make(device, field);
    series->points = realloc(series->points, (size_t)(series->count + 1) * sizeof point);
    series->points[series->count++] = point;
    return true;
}

static int by_time(const void *left, const void *right) {
    const struct point *a = left, *b = right;
    if (a->time_ns != b->time_ns) return a->time_ns < b->time_ns ? -1 : 1;
    return a->line - b->line;
}

void series_sort(void) {
    for (int i = 0; i < MAX_SERIES; i++)
        if (table[i]) qsort(table[i]->points, (size_t)table[i]->count, sizeof(struct point), by_time);
}

void series_wrap(const char *device, const char *field, unsigned bits) {
    find_or_make(device, field)->wrap_bits = bits;
}

void series_period(const char *device, const char *field, int64_t period_ns) {
    find_or_make(device, field)->period_ns = period_ns;
}

void series_type(const char *device, const char *field, nvmlValueType_t type) {
    struct series *series = find_or_make(device, field);
    series->typed = true;
    series->type = type;
}

bool series_type_of(const char *device, const char *field, nvmlValueType_t *type) {
    struct series *series = find(device, field);
    if (!series || !series->typed) return false;
    *type = series->type;
    return true;
}

bool series_known(const char *device, const char *prefix) {
    for (int i = 0; i < MAX_SERIES; i++)
        if (table[i] && table[i]->count && !strcmp(table[i]->device, device) &&
            !strncmp(table[i]->field, prefix, strlen(prefix)))
            return true;
    return false;
}

static number integral(const char *device, const char *field, int64_t from_ns, int64_t to_ns);

/* The value at a time, or just before what happens at that time. Multiplied before it is divided, so that whole results
 * come out whole. */
static int value_of(const struct series *series, int64_t time_ns, bool before, number *value) {
    number begin = 0, now = 0;
    int code = NVML_ERROR_NOT_SUPPORTED, i;
    for (i = 0; i < series->count; i++) {
        const struct point *point = &series->points[i];
        if (point->time_ns > time_ns || (before && point->time_ns == time_ns)) break;
        bool more = i + 1 < series->count && series->points[i + 1].time_ns <= time_ns;
        int64_t end_ns = more ? series->points[i + 1].time_ns : time_ns;
        begin = now;
        switch (point->kind) {
            case HOLD:
            case LINE: begin = now = point->operand; break;
            case GROWTH: now += point->operand * (end_ns - point->time_ns) / SECOND_NS; break;
            case INTEGRAL: now += integral(series->device, point->other, point->time_ns, end_ns); break;
            case FAILURE: break;
        }
        code = point->kind == FAILURE ? point->code : NVML_SUCCESS;
    }
    if (!code && i < series->count && series->points[i].kind == LINE) {
        const struct point *last = &series->points[i - 1], *next = &series->points[i];
        now = begin + (next->operand - begin) * (time_ns - last->time_ns) / (next->time_ns - last->time_ns);
    }
    *value = now;
    return code;
}

/* Over seconds. Exact where the field is made of steps and straight lines; failures count as nothing. */
static number integral(const char *device, const char *field, int64_t from_ns, int64_t to_ns) {
    const struct series *series = find(device, field);
    number sum = 0;
    if (!series) return 0;
    for (int i = 0; from_ns < to_ns; i++) {
        int64_t end_ns = to_ns;
        while (i < series->count && series->points[i].time_ns <= from_ns) i++;
        if (i < series->count && series->points[i].time_ns < to_ns) end_ns = series->points[i].time_ns;
        number left, right;
        if (!value_of(series, from_ns, false, &left) && !value_of(series, end_ns, true, &right))
            sum += (left + right) * (end_ns - from_ns) / (2 * (number)SECOND_NS);
        from_ns = end_ns;
    }
    return sum;
}

int series_value(const char *device, const char *field, int64_t time_ns, number *value) {
    const struct series *series = find(device, field);
    if (!series) return NVML_ERROR_NOT_SUPPORTED;
    if (series->period_ns) time_ns -= time_ns % series->period_ns;
    int code = value_of(series, time_ns, false, value);
    if (!code && series->wrap_bits && *value >= 0) {
        unsigned __int128 whole = (unsigned __int128)*value, mask = ((unsigned __int128)1 << series->wrap_bits) - 1;
        *value = (number)(whole & mask) + (*value - (number)whole);
    }
    return code;
}

int series_mean(const char *device, const char *field, int64_t from_ns, int64_t to_ns, double *mean) {
    const struct series *series = find(device, field);
    number at_end;
    if (!series) return NVML_ERROR_NOT_SUPPORTED;
    int code = value_of(series, to_ns, false, &at_end);
    if (!code) *mean = (double)(integral(device, field, from_ns, to_ns) * SECOND_NS / (to_ns - from_ns));
    return code;
}
