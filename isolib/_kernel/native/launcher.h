#ifndef ISOLIB_LAUNCHER_H
#define ISOLIB_LAUNCHER_H
/* What the parts of the launcher know of each other. */
#define ISOLIB_NOTES_FAILURES
/* The types that cdef.h needs come with sys.h. */
#include "sys.h"

#include "cdef.h"

struct launcher {
    const struct isolib_step *steps;
    uint32_t step_count;
    const char *text;
    uint32_t slot_count;
    int32_t slots[ISOLIB_MAX_SLOTS];
    const int32_t *keep; /* sorted; includes 0, 1, 2 */
    uint32_t keep_count;
    int32_t status;
    int32_t host;
    int32_t proc;
    int32_t pty;
    uint32_t at;     /* the step under way */
    int32_t stage;   /* enum isolib_stage */
    int32_t child;   /* stage 1: the pid of stage 2 */
    int32_t go;      /* stage 1: writing end, stage 2: reading end; it is closed when stage 2 supervises */
    int32_t signals; /* the supervisor's signalfd */
    int32_t command_pidfd;
    int32_t umask;            /* of the caller, or -1: it has not been changed */
    int32_t quiet;            /* see struct isolib_boot */
    volatile int32_t *shared; /* where the command has memory of its own: errno, step and call of its failure */
    volatile int32_t failed;  /* set by the command, which shares memory until its exec: errno */
    volatile uint32_t failed_at;
};

/* plan_check.c: nothing is executed before the whole plan has been found sound.  Returns 0 or -errno. */
long plan_check(const uint8_t *bytes, size_t size);

/* steps.c: one step that needs no other process; -errno when it fails. */
long run_step(struct launcher *l, const struct isolib_step *step);

/* exec.c */
long run_exec(struct launcher *l, const struct isolib_step *step);
long run_map_helper(struct launcher *l, const struct isolib_step *step);

/* supervise.c: open_signals comes before there is a command, that it may fail; supervise does not return. */
long open_signals(struct launcher *l);
void supervise(struct launcher *l, const struct isolib_step *step, int command_pid) __attribute__((noreturn));

/* reap.c */
void run_reaper(struct launcher *l, const struct isolib_step *step) __attribute__((noreturn));

/* launcher.c */
long send_message(struct launcher *l, const struct isolib_message *message, int fd, int fd2);
void fail(struct launcher *l, long error) __attribute__((noreturn));
void leave(int status) __attribute__((noreturn));
void launcher_main(long *block) __attribute__((noreturn));

static inline const char *text_of(const struct launcher *l, uint32_t offset) {
    return l->text + offset;
}

static inline int slot(const struct launcher *l, int32_t index) {
    return index < 0 ? ISO_AT_FDCWD : l->slots[index];
}

static inline size_t length(const char *s) {
    size_t n = 0;
    while (s[n])
        n++;
    return n;
}

enum { SECOND = 1000000000 }; /* in nanoseconds */
static inline int64_t now_ns(void) {
    struct iso_timespec now = {0, 0};
    SYS2(clock_gettime, 1, &now); /* CLOCK_MONOTONIC */
    return now.sec * SECOND + now.nsec;
}

/* Adds a descriptor, unless it is -1, to a list as iso_close_others takes it. */
static inline void insert_sorted(int32_t *list, uint32_t *count, int32_t fd) {
    uint32_t at = *count;
    if (fd < 0)
        return;
    while (at > 0 && list[at - 1] > fd) {
        list[at] = list[at - 1];
        at--;
    }
    list[at] = fd;
    ++*count;
}

enum { DECIMAL = 12 };
static inline const char *decimal(char digits[DECIMAL], int32_t number) {
    size_t at = DECIMAL - 1;
    digits[at] = 0;
    do
        digits[--at] = (char)('0' + number % 10);
    while (number /= 10);
    return digits + at;
}
#endif
