/*
 * The launcher: what runs between the host program's clone and the command's exec.
 *
 * It is a program of its own, so that neither the host's memory nor its locks exist here, and it uses no libc, so that it is
 * small enough to be executed for every process that isolib starts.
 *
 *   stage 1   has the host's credentials; joins namespaces, prepares mounts that need the host's rights, makes stage 2 with
 *             CLONE_PARENT, and ends it when the host is gone or says so, until stage 2 supervises and heeds that itself
 *   stage 2   is inside the new namespaces; builds the file tree, starts the command and stays as its supervisor
 *   command   shares stage 2's memory until its exec, so its errors need no pipe; drops its privileges last
 *
 * Everything it does is a step of a plan that the host wrote; plan_check() has seen the whole of it before the first step runs.
 */
#include "launcher.h"

ISOLIB_DEFINE_CLONE;

enum { COMMAND_STACK = 32768 };
static char command_stack[COMMAND_STACK] __attribute__((aligned(16)));
static struct launcher launcher;
volatile int32_t iso_failed_call;

void leave(int status) {
    for (;;)
        SYS1(exit_group, status);
}

long send_message(struct launcher *l, const struct isolib_message *message, int fd, int fd2) {
    enum { NO_SIGNAL = 0x4000 };
    struct iso_iovec part = {message, sizeof(*message)};
    struct iso_msghdr header = {0, 0, &part, 1, 0, 0, 0};
    struct iso_fd_control control = {0, ISO_SOL_SOCKET, ISO_SCM_RIGHTS, {fd, fd2}};
    if (fd >= 0) {
        header.control = &control;
        control.size = offsetof(struct iso_fd_control, fds) + (fd2 >= 0 ? 8 : 4);
        header.control_size = sizeof(control); /* both cases round up to the same */
    }
    return SYS3(sendmsg, l->status, &header, NO_SIGNAL);
}

static void report(struct launcher *l, uint32_t step, long error) {
    struct isolib_message message = {0};
    message.type = ISOLIB_FAILED;
    message.step = (int32_t)step;
    message.error = (int32_t)-error;
    message.value = l->child;
    message.stage = l->stage;
    message.call = iso_failed_call;
    send_message(l, &message, -1, -1);
}

/* Stage 2; what that leaves is ended by the middle process, which adopts it (birth.c). */
static void end_child(const struct launcher *l) {
    if (l->command_pidfd >= 0)
        SYS4(pidfd_send_signal, l->command_pidfd, ISO_SIGKILL, 0, 0);
}

void fail(struct launcher *l, long error) {
    if (l->stage == ISOLIB_STAGE_COMMAND) { /* the supervisor, which shares this memory, reports */
        l->failed_at = l->at;
        l->failed = (int32_t)-error;
        if (l->shared) {
            l->shared[1] = (int32_t)l->at;
            l->shared[2] = iso_failed_call;
            l->shared[0] = l->failed;
        }
    } else {
        report(l, l->at, error);
        if (l->stage == ISOLIB_STAGE_FIRST)
            end_child(l);
    }
    leave(127);
}

/* Ignored signals survive an exec, and Python ignores some: the command gets every disposition at its default. */
static void reset_signals(void) {
    enum { SIGNALS = 64, STOP = 19 };
    struct {
        uint64_t handler, flags, restorer, mask;
    } by_default = {0, 0, 0, 0};
    for (int signal = 1; signal <= SIGNALS; signal++)
        if (signal != ISO_SIGKILL && signal != STOP)
            SYS4(rt_sigaction, signal, &by_default, 0, 8);
}

/* In stage 1, until it clones, SIGTERM ends whatever step it is at; the host's side of the launch sends it. */
static long block_terminate(int how) {
    uint64_t terminate = 1 << (ISO_SIGTERM - 1);
    return SYS4(rt_sigprocmask, how, &terminate, 0, 8);
}

/* The pipe stays open until this process supervises: stage 1 waits for that. */
static void wait_for_go(struct launcher *l) {
    char byte;
    long got;
    do
        got = SYS3(read, l->go, &byte, 1);
    while (got == -EINTR);
    if (got != 1)
        leave(127); /* stage 1 failed, and has said why */
}

static long clone_inside(const struct launcher *l, const struct isolib_step *step, int32_t *pidfd) {
    struct {
        uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
    } args = {0};
    int cgroup = step->fd < 0 ? -1 : slot(l, step->fd); /* the host may have left the slot empty */
    long pid;
    args.flags = step->flags | ISO_CLONE_PARENT | ISO_CLONE_PIDFD;
    args.pidfd = (uint64_t)(uintptr_t)pidfd;
    if (cgroup >= 0) {
        args.flags |= ISO_CLONE_INTO_CGROUP;
        args.cgroup = (uint64_t)cgroup;
    }
    pid = SYS2(clone3, &args, sizeof(args));
    /* Seccomp filters of container engines answer ENOSYS to clone3, because they cannot look into its arguments. */
    if (pid == -ENOSYS && cgroup < 0)
        pid = SYS5(clone, step->flags | ISO_CLONE_PARENT | ISO_CLONE_PIDFD, 0, pidfd, 0, 0);
    return pid;
}

static void step_clone(struct launcher *l, const struct isolib_step *step) {
    struct isolib_message message = {0};
    int32_t go[2] = {-1, -1};
    int32_t pidfd = -1;
    long result = block_terminate(0);
    if (result == 0)
        result = SYS2(pipe2, go, ISO_O_CLOEXEC);
    if (result < 0)
        fail(l, result);
    result = clone_inside(l, step, &pidfd);
    if (result < 0)
        fail(l, result);
    if (result == 0) {
        l->stage = ISOLIB_STAGE_INSIDE;
        while (l->steps[l->at].kind != STEP_GO)
            l->at++;
        SYS1(close, go[1]);
        l->go = go[0];
        wait_for_go(l);
        return;
    }
    SYS1(close, go[0]);
    l->child = (int32_t)result;
    l->command_pidfd = pidfd;
    l->go = go[1];
    /* At once, so that the host can wait for its end and reap it, whatever fails from here on. */
    message.type = ISOLIB_BORN;
    message.value = l->child;
    result = send_message(l, &message, pidfd, -1);
    if (result < 0)
        fail(l, result);
}

/* Out of the host's process group, for a signal that ends the whole group must leave one that ends stage 2. */
static void step_go(struct launcher *l) {
    struct iso_pollfd polled[3] = {{l->go, 0, 0}, {l->status, ISO_POLLIN, 0}, {l->host, ISO_POLLIN, 0}};
    long result = SYS2(setpgid, 0, 0);
    if (result == 0)
        result = SYS3(write, l->go, "", 1);
    if (result == -EPIPE) /* it was killed already: the host learns that from the end of the socket, as a moment later */
        leave(127);
    if (result < 0)
        fail(l, result);
    do
        result = SYS5(ppoll, polled, 3, 0, 0, 0);
    while (result == -EINTR);
    if (!polled[0].revents) { /* its end of the pipe is open still, and the host is gone, or has said so */
        end_child(l);
        leave(127);
    }
    leave(0);
}

static long write_map(struct launcher *l, const struct isolib_step *step) {
    char path[64], digits[DECIMAL];
    const char *number = decimal(digits, l->child), *name = text_of(l, step->text);
    size_t at = 0;
    long fd, result;
    if (length(name) > 40)
        return -ENAMETOOLONG;
    while (*number)
        path[at++] = *number++;
    path[at++] = '/';
    do
        path[at++] = *name;
    while (*name++);
    fd = SYS4(openat, l->proc, path, ISO_O_WRONLY | ISO_O_CLOEXEC | ISO_O_NOFOLLOW, 0);
    if (fd < 0)
        return fd;
    result = SYS3(write, fd, text_of(l, step->text2), step->size2);
    SYS1(close, fd);
    return result < 0 ? result : (result == (long)step->size2 ? 0 : -EIO);
}

static void run(struct launcher *l);

static int command_main(void *argument) {
    struct launcher *l = argument;
    struct isolib_message message = {0};
    uint64_t none = 0;
    long result;
    l->stage = ISOLIB_STAGE_COMMAND;
    message.type = ISOLIB_COMMAND;
    result = l->quiet ? 0 : send_message(l, &message, -1, -1);
    if (result < 0)
        fail(l, result);
    SYS4(rt_sigprocmask, 2, &none, 0, 8); /* SIG_SETMASK */
    run(l);
    return 127;
}

/* Before 6.3 a process that is about to enter another time namespace may not share memory with one that stays (fork.c). */
static long clone_alone(struct launcher *l) {
    enum { READ_WRITE = 3, SHARED_ANONYMOUS = 0x21 };
    long pid, memory = sys6(__NR_mmap, 0, 4096, READ_WRITE, SHARED_ANONYMOUS, -1, 0);
    if (memory < 0 && memory > -4096)
        return memory;
    l->shared = (volatile int32_t *)memory;
    pid = SYS5(clone, ISO_CLONE_VFORK | ISO_CLONE_PIDFD | ISO_SIGCHLD, 0, &l->command_pidfd, 0, 0);
    if (pid == 0)
        leave(command_main(l));
    l->failed = l->shared[0];
    l->failed_at = (uint32_t)l->shared[1];
    iso_failed_call = l->shared[2];
    return pid;
}

static void step_supervise(struct launcher *l, const struct isolib_step *step) {
    long pid = open_signals(l);
    if (pid < 0)
        fail(l, pid);
    l->at++;
    pid = isolib_clone_run(ISO_CLONE_VM | ISO_CLONE_VFORK | ISO_CLONE_PIDFD | ISO_SIGCHLD, command_stack + COMMAND_STACK,
                           &l->command_pidfd, command_main, l);
    if (pid == -EINVAL)
        pid = clone_alone(l);
    l->stage = ISOLIB_STAGE_INSIDE;
    if (pid < 0) {
        l->at = (uint32_t)(step - l->steps);
        fail(l, pid);
    }
    if (l->failed) {
        l->stage = ISOLIB_STAGE_COMMAND;
        report(l, l->failed_at, -l->failed);
        while (SYS4(wait4, pid, 0, 0, 0) == -EINTR) /* or it would be a zombie of whoever adopts it */
            ;
        leave(127);
    }
    supervise(l, step, (int)pid);
}

static void run(struct launcher *l) {
    for (; l->at < l->step_count; l->at++) {
        const struct isolib_step *step = &l->steps[l->at];
        long result = 0;
        iso_failed_call = 0;
        switch (step->kind) {
        case STEP_CLONE:
            step_clone(l, step);
            break;
        case STEP_MAP:
            result = write_map(l, step);
            break;
        case STEP_MAP_HELPER:
            result = run_map_helper(l, step);
            break;
        case STEP_GO:
            step_go(l);
            break;
        case STEP_SUPERVISE:
            step_supervise(l, step);
            break;
        case STEP_HOLD:
            result = open_signals(l);
            if (result < 0)
                fail(l, result);
            supervise(l, step, -1);
        case STEP_REAP:
            run_reaper(l, step);
        case STEP_EXEC:
            result = run_exec(l, step);
            break;
        default:
            result = run_step(l, step);
        }
        if (result < 0 && -result != step->ignore)
            fail(l, result);
    }
    leave(127);
}

/* Everything was written by this process's own parent, yet is checked: a length that is wrong must not become an access. */
static long read_boot(struct launcher *l, int fd) {
    enum { READ = 1, PRIVATE = 2, END = 2 };
    const struct isolib_boot *boot;
    const struct isolib_plan *plan;
    long size = SYS3(lseek, fd, 0, END), result;
    uint64_t lists;
    if (size < (long)sizeof(*boot) || size > 2L * ISOLIB_MAX_PLAN)
        return -EINVAL;
    result = sys6(__NR_mmap, 0, size, READ, PRIVATE, fd, 0);
    if (result < 0 && result > -4096)
        return result;
    boot = (const struct isolib_boot *)result;
    SYS1(close, fd);
    lists = sizeof(*boot) + 4ULL * boot->slot_count + 4ULL * boot->keep_count;
    if (boot->magic != ISOLIB_PLAN_MAGIC || boot->slot_count > ISOLIB_MAX_SLOTS || boot->keep_count > ISOLIB_MAX_KEEP ||
        boot->plan_offset % 8 || boot->plan_offset < lists || boot->plan_offset > (uint64_t)size ||
        boot->plan_size != (uint64_t)size - boot->plan_offset)
        return -EINVAL;
    plan = (const struct isolib_plan *)((const char *)boot + boot->plan_offset);
    l->status = boot->status;
    l->host = boot->host;
    l->proc = boot->proc;
    l->quiet = boot->quiet;
    result = plan_check((const uint8_t *)plan, boot->plan_size);
    if (result < 0)
        return result;
    if (boot->slot_count > plan->slot_count)
        return -EINVAL;
    l->keep = (const int32_t *)(boot + 1) + boot->slot_count;
    l->keep_count = boot->keep_count;
    l->steps = (const struct isolib_step *)(plan + 1);
    l->step_count = plan->step_count;
    l->text = (const char *)(l->steps + plan->step_count);
    l->slot_count = plan->slot_count;
    l->pty = plan->pty;
    for (uint32_t i = 0; i < plan->slot_count; i++)
        l->slots[i] = i < boot->slot_count ? ((const int32_t *)(boot + 1))[i] : -1;
    return 0;
}

void launcher_main(long *block) {
    const char *number = block[0] == 2 ? (const char *)block[2] : "";
    enum { SET_NAME = 15 };
    int fd = 0;
    long result;
    for (; *number >= '0' && *number <= '9' && fd < 100000000; number++)
        fd = fd * 10 + *number - '0';
#ifdef ISOLIB_HOSTED
    launcher = (struct launcher){0}; /* there it is entered again and again */
#endif
    launcher.status = launcher.go = launcher.signals = launcher.command_pidfd = launcher.umask = -1;
    launcher.stage = ISOLIB_STAGE_FIRST;
    SYS5(prctl, SET_NAME, "isolib-init", 0, 0, 0); /* else a number, or that of the memory file */
    reset_signals();
    block_terminate(1);
    result = read_boot(&launcher, fd);
    if (result < 0) {
        launcher.at = ~0U;
        fail(&launcher, result);
    }
    run(&launcher);
    leave(127);
}

#ifndef ISOLIB_HOSTED
ISOLIB_DEFINE_START(launcher_main);

/* The compiler may call these for copies and initializers. */
void *memset(void *target, int byte, size_t size);
void *memcpy(void *target, const void *source, size_t size);
void *memset(void *target, int byte, size_t size) {
    volatile char *at = target;
    while (size--)
        *at++ = (char)byte;
    return target;
}
void *memcpy(void *target, const void *source, size_t size) {
    volatile char *to = target;
    const char *from = source;
    while (size--)
        *to++ = *from++;
    return target;
}
#endif
