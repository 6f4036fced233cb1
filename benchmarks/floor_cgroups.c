/* The floor of control groups: what they cost when nothing but the bare system calls is paid for.
 *
 * The calls are those that isolib makes, in the same hierarchies (but for cpuacct and freezer, which it has where v2 is not
 * mounted): a group with three limits, a group below it for one process, which is born there (CLONE_INTO_CGROUP in v2, "0" into
 * the tasks file of v1), its accounts, and the end of both.  No error is explained, nothing supervised, nothing entrusted to
 * anybody; who is killed before its end leaves everything behind.
 *
 * For a foreign-function interface, from one thread: floor_setup() first, then any of the others.  They return nanoseconds or
 * 0, and -errno where something failed. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "floor.h"

enum { CPU, MEMORY, PIDS, IO, LEGACY };
enum {
    BY_PIDFD = 3, /* P_PIDFD */
    MOST = 1000,  /* processes at once */
    STACK = 16 * 1024,
    SETTLE = 20, /* milliseconds until those who have been started sleep */
};

/* Directories in which groups are made; -1 where there is none.  Without a v1 hierarchy a controller is in v2. */
static struct {
    int unified, legacy[LEGACY];
} host = {-1, {-1, -1, -1, -1}};

/* What a group consists of: its own directories, the tasks files, and the group of v2 that its process is born in. */
struct group {
    char name[64];
    int unified, legacy[LEGACY], born_in, tasks[LEGACY], oom;
};

static long failed;

static int must(int result) {
    if (result < 0 && !failed)
        failed = -errno;
    return result;
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000U + (uint64_t)t.tv_nsec;
}

static int open_in(int directory, const char *name, int flags) {
    return must(openat(directory, name, flags | O_CLOEXEC | O_NOFOLLOW));
}

static void put(int directory, const char *file, const char *text) {
    int fd = open_in(directory, file, O_WRONLY);
    must((int)write(fd, text, strlen(text)));
    close(fd);
}

static void get(int directory, const char *file) {
    char content[4096];
    int fd = open_in(directory, file, O_RDONLY);
    must((int)read(fd, content, sizeof content));
    close(fd);
}

/* A process that has ended is counted for a moment longer, and nobody tells when no more: the next look is soon. */
static void remove_in(int directory, const char *name) {
    for (int i = 0; unlinkat(directory, name, AT_REMOVEDIR) != 0; i++) {
        if (errno != EBUSY || i == 10000) {
            must(-1);
            return;
        }
        poll(NULL, 0, 0);
    }
}

/* Whether processes have groups of their own below the group: a limit on I/O of v1 binds only those who are in it. */
static bool is_counted(int controller) {
    return controller != IO;
}

static int where(const struct group *g, int controller) {
    return g->legacy[controller] >= 0 ? g->legacy[controller] : g->unified;
}

static void make_group(struct group *g) {
    static unsigned number;
    *g = (struct group){.unified = -1, .legacy = {-1, -1, -1, -1}, .born_in = -1, .tasks = {-1, -1, -1, -1}, .oom = -1};
    snprintf(g->name, sizeof g->name, "isolib-floor-%d-%u", getpid(), number++);
    if (host.unified >= 0) {
        must(mkdirat(host.unified, g->name, 0755));
        g->unified = open_in(host.unified, g->name, O_RDONLY | O_DIRECTORY);
    }
    for (int i = 0; i < LEGACY; i++)
        if (host.legacy[i] >= 0) {
            must(mkdirat(host.legacy[i], g->name, 0755));
            g->legacy[i] = open_in(host.legacy[i], g->name, O_RDONLY | O_DIRECTORY);
        }
}

static void limit(const struct group *g) {
    bool v1 = g->legacy[MEMORY] >= 0;
    put(where(g, MEMORY), v1 ? "memory.limit_in_bytes" : "memory.max", "67108864");
    put(where(g, CPU), g->legacy[CPU] >= 0 ? "cpu.cfs_quota_us" : "cpu.max", g->legacy[CPU] >= 0 ? "50000" : "50000 100000");
    put(where(g, PIDS), "pids.max", "64");
    if (!v1)
        put(g->unified, "memory.oom.group", "1");
}

/* The group below, for one process. */
static void make_place(struct group *g) {
    char text[64];
    if (g->unified >= 0) {
        if (g->legacy[MEMORY] < 0)
            put(g->unified, "cgroup.subtree_control", "+io +memory +pids");
        must(mkdirat(g->unified, "p", 0755));
        g->born_in = open_in(g->unified, "p", O_RDONLY | O_DIRECTORY);
    }
    for (int i = 0; i < LEGACY; i++)
        if (g->legacy[i] >= 0) {
            if (is_counted(i))
                must(mkdirat(g->legacy[i], "p", 0755));
            g->tasks[i] = open_in(g->legacy[i], is_counted(i) ? "p/tasks" : "tasks", O_WRONLY);
        }
    if (g->legacy[MEMORY] >= 0) {
        g->oom = must(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
        int control = open_in(g->legacy[MEMORY], "p/memory.oom_control", O_RDONLY);
        snprintf(text, sizeof text, "%d %d", g->oom, control);
        put(g->legacy[MEMORY], "p/cgroup.event_control", text);
        close(control);
    }
}

static void read_accounts(const struct group *g) {
    bool v1 = g->legacy[MEMORY] >= 0;
    int pids = where(g, PIDS);
    if (g->unified >= 0) {
        get(g->unified, "p/cgroup.events");
        get(g->unified, "p/cpu.stat");
    }
    get(pids, "p/pids.peak");
    get(pids, "pids.peak");
    get(pids, "p/pids.events");
    get(where(g, MEMORY), v1 ? "p/memory.max_usage_in_bytes" : "p/memory.peak");
    get(where(g, MEMORY), v1 ? "p/memory.oom_control" : "p/memory.events.local");
    if (!v1) {
        get(g->unified, "pids.events");
        get(g->unified, "p/io.stat");
    }
}

static void remove_place(struct group *g) {
    for (int i = 0; i < LEGACY; i++)
        if (g->tasks[i] >= 0)
            close(g->tasks[i]);
    if (g->oom >= 0)
        close(g->oom);
    if (g->born_in >= 0) {
        close(g->born_in);
        remove_in(g->unified, "p");
    }
    for (int i = 0; i < LEGACY; i++)
        if (g->legacy[i] >= 0 && is_counted(i))
            remove_in(g->legacy[i], "p");
}

static void remove_group(struct group *g) {
    if (g->unified >= 0) {
        remove_in(host.unified, g->name);
        close(g->unified);
    }
    for (int i = 0; i < LEGACY; i++)
        if (g->legacy[i] >= 0) {
            remove_in(host.legacy[i], g->name);
            close(g->legacy[i]);
        }
}

/* ---- processes ---- */

struct birth {
    const struct group *group;
    char *const *argv;
    volatile long error;
};

static void child(void *argument) {
    struct birth *b = argument;
    const uint64_t nothing_blocked = 0;
    char *environment[] = {"PATH=/usr/local/bin:/usr/bin:/bin", NULL};
    for (int i = 0; i < LEGACY && !b->error; i++)
        if (b->group->tasks[i] >= 0 && SYS(write, b->group->tasks[i], "0", 1) < 0)
            b->error = 1;
    SYS(rt_sigprocmask, SIG_SETMASK, &nothing_blocked, 0, sizeof nothing_blocked);
    if (!b->error)
        b->error = SYS(execve, b->argv[0], b->argv, environment);
    SYS(exit_group, 127);
}

/* Returns the pidfd of a process that is in the group and has become its program. */
static int give_birth(const struct group *g, char *const argv[]) {
    char stack[STACK] __attribute__((aligned(16)));
    struct birth b = {.group = g, .argv = argv};
    sigset_t all, before;
    int pidfd = -1;
    struct clone_args args = {
        .flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD | CLONE_CLEAR_SIGHAND | (g->born_in >= 0 ? CLONE_INTO_CGROUP : 0),
        .pidfd = (uint64_t)(uintptr_t)&pidfd,
        .stack = (uint64_t)(uintptr_t)stack,
        .stack_size = sizeof stack,
        .cgroup = g->born_in >= 0 ? (uint64_t)g->born_in : 0,
    };
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    long pid = clone_to(&args, child, &b);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (pid < 0 || b.error)
        failed = failed ? failed : (pid < 0 ? pid : -ECHILD);
    return pidfd;
}

static void reap(int pidfd) {
    siginfo_t info;
    while (waitid((idtype_t)BY_PIDFD, (id_t)pidfd, &info, WEXITED | __WALL) != 0 && errno == EINTR)
        ;
    close(pidfd);
}

/* ---- what is asked for ---- */

static int opened(const char *path) {
    return path ? must(open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) : -1;
}

/* The directories in which groups are made; NULL: there is none. */
long floor_setup(const char *unified, const char *cpu, const char *memory, const char *pids, const char *io) {
    failed = 0;
    host.unified = opened(unified);
    host.legacy[CPU] = opened(cpu);
    host.legacy[MEMORY] = opened(memory);
    host.legacy[PIDS] = opened(pids);
    host.legacy[IO] = opened(io);
    return failed;
}

/* A group with three limits, made and removed. */
long floor_group(void) {
    struct group g;
    failed = 0;
    make_group(&g);
    limit(&g);
    remove_group(&g);
    return failed;
}

/* The same, with a process that lives and ends in it. */
long floor_process(void) {
    static char *const argv[] = {"/bin/true", NULL};
    struct group g;
    failed = 0;
    make_group(&g);
    limit(&g);
    make_place(&g);
    reap(give_birth(&g, argv));
    read_accounts(&g);
    remove_place(&g);
    remove_group(&g);
    return failed;
}

static struct group launched_in;

/* The same in two halves, for a process that somebody else launches: descriptors that he needs, of v2 first, the eventfd last.
 */
long floor_begin(int fds[LEGACY + 2]) {
    failed = 0;
    make_group(&launched_in);
    limit(&launched_in);
    make_place(&launched_in);
    fds[0] = launched_in.born_in;
    memcpy(fds + 1, launched_in.tasks, sizeof launched_in.tasks);
    fds[LEGACY + 1] = launched_in.oom;
    return failed;
}

long floor_finish(void) {
    failed = 0;
    read_accounts(&launched_in);
    remove_place(&launched_in);
    remove_group(&launched_in);
    return failed;
}

/* Waits until cgroup.events of v2 holds a line. */
static void wait_for(int events, const char *line) {
    char content[256];
    struct pollfd p = {.fd = events, .events = POLLPRI};
    for (;;) {
        ssize_t size = pread(events, content, sizeof content - 1, 0);
        if (must((int)size) < 0)
            return;
        content[size] = 0;
        if (strstr(content, line))
            return;
        poll(&p, 1, -1);
    }
}

/* What group.freeze() and thaw() do, to a group of v2 with this many processes; and cgroup.kill, which is less than what
 * group.kill() does: that spares the supervisors, who tell how the commands ended.  Nanoseconds for each. */
long floor_crowd(int processes, int64_t *freeze, int64_t *thaw, int64_t *kill) {
    static char *const argv[] = {"/bin/sleep", "1000", NULL};
    struct group g = {.unified = -1, .legacy = {-1, -1, -1, -1}, .born_in = -1, .tasks = {-1, -1, -1, -1}, .oom = -1};
    int pidfds[MOST];
    failed = host.unified < 0 || processes > MOST ? -EINVAL : 0;
    if (failed)
        return failed;
    snprintf(g.name, sizeof g.name, "isolib-floor-%d-crowd", getpid());
    must(mkdirat(host.unified, g.name, 0755));
    g.born_in = open_in(host.unified, g.name, O_RDONLY | O_DIRECTORY);
    for (int i = 0; i < processes; i++)
        pidfds[i] = give_birth(&g, argv);
    int events = open_in(g.born_in, "cgroup.events", O_RDONLY);
    poll(NULL, 0, SETTLE);
    uint64_t start = now();
    put(g.born_in, "cgroup.freeze", "1");
    wait_for(events, "frozen 1");
    uint64_t frozen = now();
    put(g.born_in, "cgroup.freeze", "0");
    wait_for(events, "frozen 0");
    uint64_t thawed = now();
    put(g.born_in, "cgroup.kill", "1");
    wait_for(events, "populated 0");
    *kill = (int64_t)(now() - thawed);
    *freeze = (int64_t)(frozen - start);
    *thaw = (int64_t)(thawed - frozen);
    for (int i = 0; i < processes; i++)
        reap(pidfds[i]);
    close(events);
    close(g.born_in);
    remove_in(host.unified, g.name);
    return failed;
}
