/* Scenario time: CLOCK_MONOTONIC since the first call, or what a test wrote into a file that is mapped here. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "scenario.h"

static int64_t start_ns;
static _Atomic int64_t *mapped;

static int64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

void clock_start(void) {
    const char *path = getenv("AGPROF_FAKE_NVML_CLOCK");
    start_ns = monotonic_ns();
    if (!path || !*path) return;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    void *memory = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *mapped, PROT_READ, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED) die("clock %s can't be mapped", path);
    close(file);
    mapped = memory;
}

void clock_start_at(int64_t monotonic) { start_ns = monotonic; }

void clock_stop(void) {
    if (mapped) munmap((void *)mapped, sizeof *mapped);
    mapped = NULL;
}

int64_t scenario_now_ns(void) { return mapped ? atomic_load(mapped) : monotonic_ns() - start_ns; }

void pause_ms(int milliseconds) {
    struct timespec wait = {.tv_sec = milliseconds / 1000, .tv_nsec = milliseconds % 1000 * 1000000L};
    nanosleep(&wait, NULL);
}
