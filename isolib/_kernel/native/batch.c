/*
 * Small operations on files and directories: from Python each would give the GIL away, some of them three times.  What a batch
 * opens stays in it, and it is the caller's: so it is owned from the moment on at which it is open.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "wrappers.h"

enum { DIRECTORY_MODE = 0755, NOT_OPENED = -1, NOT_DONE = -2 };

static int open_in(int base, const char *name, int flags) {
    return openat(base, name, flags | O_CLOEXEC | O_NOFOLLOW);
}

static void close_quietly(int fd) {
    int error = errno;
    close(fd);
    errno = error;
}

int64_t isolib_file_read(int base, const char *name, char *data, uint64_t size, int to_end) {
    int64_t done = 0;
    ssize_t got;
    int fd = open_in(base, name, O_RDONLY);
    if (fd < 0)
        return NOT_OPENED;
    do {
        got = read(fd, data + done, size - (uint64_t)done);
        done += got > 0 ? got : 0;
    } while (to_end && got > 0 && (uint64_t)done < size);
    close_quietly(fd);
    return got < 0 ? NOT_DONE : done;
}

int isolib_file_write(int base, const char *name, const char *data, uint64_t size) {
    ssize_t put;
    int fd = open_in(base, name, O_WRONLY);
    if (fd < 0)
        return NOT_OPENED;
    put = write(fd, data, size);
    close_quietly(fd);
    return put < 0 ? NOT_DONE : 0;
}

/* ---- in order ---- */

static int be_absent(int base, const char *name) {
    struct stat status;
    if (fstatat(base, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
        return 0; /* whoever makes it will be told what that was */
    errno = EEXIST;
    return -1;
}

static int64_t hold(int base, const char *name, const char *text) {
    char content[512];
    int64_t result = isolib_file_read(base, name, content, sizeof(content) - 1, 0);
    if (result < 0)
        return result;
    content[result] = '\0';
    if (strstr(content, text))
        return 0;
    errno = EBUSY;
    return NOT_DONE;
}

/* cgroup-v1/cgroups.rst, 2.4: from this write on, what the file tells of is told to the eventfd. */
static int notify(struct isolib_errand *errand, const char *name, const char *control, const char **call) {
    char text[32];
    int result, told, file = open_in(errand->base, name, O_RDONLY);
    *call = "open";
    if (file < 0)
        return -1;
    *call = "eventfd";
    told = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (told >= 0) {
        snprintf(text, sizeof(text), "%d %d", told, file);
        result = isolib_file_write(errand->base, control, text, strlen(text));
        *call = result == NOT_OPENED ? "open" : "write";
        if (result < 0)
            close_quietly(told);
        else
            errand->fd = told;
    }
    close_quietly(file);
    return errand->fd < 0 ? -1 : 0;
}

static int run_one(struct isolib_errand *errand, const char *name, const char *text, const char **call) {
    int64_t result = 0;
    switch (errand->kind) {
    case ISOLIB_ERRAND_ABSENT:
        *call = "mkdir";
        return be_absent(errand->base, name);
    case ISOLIB_ERRAND_MKDIR:
        *call = "mkdir";
        return mkdirat(errand->base, name, DIRECTORY_MODE);
    case ISOLIB_ERRAND_RMDIR:
        *call = "rmdir";
        return unlinkat(errand->base, name, AT_REMOVEDIR);
    case ISOLIB_ERRAND_OPEN:
        *call = "open";
        errand->fd = open_in(errand->base, name, errand->flags);
        return errand->fd < 0 ? -1 : 0;
    case ISOLIB_ERRAND_READ:
        result = isolib_file_read(errand->base, name, errand->data, errand->size, 0);
        *call = result == NOT_OPENED ? "open" : "read";
        errand->read = result < 0 ? 0 : (uint64_t)result;
        return result < 0 ? -1 : 0;
    case ISOLIB_ERRAND_WRITE:
        result = isolib_file_write(errand->base, name, text, strlen(text));
        *call = result == NOT_OPENED ? "open" : "write";
        return result < 0 ? -1 : 0;
    case ISOLIB_ERRAND_HOLDS:
        result = hold(errand->base, name, text);
        *call = result == NOT_OPENED ? "open" : "read";
        return result < 0 ? -1 : 0;
    case ISOLIB_ERRAND_NOTIFY:
        return notify(errand, name, text, call);
    case ISOLIB_ERRAND_CLOSE:
        isolib_batch_close(errand->data);
        return 0;
    default:
        *call = "batch";
        errno = EINVAL;
        return -1;
    }
}

static const char *after(const char *text) {
    return text + strlen(text) + 1;
}

int isolib_batch_run(struct isolib_batch *batch) {
    const char *name = batch->texts;
    for (uint32_t i = 0; i < batch->count; i++) {
        const char *text = after(name);
        if (i == batch->done) {
            if (run_one(&batch->errands[i], name, text, &batch->call) < 0)
                return -1;
            batch->done++;
        }
        name = after(text);
    }
    return 0;
}

/* ---- by a launch ---- */

enum { FREE, RUNNING, TAKEN };

static long futex(uint32_t *word, int operation, uint32_t value) {
    return syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

/* Returns what the state was before: FREE when it has been changed. */
static uint32_t leave_free(struct isolib_batch *batch, uint32_t state) {
    uint32_t found = FREE;
    __atomic_compare_exchange_n(&batch->state, &found, state, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    return found;
}

void isolib_batch_run_lent(struct isolib_batch *batch) {
    if (leave_free(batch, RUNNING) != FREE)
        return;
    isolib_batch_run(batch);
    __atomic_store_n(&batch->state, FREE, __ATOMIC_RELEASE);
    futex(&batch->state, FUTEX_WAKE, INT_MAX);
}

void isolib_batch_take(struct isolib_batch *batch) {
    while (leave_free(batch, TAKEN) == RUNNING)
        futex(&batch->state, FUTEX_WAIT, RUNNING);
}

/* ---- closing ---- */

/* Two threads may come here at once, without the GIL: one of them closes it. */
void isolib_errand_close(struct isolib_errand *errand) {
    int32_t fd = __atomic_exchange_n(&errand->fd, -1, __ATOMIC_ACQ_REL);
    if (fd >= 0)
        close(fd);
}

void isolib_batch_close(struct isolib_batch *batch) {
    for (uint32_t i = 0; i < batch->count; i++)
        isolib_errand_close(&batch->errands[i]);
}
