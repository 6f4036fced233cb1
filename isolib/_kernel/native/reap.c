/*
 * The reaper: it sleeps beside the host, and when that is gone it removes what no descriptor can own, by the table that the
 * host has left in shared memory.  Whatever the host did last, be it half of an entry, is what the table holds then.
 *
 * Names are looked up in directories that the host has sent.  What it sent before it died lies in the socket's queue, which is
 * read before anything else.  Everything is ended first, of all entries, then waited for and removed.  What cannot be removed
 * for a moment (processes that are dying, or being born into it) is tried again until there is no more time.
 *
 * No message and no file is waited for without a limit: nobody is left who could end this process.
 */
#include "launcher.h"

enum {
    SECOND = 1000000000,
    PATIENCE = 10,         /* seconds for everything */
    SLICE = SECOND / 50,   /* for one group, until it is the next one's turn */
    PAUSE = SECOND / 1000, /* where no event tells */
    DEPTH = 64,            /* of the first round; what lies deeper is ended when it is to be removed */
    BATCH = 64,            /* processes of one group that are looked at together */
    DONE_BYTES = ISOLIB_TABLE_ENTRIES / 8
};
enum { V1 = 1, V2 = 2 };

struct directory {
    int32_t fd; /* -1: none */
    int32_t version;
};

struct reaping {
    const struct launcher *l;
    struct isolib_table *table;
    int64_t deadline_ns;
    struct directory bases[ISOLIB_TABLE_BASES];
    uint8_t done[DONE_BYTES];
};

/* As in linux/futex.h: what the kernel marks when this process ends, however it does. */
struct robust_list {
    void *next;
    long offset;
    void *pending;
};

static struct reaping reaping;
static struct robust_list robust;

static int64_t now_ns(void) {
    struct iso_timespec now = {0, 0};
    SYS2(clock_gettime, 1, &now); /* CLOCK_MONOTONIC */
    return now.sec * SECOND + now.nsec;
}

/* Returns whether the event came. */
static int wait_for(int fd, int events, int64_t until) {
    struct iso_pollfd polled = {fd, (int16_t)events, 0};
    int64_t left = until - now_ns();
    struct iso_timespec limit = {0, left < 0 ? 0 : left}; /* a slice is less than a second */
    return SYS5(ppoll, &polled, 1, &limit, 0, 0) > 0;
}

/* ---- what the host says ---- */

static int version_of(int fd) {
    enum { CGROUP2 = 0x63677270, CGROUP = 0x27e0eb };
    long status[16] = {0}; /* struct statfs */
    if (SYS2(fstatfs, fd, status) < 0)
        return 0;
    return status[0] == CGROUP2 ? V2 : status[0] == CGROUP ? V1 : 0;
}

static void take_base(struct reaping *r, uint32_t index, int32_t fd) {
    struct directory *base = &r->bases[index];
    int version = fd >= 0 ? version_of(fd) : 0;
    if (base->fd >= 0)
        SYS1(close, base->fd);
    if (fd >= 0 && !version)
        SYS1(close, fd);
    *base = (struct directory){version ? fd : -1, version};
}

enum hearing { NOTHING_MORE, TAKEN, CLOSED, SHALL_END };

static enum hearing hear_one(struct reaping *r) {
    enum { DONT_WAIT = 0x40, CLOEXEC = 0x40000000 };
    struct isolib_base said = {0};
    struct iso_iovec part = {&said, sizeof(said)};
    struct iso_fd_control control = {0};
    struct iso_msghdr header = {0, 0, &part, 1, &control, sizeof(control), 0};
    int32_t fd = -1;
    long got = SYS3(recvmsg, r->l->status, &header, DONT_WAIT | CLOEXEC);
    if (got < 0)
        return NOTHING_MORE;
    if (header.control_size >= offsetof(struct iso_fd_control, fds) + 4 && control.level == ISO_SOL_SOCKET &&
        control.type == ISO_SCM_RIGHTS)
        fd = control.fds[0];
    if (got == sizeof(said) && said.index < ISOLIB_TABLE_BASES)
        take_base(r, said.index, fd);
    else if (fd >= 0)
        SYS1(close, fd);
    if (got == 0)
        return CLOSED;
    return got == 1 ? SHALL_END : TAKEN;
}

static enum hearing hear(struct reaping *r) {
    enum hearing heard;
    do
        heard = hear_one(r);
    while (heard == TAKEN);
    return heard;
}

/* That the socket is at its end says nothing: an interpreter that ends closes it before the process is gone. */
static void wait_for_the_end(struct reaping *r) {
    struct iso_pollfd polled[2] = {{r->l->host, ISO_POLLIN, 0}, {r->l->status, ISO_POLLIN, 0}};
    while (!polled[0].revents) {
        enum hearing heard = NOTHING_MORE;
        polled[0].revents = polled[1].revents = 0;
        if (SYS5(ppoll, polled, 2, 0, 0, 0) > 0 && polled[1].revents)
            heard = hear(r);
        if (heard == SHALL_END && !polled[0].revents) /* the launch was given up */
            leave(0);
        if (heard == CLOSED)
            polled[1].fd = -1;
    }
    hear(r);
}

/* ---- one group ---- */

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

static int is_dots(const char *name) {
    return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
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
static void end_group(const struct directory *base, const char *name) {
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

/* Returns whether it is there still, and trying again may help. */
static int remove_group(const struct reaping *r, const struct directory *base, const char *name) {
    int64_t until = now_ns() + SLICE;
    if (until > r->deadline_ns)
        until = r->deadline_ns;
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

/* ---- the table ---- */

static const struct isolib_entry *entry_at(const struct reaping *r, uint32_t index) {
    return (const struct isolib_entry *)(const void *)(r->table + 1) + index;
}

/* The name of one directory, and not a way to others. */
static int is_name(const char name[256]) {
    size_t size = 0;
    while (size < 256 && name[size] && name[size] != '/')
        size++;
    return size > 0 && size < 256 && !name[size] && !is_dots(name);
}

static int is_live(const struct reaping *r, uint32_t index) {
    const struct isolib_entry *entry = entry_at(r, index);
    return entry->state && !(r->done[index / 8] & 1 << index % 8) && entry->kind == ISOLIB_ENTRY_CGROUP &&
           entry->base_count <= ISOLIB_ENTRY_BASES && is_name(entry->name);
}

static const struct directory *base_of(const struct reaping *r, const struct isolib_entry *entry, uint32_t which) {
    static const struct directory none = {-1, 0};
    return entry->bases[which] < ISOLIB_TABLE_BASES ? &r->bases[entry->bases[which]] : &none;
}

/* Returns whether something is left that may go later. */
static int remove_entry(struct reaping *r, uint32_t index) {
    const struct isolib_entry *entry = entry_at(r, index);
    int left = 0;
    for (uint32_t i = 0; i < entry->base_count; i++) {
        const struct directory *base = base_of(r, entry, i);
        if (base->fd >= 0)
            left |= remove_group(r, base, entry->name);
    }
    if (!left)
        r->done[index / 8] |= (uint8_t)(1 << index % 8);
    return left;
}

static void undo_all(struct reaping *r) {
    uint32_t high = r->table->high < r->table->capacity ? r->table->high : r->table->capacity;
    int left;
    r->deadline_ns = now_ns() + (int64_t)PATIENCE * SECOND;
    do {
        left = 0;
        for (uint32_t index = 0; index < high; index++) {
            const struct isolib_entry *entry = entry_at(r, index);
            for (uint32_t i = 0; is_live(r, index) && i < entry->base_count; i++)
                if (base_of(r, entry, i)->fd >= 0)
                    end_group(base_of(r, entry, i), entry->name);
        }
        for (uint32_t index = 0; index < high; index++)
            if (is_live(r, index))
                left |= remove_entry(r, index);
    } while (left && now_ns() < r->deadline_ns);
}

/* ---- the process ---- */

/* Checked as the plan is: an entry beyond the end would be a SIGBUS, and nobody would be left. */
static long map_table(struct reaping *r, int fd) {
    enum { READ_WRITE = 3, SHARED = 1, FROM_END = 2 };
    long size = SYS3(lseek, fd, 0, FROM_END), result;
    if (size < (long)sizeof(*r->table))
        return size < 0 ? size : -EINVAL;
    result = iso_noted(__NR_mmap, sys6(__NR_mmap, 0, size, READ_WRITE, SHARED, fd, 0));
    if (result < 0 && result > -4096)
        return result;
    r->table = (struct isolib_table *)result;
    if (r->table->magic != ISOLIB_TABLE_MAGIC || r->table->version != ISOLIB_TABLE_VERSION ||
        r->table->entry_size != sizeof(struct isolib_entry) || r->table->capacity > ISOLIB_TABLE_ENTRIES ||
        r->table->capacity > ((uint64_t)size - sizeof(*r->table)) / sizeof(struct isolib_entry))
        return -EPROTO;
    return 0;
}

/* Out of everything of the host's that a signal, a terminal or a removed directory could reach it by.  Where the calling thread
 * was in other namespaces than its process, and whoever calls may leave them, they must not live as long as this process. */
static long detach(const struct launcher *l) {
    enum { SETMASK = 2, SET_NAME = 15, SET_DUMPABLE = 4, NOFILE = 7 };
    enum { NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x40000000 }; /* mnt, cgroup, uts, ipc, net */
    uint64_t every_signal = ~0ULL, limit[2];
    long result = SYS4(rt_sigprocmask, SETMASK, &every_signal, 0, 8);
    if (result == 0)
        result = SYS0(setsid);
    if (result < 0)
        return result;
    SYS2(setns, l->host, NAMESPACES);
    SYS5(prctl, SET_NAME, "isolib-reaper", 0, 0, 0);
    SYS5(prctl, SET_DUMPABLE, 0, 0, 0, 0);
    /* The directories that it is sent are descriptors, of which the host may have allowed itself few. */
    if (SYS4(prlimit64, 0, NOFILE, 0, limit) == 0) {
        limit[0] = limit[1];
        SYS4(prlimit64, 0, NOFILE, limit, 0);
    }
    return SYS1(chdir, "/");
}

/* The host reads in the table whether its reaper lives: no system call, and true however it has ended. */
static long be_watched(struct reaping *r) {
    robust.next = &robust;
    robust.pending = &r->table->owner;
    r->table->owner = (uint32_t)SYS0(gettid);
    return SYS2(set_robust_list, &robust, sizeof(robust));
}

static void close_what_is_not_needed(const struct launcher *l) {
    int32_t keep[3] = {l->status, l->host, l->go};
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < 2; i++)
            if (keep[i] > keep[i + 1]) {
                int32_t lower = keep[i + 1];
                keep[i + 1] = keep[i];
                keep[i] = lower;
            }
    iso_close_others(keep, 3, 0);
    SYS1(close, l->go); /* last: stage 1 is watching until now */
}

void run_reaper(struct launcher *l, const struct isolib_step *step) {
    struct reaping *r = &reaping;
    struct isolib_message message = {.type = ISOLIB_HOLDING};
    long result;
#ifdef ISOLIB_HOSTED
    *r = (struct reaping){0}; /* there it is entered again and again */
#endif
    result = map_table(r, slot(l, step->fd));
    if (result == 0)
        result = detach(l);
    if (result == 0)
        result = be_watched(r);
    if (result == 0)
        result = send_message(l, &message, -1, -1);
    if (result < 0)
        fail(l, result);
    r->l = l;
    for (int i = 0; i < ISOLIB_TABLE_BASES; i++)
        r->bases[i].fd = -1;
    close_what_is_not_needed(l);
    wait_for_the_end(r);
    undo_all(r);
    leave(0);
}
