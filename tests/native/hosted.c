/* launcher-hosted [COUNT]: the whole launcher on sound and on mutated plans, with system calls that answer from here: they
 * touch all the memory that they are given, as the kernel would, so that AddressSanitizer sees what is wrong with it, and they
 * fail at random, so that every way out is taken. */
#include "plans.h"
#include <linux/stat.h>
#include <setjmp.h>
#include <stdio.h>

enum { BOOT_FD = 1000, DEPTH = 4, ENTRIES = 8 };

static jmp_buf ends[DEPTH];
static int depth;
static uint8_t *boot;
static size_t boot_size;
static int failures; /* one call in so many fails; 0: none */
static uint32_t ids[2][3];
static uint32_t capabilities[6];
static long calls, executed, unlinked, links, settings;
static void *mapped[64];
static int mapped_count;
static volatile uint64_t sum;

static void touch(const void *data, size_t size) {
    for (size_t i = 0; i < size; i++)
        sum += ((const uint8_t *)data)[i];
}

static void touch_text(long text) {
    if (text)
        touch((const void *)text, strlen((const char *)text) + 1);
}

static void touch_list(long list) {
    for (const char **at = (const char **)list; at && *at; at++)
        touch_text((long)*at);
}

static long new_fd(void) {
    return 3 + (long)below(200);
}

static long allocate(size_t size) {
    void *memory = calloc(1, size);
    if (mapped_count == 64)
        return -ENOMEM;
    mapped[mapped_count++] = memory;
    return (long)memory;
}

/* The reaper's table, whose size is the mapping's: mostly sound, with entries of which each field may be wrong. */
static long allocate_table(size_t size) {
    long memory = allocate(size);
    struct isolib_table *table = (struct isolib_table *)memory;
    struct isolib_entry *entries = (struct isolib_entry *)(table + 1);
    if (memory < 0)
        return memory;
    *table = (struct isolib_table){.magic = ISOLIB_TABLE_MAGIC,
                                   .version = ISOLIB_TABLE_VERSION,
                                   .entry_size = sizeof(*entries),
                                   .capacity = ENTRIES,
                                   .high = (uint32_t)below(12),
                                   .guard = (uint32_t)below(2) * 42};
    if (below(8) == 0)
        ((uint32_t *)table)[below(5)] = (uint32_t)number();
    for (int i = 0; i < ENTRIES && (size_t)((char *)(entries + i + 1) - (char *)table) <= size; i++) {
        struct isolib_entry *entry = &entries[i];
        char fill;
        entry->state = below(4) != 0;
        entry->kind = ISOLIB_ENTRY_CGROUP + (uint32_t)below(4); /* of a setting, what it must have follows */
        fill = entry->kind == ISOLIB_ENTRY_CGROUP ? 'x' : '7';
        entry->base_count = (uint32_t)below(4);
        for (int at = 0; at < ISOLIB_ENTRY_BASES; at++)
            entry->bases[at] = (uint16_t)(below(8) ? below(4) : number());
        memset(entry->name, below(8) ? fill : '.', below(8) ? 1 + below(3) : sizeof(entry->name));
        if (entry->kind >= ISOLIB_ENTRY_SETTING && below(8))
            memset(entry->name + strlen(entry->name) % 8 + 1, '1', 1 + below(3));
        if (below(8) == 0)
            entry->name[below(sizeof(entry->name))] = (char)number();
        if (below(8) == 0)
            ((uint8_t *)entry)[below(16)] = (uint8_t)number();
    }
    return memory;
}

static long table_size(void) {
    return (long)(below(8) ? sizeof(struct isolib_table) + ENTRIES * sizeof(struct isolib_entry) : below(4096));
}

/* What the host says to the reaper: a directory, or that the number of one is free, or that all is over; or nothing more. */
static long answer_receive(struct iso_msghdr *header) {
    struct iso_fd_control *control = header->control;
    struct isolib_base base = {(uint32_t)(below(8) ? below(4) : number()), (uint32_t)below(6), (uint32_t)below(2)};
    touch(header, sizeof(*header));
    if (below(2))
        return below(4) ? -EAGAIN : (long)below(2);
    memcpy((void *)(uintptr_t)header->parts[0].base, &base, sizeof(base));
    memset(control, 0, header->control_size);
    if (below(8)) {
        control->size = offsetof(struct iso_fd_control, fds) + 4;
        control->level = ISO_SOL_SOCKET;
        control->type = ISO_SCM_RIGHTS;
        control->fds[0] = (int32_t)new_fd();
    } else {
        header->control_size = 0;
    }
    return sizeof(base);
}

/* Of directories that hold few others, so that a walk ends. */
static long answer_entries(char *entries, size_t size) {
    enum { LENGTH = 16, TYPE = 18, NAME = 19, RECORD = 24 };
    static const char *const names[] = {".", "..", "7", "a", ".b"};
    size_t count = below(4) ? 0 : 1 + below(3);
    memset(entries, 0, size);
    for (size_t i = 0; i < count; i++) {
        char *entry = entries + i * RECORD;
        *(uint16_t *)(void *)(entry + LENGTH) = RECORD;
        entry[TYPE] = below(2) ? 4 : 8;
        strcpy(entry + NAME, names[below(sizeof(names) / sizeof(*names))]);
    }
    return (long)(count * RECORD);
}

static long answer_statfs(long *status) {
    static const long magics[] = {0x63677270, 0x27e0eb, 0x534f434b, 0x9fa0, 0xef53};
    memset(status, 0, 120);
    *status = magics[below(5)];
    return 0;
}

/* Time goes on, or what waits with a limit would not end. */
static long answer_clock(struct iso_timespec *now) {
    static int64_t ticks;
    ticks += (int64_t)below(10000000);
    *now = (struct iso_timespec){ticks / 1000000000, ticks % 1000000000};
    return 0;
}

static long answer_message(const struct iso_msghdr *header) {
    touch(header, sizeof(*header));
    for (size_t i = 0; i < header->part_count; i++)
        touch(header->parts[i].base, header->parts[i].size);
    if (header->control)
        touch(header->control, header->control_size);
    return (long)header->parts[0].size;
}

static long answer_clone(long pidfd) {
    if (pidfd)
        *(int32_t *)pidfd = (int32_t)new_fd();
    return below(2) ? 0 : 4242;
}

static long fill(long target, size_t size) {
    if (target)
        memset((void *)target, 0, size);
    return 0;
}

static long get_ids(const uint32_t *from, long a, long b, long c) {
    *(uint32_t *)a = from[0];
    *(uint32_t *)b = from[1];
    *(uint32_t *)c = from[2];
    return 0;
}

static long set_ids(uint32_t *to, long a, long b, long c) {
    to[0] = (uint32_t)a;
    to[1] = (uint32_t)b;
    to[2] = (uint32_t)c;
    return 0;
}

static long set_capabilities(long data, int read) {
    if (read)
        memcpy((void *)data, capabilities, sizeof(capabilities));
    else
        memcpy(capabilities, (void *)data, sizeof(capabilities));
    return 0;
}

/* Calls by the shape of their arguments: which of them are texts, what they return. */
static long answer_file(long nr, long b, long c, long d) {
    switch (nr) {
    case __NR_openat:
        touch_text(b);
        return new_fd();
    case __NR_openat2:
        touch_text(b);
        touch((void *)c, sizeof(struct iso_open_how));
        return new_fd();
    case __NR_open_tree:
    case __NR_mkdirat:
    case __NR_mknodat:
        touch_text(b);
        return nr == __NR_open_tree ? new_fd() : 0;
    case __NR_move_mount:
        touch_text(b);
        touch_text(d);
        return 0;
    case __NR_mount_setattr:
        touch_text(b);
        touch((void *)d, sizeof(struct iso_mount_attr));
        return 0;
    case __NR_fsconfig:
        touch_text(c);
        touch_text(d);
        return 0;
    case __NR_symlinkat:
        touch_text(c);
        return 0;
    case __NR_write:
        touch((void *)b, (size_t)c);
        links += c == 32 && ((const uint16_t *)b)[2] == 17; /* RTM_DELLINK */
        return c;
    case __NR_pwrite64:
        touch((void *)b, (size_t)c);
        settings++;
        return c;
    default:
        return -ENOSYS;
    }
}

static long answer_read(long a, long b, long c) {
    (void)a;
    if (c == 127) { /* cgroup.events */
        memset((void *)b, 0, (size_t)c);
        strcpy((char *)b + below(100), below(2) ? "populated 1" : "populated 0");
        return (long)below(128);
    }
    if (c == 512) { /* cgroup.procs */
        for (long i = 0; i < c; i++)
            ((char *)b)[i] = below(4) ? (char)('0' + below(10)) : '\n';
        return below(2) ? 0 : (long)below(513);
    }
    if (c >= 128) { /* a signalfd, or a list of children */
        memset((void *)b, 0, (size_t)c);
        *(uint32_t *)b = below(2) ? 17 : 15;
        return c == 128 ? 128 : 0;
    }
    return c;
}

/* Of a lock, whether somebody else has one; else a new descriptor. */
static long answer_fcntl(long command, long argument) {
    if (command == ISO_OFD_SETLK) {
        touch((const void *)argument, sizeof(struct iso_lock));
        return below(2) ? -EAGAIN : 0;
    }
    if (command != ISO_OFD_GETLK)
        return new_fd();
    touch((const void *)argument, sizeof(struct iso_lock));
    ((struct iso_lock *)argument)->type = below(2) ? ISO_UNLCK : ISO_WRLCK;
    return 0;
}

/* What a setting has, or a file of counts. */
static long answer_value(char *text, size_t size) {
    size_t length = below(4) ? 1 + below(4) : below(size + 1);
    memset(text, 0, size);
    memset(text, below(4) ? '1' : '\n', length < size ? length : size);
    return (long)(length < size ? length : size);
}

static long answer_wait(long status, long options) {
    if (status)
        *(int *)status = (int)below(256) << 8;
    return below(3) ? -ECHILD : options & 1 ? 0 : 43;
}

static long answer_poll(struct iso_pollfd *polled, long count) {
    touch(polled, sizeof(*polled) * (size_t)count);
    for (long i = 0; i < count; i++)
        polled[i].revents = below(3) == 0;
    return below(20) ? 1 : 0;
}

long sys6(long nr, long a, long b, long c, long d, long e, long f) {
    (void)f;
    calls++;
    if (nr == __NR_exit_group || nr == __NR_exit)
        longjmp(ends[depth], 1);
    if (failures && below((uint64_t)failures) == 0)
        return -(long)(1 + below(120));
    switch (nr) {
    case __NR_mmap:
        return e == BOOT_FD ? (long)boot : e >= 0 ? allocate_table((size_t)b) : allocate((size_t)b);
    case __NR_lseek:
        return a == BOOT_FD ? (long)boot_size : table_size();
    case __NR_clone3:
        return answer_clone(((const long *)a)[1]);
    case __NR_clone:
        return answer_clone(c);
    case __NR_pipe2:
        ((int32_t *)a)[0] = (int32_t)new_fd();
        ((int32_t *)a)[1] = (int32_t)new_fd();
        return 0;
    case __NR_sendmsg:
        return answer_message((const struct iso_msghdr *)b);
    case __NR_read:
        return answer_read(a, b, c);
    case __NR_recvfrom:
        *(char *)b = below(2) ? 'h' : 'e';
        return 1;
    case __NR_wait4:
        return answer_wait(b, c);
    case __NR_ppoll:
        return answer_poll((struct iso_pollfd *)a, b);
    case __NR_getrusage:
        return fill(b, 18 * sizeof(long));
    case __NR_clock_gettime:
        return answer_clock((struct iso_timespec *)b);
    case __NR_recvmsg:
        return answer_receive((struct iso_msghdr *)b);
    case __NR_fstatfs:
        return answer_statfs((long *)b);
    case __NR_unlinkat:
        touch_text(b);
        unlinked++;
        return below(2) ? -EBUSY : 0;
    case __NR_prlimit64:
        if (c)
            touch((const void *)c, 16);
        return fill(d, 16);
    case __NR_set_robust_list:
        touch((const void *)a, (size_t)b);
        return 0;
    case __NR_getpid:
    case __NR_gettid:
        return 42;
    case __NR_statx:
        touch_text(b);
        fill(e, sizeof(struct statx));
        ((struct statx *)e)->stx_mode = 0020000;
        return 0;
    case __NR_getcwd:
        strcpy((char *)a, below(8) ? "/" : "(unreachable)/");
        return 2;
    case __NR_getdents64:
        return answer_entries((char *)b, (size_t)c);
    case __NR_setresuid:
        return set_ids(ids[0], a, b, c);
    case __NR_setresgid:
        return set_ids(ids[1], a, b, c);
    case __NR_getresuid:
        return get_ids(ids[0], a, b, c);
    case __NR_getresgid:
        return get_ids(ids[1], a, b, c);
    case __NR_capset:
        return set_capabilities(b, 0);
    case __NR_capget:
        return set_capabilities(b, 1);
    case __NR_execve:
        touch_text(a);
        touch_list(b);
        touch_list(c);
        executed++;
        longjmp(ends[depth], 1);
    case __NR_fsopen:
    case __NR_chdir:
    case __NR_umount2:
        touch_text(a);
        return nr == __NR_fsopen ? new_fd() : 0;
    case __NR_pivot_root:
        touch_text(a);
        touch_text(b);
        return 0;
    case __NR_sethostname:
    case __NR_setdomainname:
        touch((void *)a, (size_t)b);
        return 0;
    case __NR_setgroups:
        touch((void *)b, (size_t)a * 4);
        return 0;
    case __NR_sched_setaffinity:
        touch((void *)c, (size_t)b);
        return 0;
    case __NR_fsmount:
    case __NR_socket:
    case __NR_signalfd4:
    case __NR_pidfd_open:
        return new_fd();
    case __NR_fcntl:
        return answer_fcntl(b, c);
    case __NR_pread64:
        return answer_value((char *)b, (size_t)c);
    case __NR_kill:
        return below(2) ? -ESRCH : 0;
    case __NR_openat:
    case __NR_openat2:
    case __NR_open_tree:
    case __NR_mkdirat:
    case __NR_mknodat:
    case __NR_move_mount:
    case __NR_mount_setattr:
    case __NR_fsconfig:
    case __NR_symlinkat:
    case __NR_write:
    case __NR_pwrite64:
        return answer_file(nr, b, c, d);
    default:
        return 0;
    }
}

long isolib_clone_run(unsigned long flags, void *stack_top, int *parent_tid, int (*function)(void *), void *argument) {
    (void)flags, (void)stack_top;
    if (failures && below((uint64_t)failures) == 0)
        return -EAGAIN;
    if (parent_tid)
        *parent_tid = (int)new_fd();
    if (depth + 1 < DEPTH) {
        depth++;
        if (!setjmp(ends[depth]))
            function(argument);
        depth--;
    }
    return 43;
}

enum { HEAD = (sizeof(struct isolib_boot) + 12 + 7) / 8 * 8 };

static void launch(const uint8_t *plan, size_t size) {
    char *argv[] = {"isolib-init", "1000"};
    long block[4] = {2, (long)argv[0], (long)argv[1], 0};
    struct isolib_boot head = {ISOLIB_PLAN_MAGIC, 0, 3, HEAD, (uint32_t)size, 10, 11, 12, (int32_t)below(2), 0};
    static const int32_t keep[3] = {0, 1, 2};
    boot_size = HEAD + size;
    boot = calloc(1, boot_size);
    memcpy(boot, &head, sizeof(head));
    memcpy(boot + sizeof(head), keep, sizeof(keep));
    memcpy(boot + HEAD, plan, size);
    depth = 0;
    if (!setjmp(ends[0]))
        launcher_main(block);
    free(boot);
    while (mapped_count)
        free(mapped[--mapped_count]);
}

int main(int argc, char **argv) {
    static uint8_t plan[ROOM], mutated[ROOM], scratch[ROOM];
    long count = argc > 1 ? atol(argv[1]) : 100000;
    for (long i = 0; i < count; i++) {
        size_t size = random_plan(plan, scratch);
        failures = 0;
        launch(plan, size);
        failures = 1 + (int)below(60);
        launch(plan, size);
        memcpy(mutated, plan, size);
        mutate(mutated, &size);
        launch(mutated, size);
    }
    printf("%ld plans, sound, failing and mutated: %ld system calls, %ld programs executed; %ld directories and %ld links "
           "removed, %ld settings written back\n",
           count, calls, executed, unlinked, links, settings);
    return calls > count && executed > 0 && unlinked > 0 && links > 0 && settings > 0 ? 0 : 1;
}
