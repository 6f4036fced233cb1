/*
 * The host's side of a launch: one call, made without the GIL, from the plan's bytes to the running command.
 *
 * The first two processes share this one's memory, so they run on stacks of their own, call no libc, and take no lock:
 *
 *   middle   never executes a program, so its exit signal stays 0 and no SIGCHLD tells of it; it waits for stage 1, so that the
 *            host never has a child that wait(2) could find.  (execve sets a task's exit signal back to SIGCHLD: that is why
 *            the launcher itself cannot be the host's child.)
 *   stage 1  places the descriptors and executes the launcher.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
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
    int32_t stage1;        /* its pid; the kernel makes it 0 when stage 1 has executed the launcher, or has ended */
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

static int middle_main(void *argument) {
    struct birth *birth = argument;
    enum { FLAGS = ISO_CLONE_VM | ISO_CLONE_VFORK | ISO_CLONE_PARENT_SETTID | ISO_CLONE_CHILD_CLEARTID | SIGCHLD };
    long pid = isolib_clone_run(FLAGS, birth->stage1_stack + STACK, &birth->stage1, stage1_main, birth);
    if (pid < 0)
        return failed_birth(birth, __NR_clone, pid);
    while (SYS4(wait4, pid, 0, 0, 0) == -EINTR)
        ;
    return 0;
}

/* Only where the middle process was killed there is something to wait for: stage 1 runs on our stack still. */
static void wait_for_stage1(int32_t *pid) {
    enum { WAIT = 0 };
    int32_t seen;
    while ((seen = __atomic_load_n(pid, __ATOMIC_ACQUIRE)) != 0)
        SYS4(futex, pid, WAIT, seen, 0);
}

static int give_birth(struct birth *birth) {
    char stacks[2 * STACK] __attribute__((aligned(16)));
    sigset_t all, before;
    long pid;
    birth->stage1_stack = stacks + STACK;
    sigfillset(&all);
    /* A handler of the host must not run in a process that shares its memory. */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid = isolib_clone_run(ISO_CLONE_VM | ISO_CLONE_VFORK | ISO_CLONE_FS | ISO_CLONE_FILES | ISO_CLONE_SIGHAND, stacks + STACK,
                           NULL, middle_main, birth);
    if (pid > 0)
        while (SYS4(wait4, pid, 0, __WALL, 0) == -EINTR)
            ;
    wait_for_stage1(&birth->stage1);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (pid < 0)
        failed_birth(birth, __NR_clone, pid);
    return birth->error;
}

/* ---- descriptors ---- */

static void close_fd(int32_t *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

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
    close_fd(&pair[0]);
    close_fd(&pair[1]);
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
    close_fd(&scratch->child_status);
    close_fd(&scratch->boot);
    for (int i = 0; i < 3; i++)
        close_fd(&scratch->child_stdio[i]);
    for (uint32_t i = 0; i < scratch->copy_count; i++)
        close_fd(&scratch->copies[i]);
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

/* ---- messages ---- */

union control {
    char bytes[CMSG_SPACE(2 * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
    struct cmsghdr aligned;
};

static ssize_t receive(int status, struct isolib_message *message, int fds[2], pid_t *sender, int *truncated) {
    union control control;
    struct iovec part = {message, sizeof(*message)};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t got = recvmsg(status, &header, MSG_CMSG_CLOEXEC);
    fds[0] = fds[1] = -1;
    *sender = 0;
    *truncated = got >= 0 && (header.msg_flags & MSG_CTRUNC);
    for (struct cmsghdr *c = got >= 0 ? CMSG_FIRSTHDR(&header) : NULL; c; c = CMSG_NXTHDR(&header, c)) {
        if (c->cmsg_level != SOL_SOCKET)
            continue;
        if (c->cmsg_type == SCM_RIGHTS)
            memcpy(fds, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0) > 4 ? 8 : 4);
        if (c->cmsg_type == SCM_CREDENTIALS) {
            struct ucred credentials;
            memcpy(&credentials, CMSG_DATA(c), sizeof(credentials));
            *sender = credentials.pid;
        }
    }
    return got;
}

static void close_results(struct isolib_launch *launch) {
    close_fd(&launch->status);
    close_fd(&launch->pidfd);
    close_fd(&launch->command);
    close_fd(&launch->pty);
    for (int i = 0; i < 3; i++)
        close_fd(&launch->pipes[i]);
}

void isolib_launch_forget(struct isolib_launch *launch) {
    close_results(launch);
}

void isolib_launch_close(struct isolib_launch *launch, int stream) {
    close_fd(stream < 3 ? &launch->pipes[stream] : &launch->pty);
}

static int give_up(struct isolib_launch *launch, int error, int step, int stage) {
    if (launch->pidfd >= 0) { /* roll-back is complete when the supervisor, and with it the namespaces, are gone */
        struct pollfd gone = {launch->pidfd, POLLIN, 0};
        close_fd(&launch->status);
        while (poll(&gone, 1, -1) < 0 && errno == EINTR)
            ;
        isolib_reap(launch->pidfd);
    } else if (launch->supervisor_pid > 0) { /* its descriptor has not come; as a child of ours it has that number still */
        siginfo_t info;
        waitid(P_PID, (id_t)launch->supervisor_pid, &info, WEXITED | __WALL);
    }
    close_results(launch);
    launch->error = error;
    launch->step = step;
    launch->stage = stage;
    return -1;
}

static void heed(struct isolib_launch *launch, const struct isolib_message *message, const int fds[2], pid_t sender) {
    switch (message->type) {
    case ISOLIB_BORN:
        launch->pidfd = fds[0];
        launch->supervisor_pid = message->value;
        break;
    case ISOLIB_COMMAND:
        launch->command_pid = sender;
        break;
    case ISOLIB_RUNNING:
        launch->command = fds[0];
        launch->pty = fds[1];
        launch->running = 1;
        break;
    case ISOLIB_HOLDING:
        launch->pty = fds[0];
        launch->running = 1;
        break;
    case ISOLIB_EXITED:
        launch->exit = *message;
        launch->has_exit = 1;
        break;
    default:
        if (launch->error) /* the first is told */
            break;
        launch->error = message->type == ISOLIB_FAILED ? message->error : EPROTO;
        launch->step = message->step;
        launch->stage = message->stage;
        launch->call = message->call;
        if (message->stage == ISOLIB_STAGE_FIRST) /* it may be all that is ever told of stage 2 */
            launch->supervisor_pid = message->value;
    }
}

static void fail_here(struct isolib_launch *launch, int error, int stage) {
    launch->error = error;
    launch->step = -1;
    launch->stage = stage;
    launch->call = stage == ISOLIB_STAGE_HOST ? __NR_recvmsg : 0;
}

/* Stage 1 and stage 2 run side by side, so that their messages come in any order: both must have been heard.  After a failure
 * the end of the socket is waited for, which comes when the last of ours is gone. */
int isolib_launch_wait(struct isolib_launch *launch) {
    while (launch->pidfd < 0 || !(launch->running || launch->quiet) || launch->error) {
        struct isolib_message message;
        int fds[2];
        pid_t sender;
        int truncated;
        ssize_t got = receive(launch->status, &message, fds, &sender, &truncated);
        if (got < 0 && errno == EINTR)
            return 1;
        if (got == (ssize_t)sizeof(message)) {
            heed(launch, &message, fds, sender);
        } else if (got < 0 && !launch->error) { /* the end is listened for all the same */
            fail_here(launch, errno, ISOLIB_STAGE_HOST);
        } else {
            if (!launch->error) /* it was killed */
                fail_here(launch, ECHILD, ISOLIB_STAGE_INSIDE);
            return give_up(launch, launch->error, launch->step, launch->stage);
        }
        if (truncated && !launch->error) /* this process could not take the descriptors: it has as many as it may */
            fail_here(launch, EMFILE, ISOLIB_STAGE_HOST);
        if (launch->error) /* whoever still listens, let him end */
            isolib_say(launch->status, ISOLIB_SAY_END);
    }
    return 0;
}

void isolib_launch_abort(struct isolib_launch *launch) {
    if (launch->status < 0)
        return;
    isolib_say(launch->status, ISOLIB_SAY_END);
    launch->error = EINTR;
    while (isolib_launch_wait(launch) == 1)
        ;
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
    return 0;
}

/* A plan may rest on where this process is and on what stands in "/": looking costs two system calls, planning anew far more.
 */
static int is_stale(const struct isolib_launch *launch) {
    char where[4096];
    struct stat root;
    if (launch->premise_cwd && (!getcwd(where, sizeof(where)) || strcmp(where, launch->premise_cwd) != 0))
        return 1;
    if (!launch->premise_root_ns)
        return 0;
    return stat("/", &root) < 0 || root.st_mtim.tv_sec * 1000000000LL + root.st_mtim.tv_nsec != launch->premise_root_ns;
}

int isolib_launch(struct isolib_launch *launch) {
    struct scratch scratch = {.child_status = -1, .boot = -1, .child_stdio = {-1, -1, -1}};
    struct birth birth = {.image = launch->launcher, .path = launch->launcher_path};
    char number[16];
    int error;
    launch->status = launch->pidfd = launch->command = launch->pty = -1;
    launch->pipes[0] = launch->pipes[1] = launch->pipes[2] = -1;
    launch->supervisor_pid = launch->command_pid = launch->running = launch->error = launch->has_exit = launch->call = 0;
    launch->started_ns = isolib_monotonic_ns();
    error = is_stale(launch) ? ESTALE : prepare(launch, &scratch, &birth) < 0 ? errno : 0;
    if (!error) {
        snprintf(number, sizeof(number), "%d", scratch.boot);
        birth.argv[0] = "isolib-init";
        birth.argv[1] = number;
        error = give_birth(&birth);
        launch->call = birth.call;
    }
    close_scratch(&scratch);
    if (error)
        return give_up(launch, error, -1, ISOLIB_STAGE_HOST);
    return isolib_launch_wait(launch);
}

int isolib_run(struct isolib_launch *launch, struct isolib_pump *pump, int64_t timeout_ns, int32_t *pumped) {
    int result;
    launch->quiet = 1;
    result = isolib_launch(launch);
    if (result != 0)
        return result;
    isolib_pump_attach(pump, launch);
    *pumped = isolib_pump_run(pump, ISOLIB_UNTIL_EXIT | ISOLIB_UNTIL_STREAMS, timeout_ns);
    if (*pumped != ISOLIB_PUMP_DONE)
        return 2;
    if (pump->has_failure) {
        static const int none[2] = {-1, -1};
        heed(launch, &pump->failure, none, 0);
    }
    close_results(launch);
    return pump->has_failure ? -1 : 0;
}
