/*
 * The supervisor: PID 1 of a new pid namespace, or a child subreaper where the command shares somebody else's.  It reaps,
 * passes signals on, and ends everything when the command ends, when the host asks, and when the host is gone.
 *
 * The host's life is watched by its pidfd.  A pipe would not do: any process that the host forks keeps its other end open.
 * PR_SET_PDEATHSIG would not do: it fires when the creating thread ends.
 */
#include "launcher.h"

struct supervision {
    struct launcher *l;
    int is_init;
    int command;   /* pid, -1: none */
    int32_t oom;   /* eventfd, -1: none */
    int32_t kills; /* memory.oom_control of the command's own group; -1: whoever is killed, all are */
    int looks;     /* how often it is still looked at */
    int ended;
    int childless; /* wait4 has said that nothing is left */
    int32_t ending;
    int status;
    int64_t deadline_ns; /* 0: none */
};

/* The command's standard streams must not stay open here, or their readers would wait for the whole tree. */
static void close_what_is_not_needed(struct supervision *s) {
    int32_t keep[8];
    uint32_t count = 0;
    insert_sorted(keep, &count, s->l->status);
    insert_sorted(keep, &count, s->l->host);
    insert_sorted(keep, &count, s->l->proc);
    insert_sorted(keep, &count, s->l->command_pidfd);
    insert_sorted(keep, &count, s->l->signals);
    insert_sorted(keep, &count, s->l->go);
    insert_sorted(keep, &count, s->oom);
    insert_sorted(keep, &count, s->kills);
    iso_close_others(keep, count, 0);
    SYS1(close, s->l->go); /* last: to close a file may take long, and stage 1 is watching until now */
}

/* What it keeps is the right to send signals: it runs beside hostile code. */
static void drop_privileges(void) {
    enum { VERSION_3 = 0x20080522, KILL = 1 << 5, NO_NEW_PRIVS = 38 };
    struct {
        uint32_t version;
        int32_t pid;
    } header = {VERSION_3, 0};
    struct {
        uint32_t effective, permitted, inheritable;
    } data[2] = {{KILL, KILL, 0}, {0, 0, 0}};
    if (SYS2(capset, &header, data) < 0) { /* it had fewer */
        data[0].effective = data[0].permitted = 0;
        SYS2(capset, &header, data);
    }
    SYS5(prctl, NO_NEW_PRIVS, 1, 0, 0, 0);
}

static void note_if_command(struct supervision *s, long pid, int status) {
    if (pid == s->command) {
        s->ended = 1;
        s->status = status;
    }
}

/* Returns the pid reaped, 0 when children remain but none has ended, -ECHILD when there is none. */
static long reap_one(struct supervision *s, int options) {
    int status = 0;
    long pid;
    do
        pid = SYS4(wait4, -1, &status, options | ISO_WALL, 0);
    while (pid == -EINTR);
    if (pid > 0)
        note_if_command(s, pid, status);
    s->childless = pid == -ECHILD;
    return pid;
}

enum { DEPTH = 64 };

static void kill_tree(struct supervision *s, const char *number, int depth);

static void kill_listed(struct supervision *s, int directory, const char *file, int depth) {
    struct iso_children children;
    const char *number;
    iso_children_read(&children, directory, file);
    while ((number = iso_children_next(&children)))
        kill_tree(s, number, depth);
}

/* Each thread has a list of the children that it made: /proc/PID/task/TID/children. */
static void kill_children_of(struct supervision *s, long process, int depth) {
    enum { NAME = 19, LENGTH = 16, FILE = 9 }; /* struct linux_dirent64 */
    char entries[1024], path[64];
    long tasks = SYS4(openat, process, "task", ISO_O_DIRECTORY | ISO_O_CLOEXEC, 0), got;
    if (tasks < 0)
        return;
    while ((got = SYS3(getdents64, tasks, entries, sizeof(entries))) > 0) {
        for (long at = 0; at < got; at += *(uint16_t *)(void *)(entries + at + LENGTH)) {
            const char *name = entries + at + NAME;
            size_t size = length(name);
            if (name[0] == '.' || size > sizeof(path) - FILE - 1)
                continue;
            for (size_t i = 0; i < size; i++)
                path[i] = name[i];
            for (size_t i = 0; i <= FILE; i++)
                path[size + i] = "/children"[i];
            kill_listed(s, (int)tasks, path, depth);
        }
    }
    SYS1(close, tasks);
}

/* Stopped first, so that it makes no more children while they are looked at, but for one that is being born.  The descriptor of
 * /proc/PID names the process for pidfd_send_signal, whatever pid namespace numbers it, and no other that gets its number
 * later.
 */
static void kill_tree(struct supervision *s, const char *number, int depth) {
    enum { STOP = 19 };
    long process = SYS4(openat, s->l->proc, number, ISO_O_DIRECTORY | ISO_O_CLOEXEC, 0);
    if (process < 0)
        return;
    SYS4(pidfd_send_signal, process, STOP, 0, 0);
    if (depth < DEPTH)
        kill_children_of(s, process, depth + 1);
    SYS4(pidfd_send_signal, process, ISO_SIGKILL, 0, 0);
    SYS1(close, process);
}

/* One round over the direct children; orphans of theirs that become ours are met in the next round. */
static void kill_children(struct supervision *s) {
    kill_listed(s, s->l->proc, "thread-self/children", 0);
    if (s->command > 0 && !s->ended) /* without a list: CONFIG_PROC_CHILDREN */
        SYS4(pidfd_send_signal, s->l->command_pidfd, ISO_SIGKILL, 0, 0);
}

static void kill_all(struct supervision *s) {
    while (!s->childless) {
        if (s->is_init)
            SYS2(kill, -1, ISO_SIGKILL);
        else
            kill_children(s);
        reap_one(s, 0);
    }
}

static void finish(struct supervision *s) {
    struct isolib_message message = {0};
    int64_t usage[18] = {0};
    kill_all(s);
    SYS2(getrusage, -1, usage); /* of all children waited for */
    message.type = ISOLIB_EXITED;
    message.value = s->status;
    message.ending = s->ending;
    message.cpu_user_us = usage[0] * 1000000 + usage[1];
    message.cpu_system_us = usage[2] * 1000000 + usage[3];
    message.memory_peak = usage[4] * 1024;
    message.blocks_read = usage[11];
    message.blocks_written = usage[12];
    send_message(s->l, &message, -1, -1);
    leave(0);
}

static void on_signal(struct supervision *s) {
    uint32_t info[32]; /* struct signalfd_siginfo: the number comes first */
    if (SYS3(read, s->l->signals, info, sizeof(info)) != sizeof(info))
        return;
    if (info[0] != ISO_SIGCHLD) {
        if (s->command > 0)
            SYS4(pidfd_send_signal, s->l->command_pidfd, info[0], 0, 0);
        return;
    }
    while (reap_one(s, 1) > 0) /* WNOHANG */
        ;
}

/* Returns whether the host wants the end. */
static int on_word(struct supervision *s) {
    enum { DONT_WAIT = 0x40, SET_DUMPABLE = 4 };
    char word = 0;
    long got = sys6(__NR_recvfrom, s->l->status, (long)&word, 1, DONT_WAIT, 0, 0);
    if (got == -EAGAIN || got == -EINTR)
        return 0;
    if (got != 1 || word != ISOLIB_SAY_HIDE)
        return 1;
    SYS5(prctl, SET_DUMPABLE, 0, 0, 0, 0);
    return 0;
}

static long announce(struct supervision *s) {
    struct isolib_message message = {0};
    struct launcher *l = s->l;
    int handed = l->pty >= 0 ? l->slots[l->pty] : -1;
    message.type = s->command > 0 ? ISOLIB_RUNNING : ISOLIB_HOLDING;
    message.value = s->command;
    if (s->command > 0)
        return l->quiet ? 0 : send_message(l, &message, l->command_pidfd, handed);
    return send_message(l, &message, handed, -1);
}

enum { LOOKS = 100, BETWEEN_LOOKS_NS = 1000000 };

static void *time_left(const struct supervision *s, struct iso_timespec *left) {
    int64_t ns = BETWEEN_LOOKS_NS, until;
    if (!s->deadline_ns && !s->looks)
        return 0;
    if (s->deadline_ns) {
        until = s->deadline_ns - now_ns();
        if (!s->looks || until < ns)
            ns = until;
    }
    if (ns < 0)
        ns = 0;
    left->sec = ns / SECOND;
    left->nsec = ns % SECOND;
    return left;
}

/* The last number of memory.oom_control: how many of the group's own processes the kernel has killed. */
static int has_lost_one(const struct supervision *s) {
    char text[128];
    long at = SYS4(pread64, s->kills, text, sizeof(text), 0);
    while (at > 0 && text[at - 1] == '\n')
        at--;
    while (at > 0 && text[at - 1] == '0')
        at--;
    return at > 0 && text[at - 1] != ' ';
}

/* cgroup v1 tells every group below the one that is out of memory, and kills somebody a moment later.  Where the limit is for
 * several commands together, only the one that has lost a process ends.
 */
static void on_oom(struct supervision *s, int is_told) {
    uint64_t times;
    if (is_told) {
        SYS3(read, s->oom, &times, sizeof(times));
        s->looks = LOOKS;
    } else if (s->looks > 0) {
        s->looks--;
    }
    if (s->kills < 0 || has_lost_one(s))
        s->ending = ISOLIB_END_OOM;
    else if (s->deadline_ns && now_ns() >= s->deadline_ns)
        s->ending = ISOLIB_END_DEADLINE;
}

long open_signals(struct launcher *l) {
    uint64_t every_signal = ~0ULL;
    long fd = SYS4(signalfd4, -1, &every_signal, 8, ISO_O_CLOEXEC);
    l->signals = (int32_t)fd;
    return fd < 0 ? fd : 0;
}

void supervise(struct launcher *l, const struct isolib_step *step, int command_pid) {
    struct supervision s = {.l = l,
                            .is_init = (step->flags & ISOLIB_SUPERVISE_INIT) != 0,
                            .command = command_pid,
                            .oom = step->fd < 0 ? -1 : slot(l, step->fd),
                            .kills = step->fd2 < 0 ? -1 : slot(l, step->fd2),
                            .ending = ISOLIB_END_BY_ITSELF,
                            .status = ISO_SIGKILL};
    long result;
    drop_privileges();
    result = announce(&s);
    if (result < 0) { /* the host will never know of it */
        kill_all(&s);
        l->at = (uint32_t)(step - l->steps);
        iso_failed_call = __NR_sendmsg;
        fail(l, result);
    }
    close_what_is_not_needed(&s);
    if (step->value)
        s.deadline_ns = now_ns() + (int64_t)step->value * 1000000;
    while (!s.ended) {
        struct iso_pollfd polled[4] = {
            {l->signals, ISO_POLLIN, 0}, {l->status, ISO_POLLIN, 0}, {l->host, ISO_POLLIN, 0}, {s.oom, ISO_POLLIN, 0}};
        struct iso_timespec left;
        long ready = SYS5(ppoll, polled, 4, time_left(&s, &left), 0, 0);
        if (ready >= 0 && (s.looks || polled[3].revents))
            on_oom(&s, polled[3].revents);
        else if (ready == 0)
            s.ending = ISOLIB_END_DEADLINE;
        if (ready > 0 && ((polled[1].revents && on_word(&s)) || polled[2].revents)) /* asked, closed, or gone */
            s.ending = ISOLIB_END_KILLED;
        if ((ready < 0 && ready != -EINTR) || s.ending != ISOLIB_END_BY_ITSELF)
            break;
        if (polled[0].revents)
            on_signal(&s);
    }
    finish(&s);
    leave(0);
}
