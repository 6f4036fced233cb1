/*
 * Small operations in directories, in a row: from Python each would give the GIL away, some of them three times.  What is
 * opened stays in the batch, which is the caller's, so it is owned from the moment on at which it is open.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "wrappers.h"

enum { DIRECTORY_MODE = 0755 };

static int be_absent(const struct isolib_errand *errand) {
    struct stat status;
    if (fstatat(errand->base, errand->name, &status, AT_SYMLINK_NOFOLLOW) < 0)
        return 0; /* whoever makes it will be told what it was */
    errno = EEXIST;
    return -1;
}

static int open_file(const struct isolib_errand *errand) {
    return openat(errand->base, errand->name, errand->flags | O_CLOEXEC | O_NOFOLLOW);
}

static int read_all(struct isolib_errand *errand, int fd) {
    errand->read = 0; /* it may have been interrupted, and begins anew */
    while (errand->read < errand->size) {
        ssize_t got = read(fd, errand->data + errand->read, errand->size - errand->read);
        if (got <= 0)
            return (int)got;
        errand->read += (uint64_t)got;
    }
    return 0;
}

static int in_file(struct isolib_errand *errand, const char **call) {
    int result, error, fd;
    *call = "open";
    fd = open_file(errand);
    if (fd < 0)
        return -1;
    if (errand->kind == ISOLIB_ERRAND_READ) {
        *call = "read";
        result = read_all(errand, fd);
    } else {
        *call = "write";
        result = write(fd, errand->data, errand->size) < 0 ? -1 : 0;
    }
    error = errno;
    close(fd);
    errno = error;
    return result;
}

static int run_one(struct isolib_errand *errand, const char **call) {
    switch (errand->kind) {
    case ISOLIB_ERRAND_ABSENT:
        *call = "mkdir";
        return be_absent(errand);
    case ISOLIB_ERRAND_MKDIR:
        *call = "mkdir";
        return mkdirat(errand->base, errand->name, DIRECTORY_MODE);
    case ISOLIB_ERRAND_RMDIR:
        *call = "rmdir";
        return unlinkat(errand->base, errand->name, AT_REMOVEDIR);
    case ISOLIB_ERRAND_OPEN:
        *call = "open";
        errand->fd = open_file(errand);
        return errand->fd < 0 ? -1 : 0;
    case ISOLIB_ERRAND_READ:
    case ISOLIB_ERRAND_WRITE:
        return in_file(errand, call);
    case ISOLIB_ERRAND_EVENTFD:
        *call = "eventfd";
        errand->fd = eventfd(0, errand->flags);
        return errand->fd < 0 ? -1 : 0;
    default:
        *call = "batch";
        errno = EINVAL;
        return -1;
    }
}

int isolib_batch_run(struct isolib_batch *batch) {
    for (; batch->done < batch->count; batch->done++)
        if (run_one(&batch->errands[batch->done], &batch->call) < 0)
            return -1;
    return 0;
}

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
