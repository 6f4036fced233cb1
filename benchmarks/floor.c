/* The floor: what a full sandbox costs when nothing but its bare system calls is paid for.
 *
 * One clone3() makes pid, net, ipc, mnt, uts, user and cgroup namespaces; the parent writes the id maps; the child builds a
 * mount tree (read-only binds of the host, /proc with masked paths, /dev, /tmp), brings loopback up, drops every capability and
 * becomes the command; the parent waits by pidfd.  No error is explained, no signal forwarded, nothing supervised.
 *
 *   floor N                         N sandboxes, one after another: JSON with minimum and median nanoseconds
 *   floor --threads T --seconds S   how many sandboxes a second T threads make
 *   floor --run COMMAND...          one sandbox, with that command in it, to look at it from inside
 *   floor_sandbox(), with -shared   a "single C call that does it all"
 * The child shares the parent's memory until its exec, as after vfork(), so the size of the parent does not matter; but it runs
 * beside the parent, which has the id maps to write: until the exec it touches no libc, whose errno is the parent's. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/futex.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <net/if.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { NO_NET = 1, HOST_ROOT_BIND = 2, IN_PLACE = 4 };

/* Headers of older systems lack these; the numbers are the kernel's. */
enum {
    RECURSIVE = 0x8000,       /* AT_RECURSIVE */
    PRIVATE = 1 << 18,        /* MS_PRIVATE: <sys/mount.h> and <linux/mount.h> cannot both be included */
    DETACH = 2,               /* MNT_DETACH */
    BY_PIDFD = 3,             /* P_PIDFD */
    MOST = 64,                /* names in a list, the NULL at its end included */
    STACK = 32 * 1024,        /* on the caller's own stack */
    FOREIGN_IDS = 0x70000000, /* owns nothing anywhere: above what systemd-nspawn and useradd give away */
};

#include "floor.h"

/* What is the same for every sandbox of this host, found out once. */
static struct {
    bool root;
    const char *directories[MOST], *links[MOST], *targets[MOST], *masked_files[MOST], *masked_directories[MOST],
        *read_only[MOST];
} host;
static pthread_once_t host_known = PTHREAD_ONCE_INIT;

struct sandbox {
    int variant;
    char *const *argv;
    volatile int mapped; /* a futex: the id maps are written */
    volatile long error; /* of the child, which shares this memory until its exec */
    const char *volatile step;
};

static long must(struct sandbox *s, long result, const char *step) {
    if (result < 0) {
        s->error = result;
        s->step = step;
        SYS(exit_group, 127);
    }
    return result;
}

static void attach(struct sandbox *s, long mount, long directory, const char *name) {
    must(s, SYS(move_mount, mount, "", directory, name, MOVE_MOUNT_F_EMPTY_PATH), name);
}

/* A new file system as a detached mount.  Descriptors are closed all at once before the exec: close_range() costs less. */
static long new_mount(struct sandbox *s, const char *type, const char *key, const char *value, unsigned attributes) {
    long fs = must(s, SYS(fsopen, type, 1), type);
    if (key)
        must(s, SYS(fsconfig, fs, FSCONFIG_SET_STRING, key, value, 0), type);
    must(s, SYS(fsconfig, fs, FSCONFIG_CMD_CREATE, 0, 0, 0), type);
    return must(s, SYS(fsmount, fs, 1, attributes), type);
}

static long clone_tree(struct sandbox *s, long directory, const char *path, unsigned flags) {
    return must(s, SYS(open_tree, directory, path, OPEN_TREE_CLONE | O_CLOEXEC | flags), path);
}

static void set_attributes(struct sandbox *s, long mount, const char *path, unsigned flags, unsigned attributes) {
    struct mount_attr attr = {.attr_set = attributes, .propagation = PRIVATE};
    must(s, SYS(mount_setattr, mount, path, flags, &attr, sizeof attr), "mount_setattr");
}

/* Needs the id maps: a file cannot be made by an id that has no place in the file system's user namespace (EOVERFLOW). */
static void become_root(struct sandbox *s) {
    while (!s->mapped)
        SYS(futex, &s->mapped, FUTEX_WAIT_PRIVATE, 0, 0);
    if (host.root)
        must(s, SYS(setgroups, 0, 0), "setgroups");
    must(s, SYS(setresgid, 0, 0, 0), "setresgid");
    must(s, SYS(setresuid, 0, 0, 0), "setresuid");
}

static long skeleton_root(struct sandbox *s) {
    static const char *const own[] = {"proc", "dev", "tmp", "root", "home", NULL};
    become_root(s);
    long root = new_mount(s, "tmpfs", "mode", "0755", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
    for (int i = 0; own[i]; i++)
        must(s, SYS(mkdirat, root, own[i], 0755), own[i]);
    for (int i = 0; host.links[i]; i++)
        must(s, SYS(symlinkat, host.targets[i], root, host.links[i] + 1), host.links[i]);
    for (int i = 0; host.directories[i]; i++)
        must(s, SYS(mkdirat, root, host.directories[i] + 1, 0755), host.directories[i]);
    /* Attached first: before Linux 6.15 nothing can be mounted on a detached tree. */
    attach(s, root, AT_FDCWD, "/");
    for (int i = 0; host.directories[i]; i++)
        attach(s, clone_tree(s, AT_FDCWD, host.directories[i], RECURSIVE), root, host.directories[i] + 1);
    set_attributes(s, root, "", AT_EMPTY_PATH | RECURSIVE, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID);
    return root;
}

/* The host's whole tree, cloned or as clone3() copied it, with the homes covered. */
static long whole_root(struct sandbox *s) {
    long root = -1;
    if (s->variant & HOST_ROOT_BIND) {
        root = clone_tree(s, AT_FDCWD, "/", RECURSIVE);
        set_attributes(s, root, "", AT_EMPTY_PATH | RECURSIVE, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID);
        attach(s, root, AT_FDCWD, "/");
    } else {
        set_attributes(s, AT_FDCWD, "/", RECURSIVE, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID);
        root = must(s, SYS(openat, AT_FDCWD, "/", O_PATH | O_CLOEXEC), "/");
    }
    become_root(s);
    long cover = new_mount(s, "tmpfs", "mode", "0755", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
    attach(s, clone_tree(s, cover, "", AT_EMPTY_PATH), root, "home");
    attach(s, cover, root, "root");
    return root;
}

static void new_proc(struct sandbox *s, long root) {
    const unsigned attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    long proc = new_mount(s, "proc", NULL, NULL, attributes);
    attach(s, proc, root, "proc");
    /* Only what exists is masked: a clone that is closed unattached costs a whole RCU grace period. */
    for (int i = 0; host.masked_files[i]; i++)
        attach(s, clone_tree(s, AT_FDCWD, "/dev/null", 0), proc, host.masked_files[i]);
    for (int i = 0; host.masked_directories[i]; i++)
        attach(s, clone_tree(s, root, "root", 0), proc, host.masked_directories[i]);
    for (int i = 0; host.read_only[i]; i++) {
        long tree = clone_tree(s, proc, host.read_only[i], 0);
        set_attributes(s, tree, "", AT_EMPTY_PATH, attributes | MOUNT_ATTR_RDONLY);
        attach(s, tree, proc, host.read_only[i]);
    }
}

static void new_dev(struct sandbox *s, long root) {
    static const char *const devices[] = {"/dev/null",    "/dev/zero", "/dev/full", "/dev/random",
                                          "/dev/urandom", "/dev/tty",  NULL};
    static const char *const links[] = {
        "/proc/self/fd", "fd", "/proc/self/fd/0", "stdin", "/proc/self/fd/1", "stdout", "/proc/self/fd/2", "stderr", "pts/ptmx",
        "ptmx",          NULL};
    long dev = new_mount(s, "tmpfs", "mode", "0755", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
    long trees[sizeof devices / sizeof *devices];
    /* mknod() of a device is refused in a user namespace: the host's are bound, and found before they are covered. */
    for (int i = 0; devices[i]; i++)
        trees[i] = clone_tree(s, AT_FDCWD, devices[i], 0);
    attach(s, dev, root, "dev");
    for (int i = 0; devices[i]; i++) {
        must(s, SYS(mknodat, dev, devices[i] + 5, S_IFREG | 0666, 0), devices[i]);
        attach(s, trees[i], dev, devices[i] + 5);
    }
    for (int i = 0; links[i]; i += 2)
        must(s, SYS(symlinkat, links[i], dev, links[i + 1]), links[i + 1]);
    must(s, SYS(mkdirat, dev, "pts", 0755), "pts");
    must(s, SYS(mkdirat, dev, "shm", 01777), "shm");
    must(s, SYS(mkdirat, dev, "mqueue", 0755), "mqueue");
    attach(s, new_mount(s, "devpts", "ptmxmode", "0666", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC), dev, "pts");
    attach(s, new_mount(s, "tmpfs", "mode", "1777", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV), dev, "shm");
    attach(s, new_mount(s, "mqueue", NULL, NULL, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC), dev, "mqueue");
}

static void loopback_up(struct sandbox *s) {
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    long fd = must(s, SYS(socket, AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket");
    must(s, SYS(ioctl, fd, SIOCSIFFLAGS, &request), "SIOCSIFFLAGS");
}

static void give_up_privileges(struct sandbox *s) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {{0, 0, 0}, {0, 0, 0}};
    must(s, SYS(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
    must(s, SYS(capset, &header, none), "capset");
}

static void child(void *argument) {
    struct sandbox *s = argument;
    const uint64_t nothing_blocked = 0;
    char *environment[] = {"PATH=/usr/local/bin:/usr/bin:/bin", NULL};
    /* These need no id map, and take as long as the parent takes to write it. */
    for (int i = 0; i <= CAP_LAST_CAP; i++)
        SYS(prctl, PR_CAPBSET_DROP, i, 0, 0, 0);
    must(s, SYS(sethostname, "sandbox", 7), "sethostname");
    if (!(s->variant & NO_NET))
        loopback_up(s);

    long root = s->variant & (HOST_ROOT_BIND | IN_PLACE) ? whole_root(s) : skeleton_root(s);
    new_proc(s, root);
    new_dev(s, root);
    attach(s, new_mount(s, "tmpfs", "mode", "1777", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV), root, "tmp");
    if (!(s->variant & IN_PLACE)) {
        must(s, SYS(fchdir, root), "fchdir");
        must(s, SYS(pivot_root, ".", "."), "pivot_root");
        must(s, SYS(umount2, ".", DETACH), "umount2");
    }
    must(s, SYS(chdir, "/"), "chdir");
    SYS(setsid, 0);
    give_up_privileges(s);
    must(s, SYS(close_range, 3, ~0U, 0), "close_range");
    SYS(rt_sigprocmask, SIG_SETMASK, &nothing_blocked, 0, sizeof nothing_blocked);
    must(s, SYS(execve, s->argv[0], s->argv, environment), s->argv[0]);
}

static void note(const char *list[], const char *name) {
    for (int i = 0; i < MOST - 1; i++)
        if (!list[i]) {
            list[i] = name;
            return;
        }
}

static void look_at_proc(void) {
    static const char *const masked[] = {"acpi", "asound",      "interrupts", "kcore",       "keys", "latency_stats",
                                         "scsi", "sched_debug", "timer_list", "timer_stats", NULL};
    static const char *const read_only[] = {"bus", "fs", "irq", "sys", "sysrq-trigger", NULL};
    struct stat st;
    int proc = open("/proc", O_PATH | O_CLOEXEC);
    for (int i = 0; masked[i]; i++)
        if (fstatat(proc, masked[i], &st, 0) == 0)
            note(S_ISDIR(st.st_mode) ? host.masked_directories : host.masked_files, masked[i]);
    for (int i = 0; read_only[i]; i++)
        if (fstatat(proc, read_only[i], &st, 0) == 0)
            note(host.read_only, read_only[i]);
    close(proc);
}

static void look_at_host(void) {
    static const char *const private[] = {".", "..", "proc", "dev", "tmp", "root", "home", "lost+found", NULL};
    DIR *top = opendir("/");
    host.root = geteuid() == 0;
    for (struct dirent *entry; top && (entry = readdir(top)) != NULL;) {
        char path[sizeof entry->d_name + 1], target[256] = "";
        bool skip = false;
        for (int i = 0; private[i]; i++)
            skip |= strcmp(entry->d_name, private[i]) == 0;
        snprintf(path, sizeof path, "/%s", entry->d_name);
        if (!skip && entry->d_type == DT_DIR)
            note(host.directories, strdup(path));
        if (!skip && entry->d_type == DT_LNK && readlink(path, target, sizeof target - 1) > 0) {
            note(host.links, strdup(path));
            note(host.targets, strdup(target));
        }
    }
    if (top)
        closedir(top);
    look_at_proc();
}

static int write_proc(long pid, const char *file, const char *text) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%ld/%s", pid, file);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int result = write(fd, text, strlen(text)) < 0 ? -errno : 0;
    close(fd);
    return result;
}

/* Root inside is an id that owns nothing outside, or the caller where only that may be mapped (user_namespaces(7)). */
static int map_ids(long pid) {
    const char *format = host.root ? "0 %u 65536" : "0 %u 1";
    char uids[64], gids[64];
    snprintf(uids, sizeof uids, format, host.root ? (unsigned)FOREIGN_IDS : geteuid());
    snprintf(gids, sizeof gids, format, host.root ? (unsigned)FOREIGN_IDS : getegid());
    int error = host.root ? 0 : write_proc(pid, "setgroups", "deny");
    error = error ? error : write_proc(pid, "uid_map", uids);
    return error ? error : write_proc(pid, "gid_map", gids);
}

/* Runs argv in a sandbox and waits for its end.  Returns its exit status, 128 + a signal that ended it, or -errno. */
static int sandbox(int variant, char *const argv[]) {
    char stack[STACK] __attribute__((aligned(16)));
    struct sandbox s = {.variant = variant, .argv = argv};
    sigset_t all, before;
    siginfo_t info;
    int pidfd = -1;
    struct clone_args args = {
        /* Handlers are the parent's code, and would run on the parent's memory. */
        .flags = CLONE_VM | CLONE_PIDFD | CLONE_CLEAR_SIGHAND | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWNS | CLONE_NEWUTS |
                 CLONE_NEWUSER | CLONE_NEWCGROUP | (variant & NO_NET ? 0 : CLONE_NEWNET),
        .pidfd = (uint64_t)(uintptr_t)&pidfd,
        .stack = (uint64_t)(uintptr_t)stack,
        .stack_size = sizeof stack,
    };
    pthread_once(&host_known, look_at_host);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    long pid = clone_to(&args, child, &s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (pid < 0)
        return (int)pid;
    int error = map_ids(pid);
    if (error)
        syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
    s.mapped = 1;
    syscall(SYS_futex, &s.mapped, FUTEX_WAKE_PRIVATE, 1);
    while (waitid((idtype_t)BY_PIDFD, (id_t)pidfd, &info, WEXITED | __WALL) != 0 && errno == EINTR)
        ;
    close(pidfd);
    if (s.error)
        fprintf(stderr, "floor: %s: %s\n", s.step, strerror((int)-s.error));
    if (error || s.error)
        return error ? error : (int)s.error;
    return info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
}

/* For a foreign-function interface: one call, one sandbox with /bin/true in it. */
int floor_sandbox(int variant) {
    static char *const argv[] = {"/bin/true", NULL};
    return sandbox(variant, argv);
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000U + (uint64_t)t.tv_nsec;
}

static int by_size(const void *a, const void *b) {
    uintmax_t x = *(const uintmax_t *)a, y = *(const uintmax_t *)b;
    return (x > y) - (x < y);
}

static int one_after_another(int variant, long runs) {
    uintmax_t *times = calloc((size_t)runs, sizeof *times);
    int status = times ? 0 : -ENOMEM;
    for (long i = 0; i < runs && status == 0; i++) {
        uint64_t start = now();
        status = floor_sandbox(variant);
        times[i] = now() - start;
    }
    if (status == 0) {
        qsort(times, (size_t)runs, sizeof *times, by_size);
        printf("{\"runs\": %ld, \"min_ns\": %ju, \"median_ns\": %ju}\n", runs, times[0], times[runs / 2]);
    }
    free(times);
    return status;
}

struct worker {
    pthread_t thread;
    int variant, status;
    uint64_t deadline;
    unsigned long made;
};

static void *work(void *argument) {
    struct worker *w = argument;
    while (w->status == 0 && now() < w->deadline) {
        w->status = floor_sandbox(w->variant);
        w->made++;
    }
    return NULL;
}

static int at_once(int variant, int threads, double seconds) {
    struct worker *workers = calloc((size_t)threads, sizeof *workers);
    uint64_t start = now();
    unsigned long made = 0;
    int status = workers ? 0 : -ENOMEM, started = 0;
    while (status == 0 && started < threads) {
        workers[started] = (struct worker){.variant = variant, .deadline = start + (uint64_t)(seconds * 1e9)};
        status = -pthread_create(&workers[started].thread, NULL, work, &workers[started]);
        started += status == 0;
    }
    for (int i = 0; i < started; i++) {
        pthread_join(workers[i].thread, NULL);
        made += workers[i].made;
        status = status ? status : workers[i].status;
    }
    if (status == 0)
        printf("{\"threads\": %d, \"sandboxes\": %lu, \"per_second\": %.1f}\n", threads, made,
               (double)made * 1e9 / (double)(now() - start));
    free(workers);
    return status;
}

int main(int argc, char *argv[]) {
    int variant = 0, threads = 0;
    long runs = 0;
    double seconds = 3;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--no-net") == 0)
            variant |= NO_NET;
        else if (strcmp(argv[i], "--host-root-bind") == 0)
            variant |= HOST_ROOT_BIND;
        else if (strcmp(argv[i], "--in-place") == 0)
            variant |= IN_PLACE;
        else if (strcmp(argv[i], "--threads") == 0 && i + 1 < argc)
            threads = atoi(argv[++i]);
        else if (strcmp(argv[i], "--seconds") == 0 && i + 1 < argc)
            seconds = atof(argv[++i]);
        else if (strcmp(argv[i], "--run") == 0 && i + 1 < argc)
            return sandbox(variant, argv + i + 1) & 255;
        else if (strcmp(argv[i], "--in-one-process") != 0) /* which is what it does anyway */
            runs = strtol(argv[i], NULL, 10);
    }
    if (threads <= 0 && runs <= 0) {
        fputs("usage: floor [--no-net] [--host-root-bind | --in-place] N | --threads T --seconds S | --run COMMAND...\n",
              stderr);
        return 2;
    }
    int status = threads > 0 ? at_once(variant, threads, seconds) : one_after_another(variant, runs);
    if (status != 0)
        fprintf(stderr, "floor: failed with %d\n", status);
    return status != 0;
}
