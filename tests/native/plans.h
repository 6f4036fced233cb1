#ifndef PLANS_H
#define PLANS_H
/* Sound plans to begin with, and a generator of numbers that is the same on every machine. */
#include "launcher.h"
#include <stdlib.h>
#include <string.h>

static uint64_t seed = 0x9e3779b97f4a7c15;

static uint64_t number(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

static uint64_t below(uint64_t limit) {
    return number() % limit;
}

struct writer {
    uint8_t *bytes;
    size_t size;
    size_t text_at;
    size_t text_size;
};

enum { ROOM = 65536, TEXTS = 8192 };

static uint32_t put(struct writer *w, char *texts, const void *data, uint32_t size) {
    uint32_t at = (uint32_t)w->text_size;
    memcpy(texts + at, data, size);
    texts[at + size] = 0;
    w->text_size += size + 1;
    return at;
}

/* A step of a kind with everything that the kind may use, which plan_check() accepts if the kind stands where it may. */
static struct isolib_step sound_step(struct writer *w, char *texts, int kind, uint32_t slots) {
    static const char argv[] = "true\0-x\0HOME=/\0";
    struct isolib_step step = {.kind = (uint16_t)kind, .fd = -1, .fd2 = -1, .out = -1, .flags = number(), .value = number()};
    switch (kind) {
    case STEP_EXEC:
        step.flags = 2;
        step.value = 1;
        step.text = put(w, texts, "/bin/true\0/usr/bin/true", 24);
        step.size = 24;
        step.text2 = put(w, texts, argv, sizeof(argv) - 1);
        step.size2 = sizeof(argv) - 1;
        return step;
    case STEP_MAP_HELPER:
        step.text = put(w, texts, "/usr/bin/newuidmap", 18);
        step.text2 = put(w, texts, "0\0001000\0001\0", 9);
        step.size2 = 9;
        return step;
    case STEP_MAP:
    case STEP_WRITE:
        step.text = put(w, texts, "uid_map", 7);
        step.text2 = put(w, texts, "0 1000 1\n", 9);
        step.size2 = 9;
        return step;
    case STEP_SECCOMP:
    case STEP_SETGROUPS:
    case STEP_AFFINITY:
        step.text2 = put(w, texts, "12345678", 8);
        step.size2 = 8;
        return step;
    default:
        step.fd = (int32_t)below(slots);
        step.fd2 = (int32_t)below(slots);
        step.out = (int32_t)below(slots);
        step.text = put(w, texts, "/proc/self/a/b/c", 16);
        step.text2 = put(w, texts, "/dev/null", 9);
        return step;
    }
}

/* A step appended as it is. */
static void place(struct writer *w, char *texts, struct isolib_step *steps, uint32_t *count, int kind, uint32_t slots) {
    steps[(*count)++] = sound_step(w, texts, kind, slots);
}

static size_t finish(struct writer *w, const char *texts, const struct isolib_step *steps, uint32_t count, uint32_t slots) {
    struct isolib_plan plan = {ISOLIB_PLAN_MAGIC, ISOLIB_PLAN_VERSION, count, slots, (uint32_t)w->text_size, -1};
    memcpy(w->bytes, &plan, sizeof(plan));
    memcpy(w->bytes + sizeof(plan), steps, count * sizeof(*steps));
    memcpy(w->bytes + sizeof(plan) + count * sizeof(*steps), texts, w->text_size);
    w->size = sizeof(plan) + count * sizeof(*steps) + w->text_size;
    return w->size;
}

/* Which combination of empty fields a kind wants is found by trying, so that no table of it stands here too. */
static int settle(struct isolib_step *step, uint8_t *scratch) {
    struct isolib_step wanted = *step;
    for (int empty = 0; empty < 32; empty++) {
        struct writer w = {.bytes = scratch};
        char texts[TEXTS] = {0};
        struct isolib_step steps[8];
        uint32_t count = 0;
        struct isolib_step tried = wanted;
        if (empty & 1)
            tried.fd = -1;
        if (empty & 2)
            tried.fd2 = -1;
        if (empty & 4)
            tried.out = -1;
        if (empty & 8)
            tried.text = 0;
        if (empty & 16)
            tried.text2 = 0;
        put(&w, texts, "", 0);
        memset(texts + 1, 'x', 4096);
        w.text_size = 4097;
        steps[count++] = (struct isolib_step){.kind = STEP_CLONE, .fd = -1, .fd2 = -1, .out = -1};
        steps[count++] = (struct isolib_step){.kind = STEP_GO, .fd = -1, .fd2 = -1, .out = -1};
        for (int i = 0; i < 4; i++) { /* whatever it needs to be filled is filled */
            struct isolib_step open = {.kind = STEP_FSOPEN, .fd = -1, .fd2 = -1, .out = i, .text = 1};
            steps[count++] = open;
        }
        steps[count++] = tried;
        steps[count++] = (struct isolib_step){.kind = STEP_HOLD, .fd = -1, .fd2 = -1, .out = -1};
        if (plan_check(scratch, finish(&w, texts, steps, count, 4)) == 0) {
            *step = tried;
            return 1;
        }
    }
    return 0;
}

/* Builds a plan of random steps; returns its size. */
static size_t random_plan(uint8_t *bytes, uint8_t *scratch) {
    struct writer w = {.bytes = bytes};
    char texts[TEXTS] = {0};
    struct isolib_step steps[64];
    uint32_t count = 0, slots = 4;
    int middle = (int)below(12);
    put(&w, texts, "", 0);
    steps[count++] = (struct isolib_step){.kind = STEP_CLONE, .fd = -1, .fd2 = -1, .out = -1, .value = 1};
    place(&w, texts, steps, &count, STEP_MAP, slots);
    if (below(2))
        place(&w, texts, steps, &count, STEP_MAP_HELPER, slots);
    for (uint32_t i = 0; i < count; i++)
        if (steps[i].kind != STEP_CLONE)
            steps[i].flags = steps[i].value = 0;
    steps[count++] = (struct isolib_step){.kind = STEP_GO, .fd = -1, .fd2 = -1, .out = -1};
    for (int i = 0; i < 4; i++) {
        steps[count] = (struct isolib_step){.kind = STEP_FSOPEN, .fd = -1, .fd2 = -1, .out = i};
        steps[count++].text = put(&w, texts, "tmpfs", 5);
    }
    for (int i = 0; i < middle; i++) {
        int kind = STEP_SETNS + (int)below(STEP_KINDS - STEP_SETNS);
        struct isolib_step step = sound_step(&w, texts, kind, slots);
        if (kind == STEP_FAIL && below(16))
            continue;
        if (kind == STEP_CHECK_DEVICE)
            step.value = 0;
        if (settle(&step, scratch))
            steps[count++] = step;
    }
    if (below(4) == 0) {
        steps[count++] = (struct isolib_step){.kind = STEP_HOLD, .fd = -1, .fd2 = -1, .out = -1};
    } else if (below(4) == 0) {
        steps[count++] = (struct isolib_step){.kind = STEP_REAP, .fd = (int32_t)below(slots), .fd2 = -1, .out = -1};
    } else {
        steps[count++] = (struct isolib_step){.kind = STEP_SUPERVISE, .fd = -1, .fd2 = -1, .out = -1, .value = below(3)};
        place(&w, texts, steps, &count, STEP_EXEC, slots);
    }
    return finish(&w, texts, steps, count, slots);
}

static void mutate(uint8_t *bytes, size_t *size) {
    static const uint64_t nasty[] = {0, 1, 2, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff};
    for (uint64_t i = 1 + below(4); i; i--) {
        size_t at = below(*size);
        switch (below(6)) {
        case 0:
            bytes[at] ^= (uint8_t)(1 << below(8));
            break;
        case 1:
            bytes[at] = (uint8_t)number();
            break;
        case 2: {
            uint64_t value = nasty[below(sizeof(nasty) / sizeof(*nasty))];
            size_t width = (size_t)1 << below(4);
            at -= at % width;
            if (at + width <= *size)
                memcpy(bytes + at, &value, width);
            break;
        }
        case 3: /* a length in the header, where most depends on it */
            at = 4 * below(6);
            bytes[at + below(4)] = (uint8_t)number();
            break;
        case 4: {
            size_t other = below(*size), length = below(64);
            if (at + length <= *size && other + length <= *size)
                memmove(bytes + at, bytes + other, length);
            break;
        }
        default:
            if (below(8) == 0)
                *size = below(*size) + 1;
        }
    }
}
#endif
