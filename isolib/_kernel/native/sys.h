#ifndef ISOLIB_SYS_H
#define ISOLIB_SYS_H
/*
 * Raw system calls for code that runs between clone and exec, where libc must not be used: they return -errno and touch no
 * thread-local storage.  Only kernel headers are included; numbers newer than the distribution's headers are given here (they
 * are the same on every architecture since 5.1).
 */
#include <asm/unistd.h>
#include <linux/errno.h>
#include <stddef.h>
#include <stdint.h>

#ifdef ISOLIB_HOSTED
/* The sanitizer and fuzzing builds provide the system calls: see tests/native. */
long sys6(long number, long a, long b, long c, long d, long e, long f);
long isolib_clone_run(unsigned long flags, void *stack_top, int *tid, int (*function)(void *), void *argument);
#define ISOLIB_DEFINE_CLONE _Static_assert(1, "provided by the host program")
#else
#if defined(__x86_64__) && !defined(__ILP32__)
#include "arch/x86_64.h"
#elif defined(__aarch64__)
#include "arch/aarch64.h"
#else
#error "isolib supports x86-64 and aarch64"
#endif
long isolib_clone_run(unsigned long flags, void *stack_top, int *tid, int (*function)(void *), void *argument);
#endif

/* Which call failed last: where a step is several calls, its error is about that one. */
#ifdef ISOLIB_NOTES_FAILURES
extern volatile int32_t iso_failed_call;
static inline long iso_noted(int32_t number, long result) {
    if (result < 0 && result > -4096 && result != -EINTR)
        iso_failed_call = number;
    return result;
}
#else
#define iso_noted(number, result) (result)
#endif

#define SYS0(name) iso_noted(__NR_##name, sys6(__NR_##name, 0, 0, 0, 0, 0, 0))
#define SYS1(name, a) iso_noted(__NR_##name, sys6(__NR_##name, (long)(a), 0, 0, 0, 0, 0))
#define SYS2(name, a, b) iso_noted(__NR_##name, sys6(__NR_##name, (long)(a), (long)(b), 0, 0, 0, 0))
#define SYS3(name, a, b, c) iso_noted(__NR_##name, sys6(__NR_##name, (long)(a), (long)(b), (long)(c), 0, 0, 0))
#define SYS4(name, a, b, c, d) iso_noted(__NR_##name, sys6(__NR_##name, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0))
#define SYS5(name, a, b, c, d, e) \
    iso_noted(__NR_##name, sys6(__NR_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0))

#ifndef __NR_clone3
#define __NR_clone3 435
#endif
#ifndef __NR_mount_setattr
#define __NR_mount_setattr 442
#endif

/* linux/fcntl.h, linux/sched.h and others clash with libc's; these few values are ABI. */
#define ISO_AT_FDCWD (-100)
#define ISO_AT_EMPTY_PATH 0x1000
#define ISO_AT_REMOVEDIR 0x200
#define ISO_O_CLOEXEC 02000000
#define ISO_O_PATH 010000000
#define ISO_O_RDWR 02
#define ISO_O_WRONLY 01
#define ISO_O_CREAT 0100
#define ISO_O_EXCL 0200
#define ISO_O_NOCTTY 0400
#if defined(__aarch64__)
#define ISO_O_DIRECTORY 040000
#define ISO_O_NOFOLLOW 0100000
#else
#define ISO_O_DIRECTORY 0200000
#define ISO_O_NOFOLLOW 0400000
#endif
#define ISO_CLONE_VM 0x100
#define ISO_CLONE_FS 0x200
#define ISO_CLONE_FILES 0x400
#define ISO_CLONE_PIDFD 0x1000
#define ISO_CLONE_VFORK 0x4000
#define ISO_CLONE_PARENT 0x8000
#define ISO_CLONE_PARENT_SETTID 0x100000
#define ISO_CLONE_CHILD_CLEARTID 0x200000
#define ISO_CLONE_NEWTIME 0x80
#define ISO_CLONE_INTO_CGROUP 0x200000000ULL
#define ISO_SIGKILL 9
#define ISO_SIGTERM 15
#define ISO_SIGCHLD 17
#define ISO_WALL 0x40000000

struct iso_open_how {
    uint64_t flags;
    uint64_t mode;
    uint64_t resolve;
};

struct iso_mount_attr {
    uint64_t set;
    uint64_t clear;
    uint64_t propagation;
    uint64_t userns;
};

struct iso_pollfd {
    int32_t fd;
    int16_t events;
    int16_t revents;
};
#define ISO_POLLIN 1
#define ISO_POLLPRI 2
#define ISO_POLLHUP 16

struct iso_timespec {
    int64_t sec;
    int64_t nsec;
};

/* Of an open file description: fcntl_locking(2), F_OFD_SETLK. */
struct iso_lock {
    int16_t type;
    int16_t whence;
    int64_t start;
    int64_t size; /* 0: to the end */
    int32_t pid;
};
#define ISO_OFD_GETLK 36
#define ISO_OFD_SETLK 37
#define ISO_RDLCK 0
#define ISO_WRLCK 1
#define ISO_UNLCK 2

struct iso_iovec {
    const void *base;
    size_t size;
};

/* One control message with at most two descriptors, laid out as sendmsg(2) wants it on 64-bit Linux. */
struct iso_fd_control {
    size_t size;
    int32_t level;
    int32_t type;
    int32_t fds[2];
};

struct iso_msghdr {
    void *name;
    uint32_t name_size;
    struct iso_iovec *parts;
    size_t part_count;
    void *control;
    size_t control_size;
    uint32_t flags;
};
#define ISO_SOL_SOCKET 1
#define ISO_SCM_RIGHTS 1

/* What /proc/PID/task/TID/children holds: "12 345 6 ", as far as it fits.  Without CONFIG_PROC_CHILDREN there is no such file.
 */
struct iso_children {
    char numbers[4096];
    long size, at;
};

static inline long iso_children_read(struct iso_children *children, int directory, const char *file) {
    long fd = SYS4(openat, directory, file, ISO_O_CLOEXEC, 0);
    children->at = 0;
    children->size = fd < 0 ? 0 : SYS3(read, fd, children->numbers, sizeof(children->numbers));
    if (fd >= 0)
        SYS1(close, fd);
    return fd < 0 ? fd : 0;
}

/* The next number, or NULL. */
static inline const char *iso_children_next(struct iso_children *children) {
    const char *number = children->numbers + children->at;
    for (; children->at < children->size; children->at++) {
        if (children->numbers[children->at] == ' ') {
            children->numbers[children->at++] = 0;
            return number;
        }
    }
    return NULL;
}

/* Marks every descriptor but those in `keep` (sorted, ascending) close-on-exec or closes it, by close_range over the gaps. */
static inline long iso_close_others(const int32_t *keep, uint32_t count, unsigned int flags) {
    unsigned int from = 0;
    for (uint32_t i = 0; i < count; i++) {
        unsigned int at = (unsigned int)keep[i];
        if (at > from) {
            long r = SYS3(close_range, from, at - 1, flags);
            if (r < 0)
                return r;
        }
        from = at + 1;
    }
    return SYS3(close_range, from, ~0U, flags);
}
#endif
