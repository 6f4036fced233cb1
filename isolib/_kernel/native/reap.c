/*
 * The reaper: it sleeps beside the host, and when that is gone it removes what no descriptor can own, by the table that the
 * host has left in shared memory.  Whatever the host did last, be it half of an entry, is what the table holds then.
 *
 * Names are looked up in what the host has sent: directories of cgroups, netlink sockets, open settings.  What it sent before
 * it died lies in the socket's queue, which is read before anything else.  Everything is ended first, of all entries, then
 * waited for and removed.  What cannot be removed for a moment (processes that are dying, or being born into it) is tried again
 * until there is no more time.
 *
 * No message and no file is waited for without a limit: nobody is left who could end this process.
 */
#include "reap.h"

enum { PATIENCE = 10 /* seconds for everything */, DONE_BYTES = ISOLIB_TABLE_ENTRIES / 8 };

struct reaping {
    const struct launcher *l;
    struct isolib_table *table;
    uint32_t self; /* the number of this process */
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

/* ---- what the host says ---- */

static int version_of(int fd) {
    enum { CGROUP2 = 0x63677270, CGROUP = 0x27e0eb, SOCKETS = 0x534f434b, PROC = 0x9fa0 };
    long status[16] = {0}; /* struct statfs */
    if (SYS2(fstatfs, fd, status) < 0)
        return 0;
    switch (status[0]) {
    case CGROUP2:
        return V2;
    case CGROUP:
        return V1;
    case SOCKETS:
        return NETLINK;
    case PROC:
        return SETTING;
    default:
        return 0;
    }
}

static void take_base(struct reaping *r, const struct isolib_base *said, int32_t fd) {
    struct directory *base = &r->bases[said->index];
    int version = fd < 0 ? 0 : said->kind == ISOLIB_ENTRY_MOUNT ? MOUNT : version_of(fd);
    if (base->fd >= 0)
        SYS1(close, base->fd);
    if (fd >= 0 && !version)
        SYS1(close, fd);
    *base = (struct directory){version ? fd : -1, version};
}

/* Who waits for it wants to know that a descriptor is closed.  Nobody who does not read it can keep this process. */
static void answer(const struct reaping *r, uint32_t value) {
    enum { DONT_WAIT = 0x40, NO_SIGNAL = 0x4000 };
    struct isolib_message message = {.type = ISOLIB_HOLDING, .value = (int32_t)value};
    struct iso_iovec part = {&message, sizeof(message)};
    struct iso_msghdr header = {0, 0, &part, 1, 0, 0, 0};
    SYS3(sendmsg, r->l->status, &header, DONT_WAIT | NO_SIGNAL);
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
        take_base(r, &said, fd);
    else if (fd >= 0)
        SYS1(close, fd);
    if (got == sizeof(said) && said.answer)
        answer(r, said.answer);
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

/* Whether the host is going, too, is seen a moment after its socket has closed. */
static int is_given_up(const struct reaping *r) {
    return r->table->guard != r->self && !wait_for(r->l->host, ISO_POLLIN, now_ns() + SECOND / 2);
}

/* That the socket is at its end says nothing of the host: an interpreter that ends closes it before the process is gone.  But a
 * start that was interrupted closes it too, and that reaper is nobody's. */
static void wait_for_the_end(struct reaping *r) {
    struct iso_pollfd polled[2] = {{r->l->host, ISO_POLLIN, 0}, {r->l->status, ISO_POLLIN, 0}};
    while (!polled[0].revents) {
        enum hearing heard = NOTHING_MORE;
        polled[0].revents = polled[1].revents = 0;
        if (SYS5(ppoll, polled, 2, 0, 0, 0) > 0 && polled[1].revents)
            heard = hear(r);
        if (polled[0].revents)
            break;
        if (heard == SHALL_END || (heard == CLOSED && is_given_up(r)))
            leave(0);
        if (heard == CLOSED)
            polled[1].fd = -1;
    }
    hear(r);
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

/* What a setting is given back, and after it what it must have then. */
static int is_pair(const char name[256]) {
    size_t size = 0;
    while (size < 256 && name[size])
        size++;
    for (size++; size < 256 && name[size]; size++)
        ;
    return size < 256;
}

static int is_whole(const struct isolib_entry *entry) {
    return entry->state && entry->kind >= ISOLIB_ENTRY_CGROUP && entry->kind <= ISOLIB_ENTRY_BESIDE &&
           entry->base_count <= ISOLIB_ENTRY_BASES && is_name(entry->name) &&
           (entry->kind < ISOLIB_ENTRY_SETTING || is_pair(entry->name));
}

static int is_live(const struct reaping *r, uint32_t index) {
    return !(r->done[index / 8] & 1 << index % 8) && is_whole(entry_at(r, index));
}

static uint32_t end_of(const struct isolib_table *table) {
    return table->high < table->capacity ? table->high : table->capacity;
}

static const struct directory *base_of(const struct reaping *r, const struct isolib_entry *entry, uint32_t which) {
    static const struct directory none = {-1, 0};
    return entry->bases[which] < ISOLIB_TABLE_BASES ? &r->bases[entry->bases[which]] : &none;
}

static int is_of_groups(const struct directory *base) {
    return base->fd >= 0 && (base->version == V1 || base->version == V2);
}

/* Asks for the removal of a link by its number.  The kernel does it within the call, and its answer stays unread. */
static void remove_link(int socket, const char *digits) {
    enum { DELLINK = 17, REQUEST = 1 };
    struct {
        uint32_t size;
        uint16_t type, flags;
        uint32_t sequence, port;
        uint8_t family, padding;
        uint16_t device;
        int32_t index;
        uint32_t flag, change;
    } request = {sizeof(request), DELLINK, REQUEST, 0, 0, 0, 0, 0, 0, 0, 0};
    int64_t index = 0;
    while (*digits >= '0' && *digits <= '9' && index < SECOND)
        index = index * 10 + *digits++ - '0';
    request.index = (int32_t)index;
    if (request.index > 0 && request.index == index && !*digits)
        SYS3(write, socket, &request, sizeof(request));
}

static long lock(int file, int16_t type, int64_t start, int64_t size) {
    struct iso_lock wanted = {type, 0, start, size, 0};
    return SYS3(fcntl, file, ISO_OFD_SETLK, &wanted);
}

/* Whether another program has a lock that takes the right to write the setting. */
static int is_locked(int file, int64_t start, int64_t size) {
    struct iso_lock found = {ISO_RDLCK, 0, start, size, 0};
    return SYS3(fcntl, file, ISO_OFD_GETLK, &found) == 0 && found.type != ISO_UNLCK;
}

static int is_blank(char one) {
    return one == ' ' || one == '\t' || one == '\n';
}

static const char *after_blanks(const char *text) {
    while (is_blank(*text))
        text++;
    return text;
}

/* Whatever is between its words: the kernel takes spaces, and shows tabs. */
static int has_value(int file, const char *value) {
    char text[257];
    long size = SYS4(pread64, file, text, sizeof(text) - 1, 0);
    const char *at = text;
    if (size < 0 || size == sizeof(text) - 1)
        return 0;
    text[size] = 0;
    for (;;) {
        at = after_blanks(at);
        value = after_blanks(value);
        if (!*at || !*value)
            return *at == *value;
        while (*at && *at == *value && !is_blank(*at)) {
            at++;
            value++;
        }
        if ((*at && !is_blank(*at)) || (*value && !is_blank(*value)))
            return 0;
    }
}

static void write_back(int file, const char name[256]) {
    if (has_value(file, name + length(name) + 1))
        SYS4(pwrite64, file, name, length(name), 0);
}

static void give_back_beside(const struct reaping *r, const struct isolib_entry *entry) {
    for (uint32_t i = 0; i < entry->base_count; i++)
        if (base_of(r, entry, i)->version == SETTING)
            write_back(base_of(r, entry, i)->fd, entry->name);
}

/*
 * Gives a setting its value back, unless somebody else has changed it, or another program holds it: then that one will.  This
 * process has the host's own locks, which belong to the open file.  Who has the door and does not give it is not waited for in
 * the end; and who has it by a right to read is not waited for at all.
 */
static int give_back(const struct reaping *r, int file, const char name[256]) {
    const int64_t marks = (int64_t)1 << ISOLIB_SETTING_MARKS_FROM;
    if (lock(file, ISO_WRLCK, ISOLIB_SETTING_DOOR, 1) < 0 && is_locked(file, ISOLIB_SETTING_DOOR, 1) &&
        now_ns() < r->deadline_ns - SECOND) {
        wait_for(-1, 0, now_ns() + SECOND / 1000);
        return 1;
    }
    if (!is_locked(file, marks, 0)) {
        write_back(file, name);
        for (uint32_t index = 0; index < end_of(r->table); index++)
            if (is_whole(entry_at(r, index)) && entry_at(r, index)->kind == ISOLIB_ENTRY_BESIDE)
                give_back_beside(r, entry_at(r, index));
    }
    lock(file, ISO_UNLCK, 0, 0);
    return 0;
}

/*
 * Detaches the mount that a descriptor is open on, wherever it is by now; one that is nowhere any more cannot be detached, and
 * nothing in its place is.  What was mounted on top of it is a child of it, and would go with it: the kernel finds that first.
 */
static void detach_mount(int fd) {
    enum { MNT_DETACH = 2, ON_TOP = 64 };
    if (SYS1(fchdir, fd) < 0)
        return;
    for (int i = 0; i < ON_TOP; i++)
        if (SYS2(umount2, ".", MNT_DETACH) < 0)
            break;
    SYS1(chdir, "/");
}

/* Returns whether something is left that may go later. */
static int remove_entry(struct reaping *r, uint32_t index) {
    const struct isolib_entry *entry = entry_at(r, index);
    int left = 0;
    for (uint32_t i = 0; i < entry->base_count; i++) {
        const struct directory *base = base_of(r, entry, i);
        if (entry->kind == ISOLIB_ENTRY_CGROUP && is_of_groups(base))
            left |= remove_group(base, entry->name, r->deadline_ns);
        if (entry->kind == ISOLIB_ENTRY_LINK && base->version == NETLINK)
            remove_link(base->fd, entry->name);
        if (entry->kind == ISOLIB_ENTRY_SETTING && base->version == SETTING)
            left |= give_back(r, base->fd, entry->name);
        if (entry->kind == ISOLIB_ENTRY_BESIDE && base->version == SETTING)
            write_back(base->fd, entry->name);
        if (entry->kind == ISOLIB_ENTRY_MOUNT && base->version == MOUNT)
            detach_mount(base->fd);
    }
    if (!left)
        r->done[index / 8] |= (uint8_t)(1 << index % 8);
    return left;
}

static void undo_all(struct reaping *r) {
    uint32_t high = end_of(r->table);
    int left;
    r->deadline_ns = now_ns() + (int64_t)PATIENCE * SECOND;
    do {
        left = 0;
        for (uint32_t index = 0; index < high; index++) {
            const struct isolib_entry *entry = entry_at(r, index);
            for (uint32_t i = 0; is_live(r, index) && i < entry->base_count; i++)
                if (entry->kind == ISOLIB_ENTRY_CGROUP && is_of_groups(base_of(r, entry, i)))
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
    long result;
    robust.next = &robust;
    robust.pending = &r->table->owner;
    result = SYS2(set_robust_list, &robust, sizeof(robust));
    if (result == 0)
        r->table->owner = r->self = (uint32_t)SYS0(gettid);
    return result;
}

static void close_what_is_not_needed(const struct launcher *l) {
    int32_t keep[3];
    uint32_t count = 0;
    insert_sorted(keep, &count, l->status);
    insert_sorted(keep, &count, l->host);
    insert_sorted(keep, &count, l->go);
    iso_close_others(keep, count, 0);
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
