/*
 * One group of processes, of version 1 or 2, that the reaper ends and removes: through the descriptor of its parent directory,
 * never over a link, a mount or a name with a slash, and never waiting without a limit.
 */
#include "reap.h"

enum {
    SLICE = SECOND / 50,   /* for one group, until it is the next one's turn */
    PAUSE = SECOND / 1000, /* where no event tells */
    DEPTH = 64,            /* of the first round; what lies deeper is ended when it is to be removed */
    BATCH = 64             /* processes of one group that are looked at together */
};

int wait_for(int fd, int events, int64_t until) {
    struct iso_pollfd polled = {fd, (int16_t)events, 0};
    int64_t left = until - now_ns();
    struct iso_timespec limit = {0, left < 0 ? 0 : left};
    return SYS5(ppoll, &polled, 1, &limit, 0, 0) > 0;
}

static long open_group(int directory, const char *name) {
    enum { NO_XDEV = 1, NO_SYMLINKS = 4, BENEATH = 8 };
    struct iso_open_how how = {ISO_O_DIRECTORY | ISO_O_NOFOLLOW | ISO_O_CLOEXEC, 0, NO_XDEV | NO_SYMLINKS | BENEATH};
    return SYS4(openat2, directory, name, &how, sizeof(how));
}

static long write_word(int group, const char *file, const char *word) {
    long fd = SYS4(openat, group, file, ISO_O_WRONLY | ISO_O_NOFOLLOW | ISO_O_CLOEXEC, 0), result;
    if (fd < 0)
        return fd;
    result = SYS3(write, fd, word, length(word));
    SYS1(close, fd);
    return result < 0 ? result : 0;
}

/* The numbers in cgroup.procs, one after the other. */
struct members {
    long fd;
    long size, at;
    char bytes[512];
};

static int next_byte(struct members *m) {
    if (m->at == m->size) {
        m->at = 0;
        m->size = SYS3(read, m->fd, m->bytes, sizeof(m->bytes));
        if (m->size <= 0) {
            m->size = 0;
            return -1;
        }
    }
    return m->bytes[m->at++];
}

/* Returns 0 at the end.  What is 0 in the file is in another pid namespace, and cannot be signalled from here. */
static int32_t next_member(struct members *m) {
    int32_t pid = 0;
    int byte;
    while ((byte = next_byte(m)) >= 0) {
        if (byte >= '0' && byte <= '9')
            pid = pid < 100000000 ? pid * 10 + byte - '0' : pid;
        else if (pid)
            return pid;
    }
    return pid;
}

/* Opened anew each time: in v1 the list of an open file is up to a second old. */
static void open_members(struct members *m, int group) {
    m->fd = SYS4(openat, group, "cgroup.procs", ISO_O_NOFOLLOW | ISO_O_CLOEXEC, 0);
    m->size = m->at = 0;
}

static void close_members(const struct members *m) {
    if (m->fd >= 0)
        SYS1(close, m->fd);
}

/* A number that was read may be another process's by now.  A process that is open, and whose number is listed after that, is a
 * member, or has ended. */
static void end_batch(int group, const int32_t *pids, const int32_t *processes, int count) {
    struct members again;
    int32_t pid;
    open_members(&again, group);
    while ((pid = next_member(&again)))
        for (int i = 0; i < count; i++)
            if (pids[i] == pid && processes[i] >= 0)
                SYS4(pidfd_send_signal, processes[i], ISO_SIGKILL, 0, 0);
    close_members(&again);
}

/* Ends the processes of a group, but not of those below.  Returns one of them, open, or -1. */
static int32_t end_members(int group) {
    int32_t pids[BATCH], processes[BATCH], one = -1, pid, self = (int32_t)SYS0(getpid);
    struct members listed;
    int count;
    open_members(&listed, group);
    do {
        for (count = 0; count < BATCH && listed.fd >= 0 && (pid = next_member(&listed)) != 0;) {
            if (pid == self)
                continue;
            pids[count] = pid;
            processes[count++] = (int32_t)SYS2(pidfd_open, pid, 0);
        }
        if (count)
            end_batch(group, pids, processes, count);
        for (int i = 0; i < count; i++) {
            if (one < 0)
                one = processes[i];
            else if (processes[i] >= 0)
                SYS1(close, processes[i]);
        }
    } while (count == BATCH);
    close_members(&listed);
    return one;
}

/* The next directory in a directory that is being read; "" at the end. */
struct listing {
    long size, at;
    char entries[1024];
};

static const char *next_directory(struct listing *list, int directory) {
    enum { LENGTH = 16, TYPE = 18, NAME = 19, DIRECTORY = 4 }; /* struct linux_dirent64 */
    for (;;) {
        const char *entry = list->entries + list->at;
        if (list->at >= list->size) {
            list->at = 0;
            list->size = SYS3(getdents64, directory, list->entries, sizeof(list->entries));
            if (list->size <= 0)
                return "";
            continue;
        }
        list->at += *(const uint16_t *)(const void *)(entry + LENGTH);
        if (entry[TYPE] == DIRECTORY && !is_dots(entry + NAME))
            return entry + NAME;
    }
}

enum doing { END, THAW };

/* A group and those below it.  In v1 a process that is frozen does not die, and a group below may be frozen by itself. */
static void each_below(int group, enum doing what, int depth) {
    struct listing list = {0};
    const char *name;
    if (what == THAW) {
        write_word(group, "freezer.state", "THAWED");
    } else {
        int32_t process = end_members(group);
        if (process >= 0)
            SYS1(close, process);
    }
    if (depth == DEPTH)
        return;
    SYS3(lseek, group, 0, 0); /* it may have been read before */
    while (*(name = next_directory(&list, group))) {
        long below = open_group(group, name);
        if (below < 0)
            continue;
        each_below((int)below, what, depth + 1);
        SYS1(close, below);
    }
}

/* Where the kernel does not end a whole group by itself, it is frozen meanwhile, that what forks all the time cannot outrun
 * this. */
void end_group(const struct directory *base, const char *name) {
    long group = open_group(base->fd, name);
    if (group < 0)
        return;
    if (base->version == V1) {
        write_word((int)group, "freezer.state", "FROZEN");
        each_below((int)group, END, 0);
        each_below((int)group, THAW, 0);
    } else if (write_word((int)group, "cgroup.kill", "1") < 0) { /* before 5.14 */
        write_word((int)group, "cgroup.freeze", "1");
        each_below((int)group, END, 0);
        write_word((int)group, "cgroup.freeze", "0");
    }
    SYS1(close, group);
}

static int is_populated(long events) {
    char text[128];
    long size = SYS3(read, events, text, sizeof(text) - 1);
    static const char word[] = "populated 1";
    for (long at = 0; at + (long)sizeof(word) - 1 <= size; at++) {
        size_t same = 0;
        while (word[same] && text[at + (long)same] == word[same])
            same++;
        if (!word[same])
            return 1;
    }
    return 0;
}

/* Ends what a group without groups below still holds, and waits for that; returns whether there was anything. */
static int clear(int version, int group, int64_t until) {
    int32_t process = -1;
    int busy = 0;
    if (version == V1 || write_word(group, "cgroup.kill", "1") < 0)
        process = end_members(group);
    if (version == V2) {
        long events = SYS4(openat, group, "cgroup.events", ISO_O_NOFOLLOW | ISO_O_CLOEXEC, 0);
        busy = events >= 0 && is_populated(events);
        if (busy)
            wait_for((int)events, ISO_POLLPRI, until);
        if (events >= 0)
            SYS1(close, events);
    } else if (process >= 0) {
        busy = wait_for(process, ISO_POLLIN, until);
    }
    if (process >= 0)
        SYS1(close, process);
    return busy;
}

/* Removes the groups below one, the deepest first, and clears it.  The descriptor is closed.  On the way up there is no way out
 * of the group: each step up is one that has gone down. */
static int clear_tree(int version, long group, int64_t until) {
    int depth = 0, busy = 0;
    while (now_ns() < until) {
        struct listing list = {0};
        const char *name;
        long next, result = 0;
        SYS3(lseek, group, 0, 0);
        name = next_directory(&list, (int)group);
        if (*name) {
            result = SYS3(unlinkat, group, name, ISO_AT_REMOVEDIR);
            busy |= result == 0;
            next = result == -EBUSY ? open_group((int)group, name) : -1;
            if (next < 0) {
                if (result == 0 || result == -EBUSY || result == -ENOENT)
                    continue;
                break;
            }
            depth++;
        } else {
            busy |= clear(version, (int)group, until);
            if (depth-- == 0)
                break;
            next = SYS4(openat, group, "..", ISO_O_DIRECTORY | ISO_O_CLOEXEC, 0);
            if (next < 0)
                break;
        }
        SYS1(close, group);
        group = next;
    }
    SYS1(close, group);
    return busy;
}

int remove_group(const struct directory *base, const char *name, int64_t deadline_ns) {
    int64_t until = now_ns() + SLICE;
    if (until > deadline_ns)
        until = deadline_ns;
    for (;;) {
        long result = SYS3(unlinkat, base->fd, name, ISO_AT_REMOVEDIR), group;
        if (result != -EBUSY)
            return 0;
        if (now_ns() >= until)
            return 1;
        group = open_group(base->fd, name);
        if (group < 0)
            return 0;
        if (!clear_tree(base->version, group, until)) {
            int64_t soon = now_ns() + PAUSE; /* v1 refuses for a moment after the last process has ended */
            wait_for(-1, 0, soon < until ? soon : until);
        }
    }
}
