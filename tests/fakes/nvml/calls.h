/* What every call does before it answers: faults, checks, the log. */
#ifndef CALLS_H
#define CALLS_H

#include "scenario.h"

#define EXPORT __attribute__((visibility("default")))

/* What a program holds as nvmlDevice_t. Made anew by each nvmlInit, so that an old one is recognised. */
struct handle {
    uint32_t magic;
    int session;
    struct device *device;
};

struct call {
    const char *name;
    struct device *device;
    int code; /* of a fault or a failed check; 0: answer */
};

struct call enter(const char *name, void *handle, bool takes_device);
nvmlReturn_t leave(struct call *call, int code);

struct device *device_of(void *handle);         /* NULL where it is none of this session */
int handle_of(struct device *device, void **handle);
bool device_lost(const struct device *device, int *code);
int rule_for_field(const struct device *device, unsigned field);

/* Answers from the scenario, at its time now. */
int read_u32(struct device *device, const char *field, unsigned *value);
int read_u64(struct device *device, const char *field, unsigned long long *value);
int read_i32(struct device *device, const char *field, int *value);
int read_text(const char *device, const char *field, char *buffer, unsigned length);

/* Defines an exported call. CALL: of the library; DEVICE_CALL: its first parameter is `void *handle`, and `device` is
 * what it names. The last argument answers with a return code. */
#define CALL(call_name, parameters, answer)                                    \
    EXPORT nvmlReturn_t call_name parameters {                                 \
        struct call call = enter(#call_name, NULL, false);                     \
        return leave(&call, call.code ? call.code : (answer));                 \
    }
#define DEVICE_CALL(call_name, parameters, answer)                             \
    EXPORT nvmlReturn_t call_name parameters {                                 \
        struct call call = enter(#call_name, handle, true);                    \
        struct device *device = call.device;                                   \
        return leave(&call, call.code ? call.code : (answer));                 \
    }

#endif
