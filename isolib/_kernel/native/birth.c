/*
 * The birth of a launch: from the plan's bytes to the launcher's own start, made without the GIL.
 *
 * Two processes share this one's memory, so they run on stacks of their own, call no libc, and take no lock:
 *
 *   middle   never executes a program, so its exit signal stays 0 and no SIGCHLD tells of it; it waits for stage 1, so that the
 *            host never has a child that wait(2) could find.  (execve sets a task's exit signal back to SIGCHLD: that is why
 *            the launcher itself cannot be the host's child.)  It ends stage 1 when the host is gone.
 *   stage 1  places the descriptors and executes the launcher.
 *
 * Stage 1 may take as long as a dead file server does, so the caller's thread is not held by a vfork: it waits for the middle
 * process where a signal interrupts it.  All that the two use is therefore in the nursery, until they are gone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys.h"
#include "wrappers.h"

ISOLIB_DEFINE_CLONE;

enum { STACK = 16384, MAX_PLACED = ISOLIB_MAX_SLOTS + ISOLIB_MAX_KEEP + 16 };

struct birth {
    int image;
    const char *path;
    const char *argv[3];
    const char *envp[1];
    int32_t stdio[3];
    int32_t inherited[MAX_PLACED]; /* kept open over the exec; unsorted */
    uint32_t inherited_count;
    int32_t placed[MAX_PLACED]; /* everything that is not closed; sorted */
    uint32_t placed_count;
    volatile int error;
    volatile int32_t call; /* that failed */
    int32_t host;          /* pidfd of this process */
    int32_t proc;          /* a procfs */
    int32_t stage1;        /* its pid; the kernel makes it 0 when stage 1 has executed the launcher, or has ended */
    int32_t stage1_fd;     /* its pidfd, or -1; closed when both are gone */
    int32_t cancelled;     /* stage 1 is to be ended: by whoever sees both this and its pidfd */
    char number[16];
    char *stage1_stack;
};

static int failed_birth(struct birth *birth, int32_t call, long error) {
    birth->call = call;
    birth->error = (int)-error;
    return 127;
}

/* Standard streams may come from one another's numbers (stderr=1, stdin=2), so those below 3 are moved away first. */
static long place_stdio(const int32_t stdio[3]) {
    long source[3], result;
    for (int i = 0; i < 3; i++) {
        source[i] = stdio[i];
        if (stdio[i] < 3 && stdio[i] != i) {
            source[i] = SYS3(fcntl, stdio[i], F_DUPFD_CLOEXEC, 3);
            if (source[i] < 0)
                return source[i];
        }
    }
    for (int i = 0; i < 3; i++) {
        result = source[i] == i ? SYS3(fcntl, i, F_SETFD, 0) : SYS3(dup3, source[i], i, 0);
        if (result < 0)
            return result;
    }
    return 0;
}

static int stage1_main(void *argument) {
    struct birth *birth = argument;
    long result = place_stdio(birth->stdio);
    if (result < 0)
        return failed_birth(birth, __NR_dup3, result);
    result = iso_close_others(birth->placed, birth->placed_count, 0);
    if (result < 0)
        return failed_birth(birth, __NR_close_range, result);
    for (uint32_t i = 0; i < birth->inherited_count; i++) {
        result = SYS3(fcntl, birth->inherited[i], F_SETFD, 0);
        if (result < 0)
            return failed_birth(birth, __NR_fcntl, result);
    }
    if (birth->image >= 0)
        SYS5(execveat, birth->image, "", birth->argv, birth->envp, AT_EMPTY_PATH);
    /* no sealed image, or a kernel policy against executing memory files */
    return failed_birth(birth, __NR_execve, SYS3(execve, birth->path, birth->argv, birth->envp));
}

/* By the launcher until stage 1 clones, SIGTERM is not blocked: it ends a process that waits for a dead file server too. */
static void end_stage1(struct birth *birth) {
    int32_t fd = __atomic_load_n(&birth->stage1_fd, __ATOMIC_SEQ_CST);
    if (fd >= 0)
        SYS4(pidfd_send_signal, fd, ISO_SIGTERM, 0, 0);
}

static void watch_stage1(struct birth *birth, int32_t fd) {
    struct iso_pollfd polled[2] = {{fd, ISO_POLLIN, 0}, {birth->host, ISO_POLLIN, 0}};
    __atomic_store_n(&birth->stage1_fd, fd, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&birth->cancelled, __ATOMIC_SEQ_CST))
        end_stage1(birth);
    while (SYS5(ppoll, polled, 2, 0, 0, 0) == -EINTR)
        ;
    if (!polled[0].revents)
        end_stage1(birth);
}

/* Whoever has become a child of this process; -ENOENT: that cannot be told. */
static long kill_children(const struct birth *birth) {
    struct iso_children children;
    const char *number;
    long result = iso_children_read(&children, birth->proc, "thread-self/children"), process;
    while ((number = iso_children_next(&children))) {
        process = SYS4(openat, birth->proc, number, O_DIRECTORY | O_CLOEXEC, 0);
        if (process >= 0) {
            SYS4(pidfd_send_signal, process, ISO_SIGKILL, 0, 0);
            SYS1(close, process);
        }
    }
    return result;
}

/* Where stage 1 has ended stage 2, what that leaves comes here, to the nearest subreaper, and must be gone before this is: a
 * process that was being born then, too. */
static void reap(const struct birth *birth, long stage1) {
    int status = 0;
    while (SYS4(wait4, stage1, &status, 0, 0) == -EINTR)
        ;
    while (status != 0 && kill_children(birth) == 0 && SYS4(wait4, -1, 0, __WALL, 0) != -ECHILD)
        ;
}

static int middle_main(void *argument) {
    enum { FLAGS = ISO_CLONE_VM | ISO_CLONE_VFORK | ISO_CLONE_PARENT_SETTID | ISO_CLONE_CHILD_CLEARTID | SIGCHLD };
    enum { CHILD_SUBREAPER = 36 };
    static const struct {
        uint64_t handler, flags, restorer, mask;
    } by_default = {0, 0, 0, 0};
    struct birth *birth = argument;
    long pid, fd;
    /* Where the host ignores it, the kernel would reap stage 1, and its pid could be another's.  The handlers are not shared.
     */
    SYS4(rt_sigaction, ISO_SIGCHLD, &by_default, 0, 8);
    SYS5(prctl, CHILD_SUBREAPER, 1, 0, 0, 0);
    pid = isolib_clone_run(FLAGS, birth->stage1_stack + STACK, &birth->stage1, stage1_main, birth);
    if (pid < 0)
        return failed_birth(birth, __NR_clone, pid);
    fd = SYS2(pidfd_open, pid, 0);
    if (fd >= 0) {
        watch_stage1(birth, (int32_t)fd);
    } else if (!birth->error) {
        failed_birth(birth, __NR_pidfd_open, fd);
        SYS2(kill, pid, ISO_SIGKILL);
    }
    reap(birth, pid);
    return 0;
}

/* Only where the middle process was killed there is something to wait for: stage 1 runs on our stack still. */
static void wait_for_stage1(int32_t *pid) {
    enum { WAIT = 0 };
    int32_t seen;
    while ((seen = __atomic_load_n(pid, __ATOMIC_ACQUIRE)) != 0)
        SYS4(futex, pid, WAIT, seen, 0);
}

/* ---- descriptors ---- */

/* What the child needs beside its standard streams must not have their numbers. */
int isolib_raise_fd(int fd) {
    int higher;
    if (fd < 0 || fd > 2)
        return fd;
    higher = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    close(fd);
    return higher;
}

static int raise_pair(int pair[2]) {
    int error;
    pair[0] = isolib_raise_fd(pair[0]);
    pair[1] = isolib_raise_fd(pair[1]);
    if (pair[0] >= 0 && pair[1] >= 0)
        return 0;
    error = errno;
    isolib_close_fd(&pair[0]);
    isolib_close_fd(&pair[1]);
    errno = error;
    return -1;
}

/* What one launch opens and the parent no longer needs after it. */
struct scratch {
    int32_t child_status;
    int32_t boot;
    int32_t child_stdio[3]; /* ours to close, else -1 */
    int32_t copies[MAX_PLACED];
    uint32_t copy_count;
};

static void close_scratch(struct scratch *scratch) {
    isolib_close_fd(&scratch->child_status);
    isolib_close_fd(&scratch->boot);
    for (int i = 0; i < 3; i++)
        isolib_close_fd(&scratch->child_stdio[i]);
    for (uint32_t i = 0; i < scratch->copy_count; i++)
        isolib_close_fd(&scratch->copies[i]);
}

static int open_stdio(struct isolib_launch *launch, struct scratch *scratch, struct birth *birth, int i) {
    int wanted = launch->stdio[i], pair[2];
    if (wanted == ISOLIB_STDIO_INHERIT && fcntl(i, F_GETFD) < 0)
        wanted = ISOLIB_STDIO_NULL; /* a daemon's closed stream */
    if (wanted == ISOLIB_STDIO_STDOUT) {
        birth->stdio[i] = birth->stdio[1];
    } else if (wanted == ISOLIB_STDIO_INHERIT) {
        birth->stdio[i] = i;
    } else if (wanted >= 0) {
        birth->stdio[i] = wanted;
    } else if (wanted == ISOLIB_STDIO_NULL) {
        launch->call = __NR_openat;
        scratch->child_stdio[i] = isolib_raise_fd(open("/dev/null", O_RDWR | O_CLOEXEC));
        birth->stdio[i] = scratch->child_stdio[i];
    } else {
        launch->call = __NR_pipe2;
        if (pipe2(pair, O_CLOEXEC) < 0)
            return -1;
        if (raise_pair(pair) < 0)
            return -1;
        if (launch->stream_owner[0] != ISOLIB_NOBODY) { /* or /dev/stdout could not be opened there */
            launch->call = __NR_fchown;
            if (fchown(pair[0], launch->stream_owner[0], launch->stream_owner[1]) < 0) {
                close(pair[0]);
                close(pair[1]);
                return -1;
            }
        }
        launch->pipes[i] = i == 0 ? pair[1] : pair[0];
        scratch->child_stdio[i] = i == 0 ? pair[0] : pair[1];
        birth->stdio[i] = scratch->child_stdio[i];
    }
    return birth->stdio[i] < 0 ? -1 : 0;
}

static int open_status(struct isolib_launch *launch, struct scratch *scratch) {
    int pair[2], on = 1;
    launch->call = __NR_socketpair;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0 || raise_pair(pair) < 0)
        return -1;
    launch->status = pair[0];
    scratch->child_status = pair[1];
    launch->call = __NR_setsockopt;
    return setsockopt(launch->status, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on));
}

static int write_boot(struct isolib_launch *launch, struct scratch *scratch, const int32_t *slots, const int32_t *keep) {
    uint32_t lists = (uint32_t)(4 * (launch->slot_count + launch->keep_count + 3));
    uint32_t padding = (8 - (lists + sizeof(struct isolib_boot)) % 8) % 8;
    static const char zeros[8] = {0};
    struct isolib_boot boot = {ISOLIB_PLAN_MAGIC,      launch->slot_count,
                               launch->keep_count + 3, (uint32_t)sizeof(boot) + lists + padding,
                               launch->plan_size,      scratch->child_status,
                               launch->host,           launch->proc,
                               launch->quiet,          0};
    struct iovec parts[5] = {{&boot, sizeof(boot)},
                             {(void *)(uintptr_t)slots, 4UL * launch->slot_count},
                             {(void *)(uintptr_t)keep, 4UL * (launch->keep_count + 3)},
                             {(void *)(uintptr_t)zeros, padding},
                             {(void *)(uintptr_t)launch->plan, launch->plan_size}};
    ssize_t whole = (ssize_t)(boot.plan_offset + launch->plan_size);
    ssize_t written;
    launch->call = __NR_memfd_create;
    scratch->boot = isolib_raise_fd(memfd_create("isolib-plan", MFD_CLOEXEC));
    if (scratch->boot < 0)
        return -1;
    launch->call = __NR_writev;
    written = writev(scratch->boot, parts, 5);
    if (written == whole)
        return 0;
    if (written >= 0 && write(scratch->boot, zeros, 1) >= 0) /* what stopped it says why when it is asked again */
        errno = ENOSPC;
    return -1;
}

static int by_number(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static void inherit(struct birth *birth, int32_t fd) {
    if (fd >= 0)
        birth->inherited[birth->inherited_count++] = fd;
}

static int collect_descriptors(struct isolib_launch *launch, struct scratch *scratch, struct birth *birth, int32_t *slots,
                               int32_t *keep) {
    launch->call = __NR_fcntl;
    for (uint32_t i = 0; i < launch->slot_count; i++) {
        slots[i] = launch->slots[i];
        if (slots[i] >= 0 && slots[i] < 3) {
            slots[i] = fcntl(slots[i], F_DUPFD_CLOEXEC, 3);
            if (slots[i] < 0)
                return -1;
            scratch->copies[scratch->copy_count++] = slots[i];
        }
        inherit(birth, slots[i]);
    }
    for (int32_t i = 0; i < 3; i++)
        keep[i] = i;
    for (uint32_t i = 0; i < launch->keep_count; i++) {
        keep[3 + i] = launch->keep[i];
        inherit(birth, launch->keep[i]);
    }
    qsort(keep, launch->keep_count + 3, sizeof(*keep), by_number);
    return 0;
}

static void arrange_descriptors(const struct isolib_launch *launch, const struct scratch *scratch, struct birth *birth) {
    inherit(birth, scratch->boot);
    inherit(birth, scratch->child_status);
    inherit(birth, launch->host);
    inherit(birth, launch->proc);
    memcpy(birth->placed, birth->inherited, sizeof(int32_t) * birth->inherited_count);
    birth->placed_count = birth->inherited_count;
    for (int32_t i = 0; i < 3; i++)
        birth->placed[birth->placed_count++] = i;
    if (launch->launcher >= 0)
        birth->placed[birth->placed_count++] = launch->launcher; /* close-on-exec stays set */
    qsort(birth->placed, birth->placed_count, sizeof(int32_t), by_number);
}

/* What the two processes and this one share, until the two are gone. */
struct isolib_nursery {
    char stacks[2 * STACK] __attribute__((aligned(16)));
    long middle; /* pid */
    struct scratch scratch;
    struct birth birth;
};

static struct isolib_nursery *new_nursery(const struct isolib_launch *launch) {
    struct isolib_nursery *nursery = aligned_alloc(16, (sizeof(*nursery) + 15) / 16 * 16);
    if (!nursery)
        return NULL;
    memset(&nursery->birth, 0, sizeof(nursery->birth));
    nursery->scratch.child_status = nursery->scratch.boot = -1;
    for (int i = 0; i < 3; i++)
        nursery->scratch.child_stdio[i] = -1;
    nursery->scratch.copy_count = 0;
    nursery->birth.image = launch->launcher;
    nursery->birth.path = launch->launcher_path;
    nursery->birth.host = launch->host;
    nursery->birth.proc = launch->proc;
    nursery->birth.stage1_fd = -1;
    nursery->birth.stage1_stack = nursery->stacks + STACK;
    return nursery;
}

static void free_nursery(struct isolib_nursery *nursery) {
    close_scratch(&nursery->scratch);
    isolib_close_fd(&nursery->birth.stage1_fd);
    free(nursery);
}

static int prepare(struct isolib_launch *launch, struct scratch *scratch, struct birth *birth) {
    int32_t slots[ISOLIB_MAX_SLOTS], keep[ISOLIB_MAX_KEEP + 3];
    if (launch->slot_count > ISOLIB_MAX_SLOTS || launch->keep_count > ISOLIB_MAX_KEEP - 3) {
        errno = E2BIG;
        return -1;
    }
    for (int i = 0; i < 3; i++)
        if (open_stdio(launch, scratch, birth, i) < 0)
            return -1;
    if (open_status(launch, scratch) < 0 || collect_descriptors(launch, scratch, birth, slots, keep) < 0 ||
        write_boot(launch, scratch, slots, keep) < 0)
        return -1;
    arrange_descriptors(launch, scratch, birth);
    snprintf(birth->number, sizeof(birth->number), "%d", scratch->boot);
    birth->argv[0] = "isolib-init";
    birth->argv[1] = birth->number;
    return 0;
}

static long give_birth(struct isolib_nursery *nursery) {
    enum { FLAGS = ISO_CLONE_VM | ISO_CLONE_FS | ISO_CLONE_FILES };
    sigset_t all, before;
    long pid;
    sigfillset(&all);
    /* A handler of the host must not run in a process that shares its memory. */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid = isolib_clone_run(FLAGS, nursery->stacks + STACK, NULL, middle_main, &nursery->birth);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return pid;
}

int isolib_birth_begin(struct isolib_launch *launch) {
    struct isolib_nursery *nursery = new_nursery(launch);
    int error = ENOMEM;
    launch->call = __NR_mmap;
    if (nursery && prepare(launch, &nursery->scratch, &nursery->birth) == 0) {
        launch->call = __NR_clone;
        nursery->middle = give_birth(nursery);
        if (nursery->middle > 0) {
            launch->nursery = nursery;
            launch->call = 0;
            return 0;
        }
        error = (int)-nursery->middle;
    } else if (nursery) {
        error = errno;
    }
    if (nursery)
        free_nursery(nursery);
    return error;
}

int isolib_birth_settle(struct isolib_launch *launch) {
    struct isolib_nursery *nursery = launch->nursery;
    int error;
    if (!nursery)
        return 0;
    if (SYS4(wait4, nursery->middle, 0, __WALL, 0) == -EINTR)
        return EINTR;
    wait_for_stage1(&nursery->birth.stage1);
    error = nursery->birth.error;
    launch->call = nursery->birth.call;
    launch->nursery = NULL;
    free_nursery(nursery);
    return error;
}

void isolib_birth_cancel(struct isolib_launch *launch) {
    struct isolib_nursery *nursery = launch->nursery;
    if (!nursery)
        return;
    __atomic_store_n(&nursery->birth.cancelled, 1, __ATOMIC_SEQ_CST);
    end_stage1(&nursery->birth);
}
