/* Names, UUIDs, versions: texts that do not change. */
#define _GNU_SOURCE
#include <string.h>

#include "scenario.h"

#define MAX_TEXTS 1024

static struct {
    char device[16], field[NAME_LENGTH], text[TEXT_LENGTH];
} texts[MAX_TEXTS];
static int text_count;

void texts_clear(void) { text_count = 0; }

void texts_set(const char *device, const char *field, const char *text) {
    int i = 0;
    while (i < text_count && (strcmp(texts[i].device, device) || strcmp(texts[i].field, field))) i++;
    if (i == MAX_TEXTS) die("more than %d texts", MAX_TEXTS);
    if (i == text_count) text_count++;
    memset(&texts[i], 0, sizeof texts[i]);
    strncpy(texts[i].device, device, sizeof texts[i].device - 1);
    strncpy(texts[i].field, field, sizeof texts[i].field - 1);
    strncpy(texts[i].text, text, sizeof texts[i].text - 1);
}

const char *texts_get(const char *device, const char *field) {
    for (int i = 0; i < text_count; i++)
        if (!strcmp(texts[i].device, device) && !strcmp(texts[i].field, field)) return texts[i].text;
    return NULL;
}
