/* Thin, typed faces of system calls that Python's os module lacks.  -1 and errno, as libc does. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <sched.h>
#include <stddef.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sys.h"
#include "wrappers.h"

int isolib_receive(int fd) {
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr aligned;
    } control = {{0}};
    char word;
    struct iovec part = {&word, 1};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    const struct cmsghdr *first;
    int received = -1;
    if (recvmsg(fd, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) < 0)
        return -1;
    first = CMSG_FIRSTHDR(&header);
    if (first && first->cmsg_level == SOL_SOCKET && first->cmsg_type == SCM_RIGHTS)
        memcpy(&received, CMSG_DATA(first), sizeof(received));
    else
        errno = header.msg_flags & MSG_CTRUNC ? EMFILE : EPROTO;
    return received;
}

int isolib_setns(int fd, int kinds) {
    return setns(fd, kinds);
}

int isolib_unshare(int flags) {
    return unshare(flags);
}

int isolib_ns_ioctl_fd(int fd, unsigned int request) {
    return ioctl(fd, request, 0);
}

int isolib_ns_kind(int fd) {
    enum { NS_GET_NSTYPE = 0xb703 };
    return ioctl(fd, NS_GET_NSTYPE);
}

int isolib_is_in_first_userns(void) {
    const ino_t first_userns = 0xEFFFFFFDU; /* linux/nsfs.h, enum init_ns_ino */
    struct stat found;
    return stat("/proc/thread-self/ns/user", &found) < 0 ? -1 : found.st_ino == first_userns;
}

int isolib_pidfd_namespace(int pidfd, int kind) {
    enum { PIDFS_MAGIC = 0xff00 }; /* _IO(0xFF, kind), since 6.11 */
    return ioctl(pidfd, (unsigned long)(PIDFS_MAGIC | kind), 0);
}

int isolib_link_up(const char *name) {
    struct ifreq request = {0};
    int result, fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    strncpy(request.ifr_name, name, sizeof(request.ifr_name) - 1);
    result = ioctl(fd, SIOCGIFFLAGS, &request);
    if (result == 0) {
        request.ifr_flags |= IFF_UP;
        result = ioctl(fd, SIOCSIFFLAGS, &request);
    }
    close(fd);
    return result;
}

int isolib_netlink_prepare(int fd) {
    enum { SOL_NETLINK_LEVEL = 270, CAP_ACK = 10, EXT_ACK = 11, STRICT_CHECK = 12, BUFFER = 1 << 20, ROOM = 1 << 23 };
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    const int on = 1, size = BUFFER, room = ROOM;
    /* Root's may be as large as he likes; for others net.core.rmem_max and wmem_max bound them. */
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) < 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room)) < 0) /* a batch goes in one piece */
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
    setsockopt(fd, SOL_NETLINK_LEVEL, CAP_ACK, &on, sizeof(on));
    setsockopt(fd, SOL_NETLINK_LEVEL, EXT_ACK, &on, sizeof(on));
    setsockopt(fd, SOL_NETLINK_LEVEL, STRICT_CHECK, &on, sizeof(on)); /* dumps of one device, of one family */
    /* What is answered is there when a send returns. */
    if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
        return -1;
    /* It gets a number, and answers of nobody but the kernel: root of the namespace could send it some of his own making. */
    return connect(fd, (const struct sockaddr *)&kernel, sizeof(kernel));
}

/* Sends requests and collects what is answered, in one call: the interpreter is given up once. */
int isolib_netlink_talk(int fd, const char *sent, uint32_t size, char *heard, uint32_t room, int32_t *error) {
    uint32_t done = 0;
    *error = 0;
    if (send(fd, sent, size, 0) < 0)
        return -1;
    while (room - done >= ISOLIB_NETLINK_PART) {
        ssize_t got = recv(fd, heard + done, room - done, MSG_DONTWAIT | MSG_TRUNC);
        if (got < 0 && errno == EAGAIN)
            break;
        if (got < 0 || got > (ssize_t)(room - done)) {
            *error = got < 0 ? errno : EMSGSIZE;
            break;
        }
        done += (uint32_t)got;
    }
    return (int)done;
}

/* A number that no other thread of this process has, had or will have; what Python knows of threads may be gevent's. */
uint64_t isolib_thread_number(void) {
    static uint64_t last;
    static __thread uint64_t number;
    if (!number)
        number = __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED);
    return number;
}

int64_t isolib_fs_magic(int fd) {
    struct statfs status;
    return fstatfs(fd, &status) < 0 ? -1 : (int64_t)(uint32_t)status.f_type;
}

int isolib_openat2(int dir, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve) {
    struct iso_open_how how = {flags, mode, resolve};
    return (int)syscall(__NR_openat2, dir, path, &how, sizeof(how));
}

int isolib_renameat2(int old_dir, const char *old, int new_dir, const char *new, unsigned int flags) {
    return (int)syscall(__NR_renameat2, old_dir, old, new_dir, new, flags);
}

int isolib_open_tree(int dir, const char *path, unsigned int flags) {
    return (int)syscall(__NR_open_tree, dir, path, flags);
}

int isolib_move_mount(int from_dir, const char *from, int to_dir, const char *to, unsigned int flags) {
    return (int)syscall(__NR_move_mount, from_dir, from, to_dir, to, flags);
}

int isolib_fsopen(const char *type, unsigned int flags) {
    return (int)syscall(__NR_fsopen, type, flags);
}

int isolib_fsconfig(int fd, unsigned int command, const char *key, const char *value, int aux) {
    return (int)syscall(__NR_fsconfig, fd, command, key, value, aux);
}

int isolib_fsmount(int fd, unsigned int flags, unsigned int attributes) {
    return (int)syscall(__NR_fsmount, fd, flags, attributes);
}

int isolib_mount_setattr(int dir, const char *path, unsigned int flags, uint64_t set, uint64_t clear, uint64_t propagation,
                         int userns) {
    struct iso_mount_attr attr = {set, clear, propagation, userns < 0 ? 0 : (uint64_t)userns};
    return (int)syscall(__NR_mount_setattr, dir, path, flags, &attr, sizeof(attr));
}

int isolib_mount(const char *source, const char *target, const char *type, uint64_t flags, const char *data) {
    return mount(source, target, type, flags, data);
}

int isolib_umount2(const char *target, int flags) {
    return umount2(target, flags);
}

int isolib_pidfd_send_signal(int pidfd, int signal) {
    return (int)syscall(__NR_pidfd_send_signal, pidfd, signal, NULL, 0);
}

int isolib_pty_size(int fd, int rows, int columns) {
    struct winsize size = {(unsigned short)rows, (unsigned short)columns, 0, 0};
    return ioctl(fd, TIOCSWINSZ, &size);
}

/* Asks for a process described by no bytes at all: EINVAL where the call can be made, and nothing happens. */
int isolib_clone3_size(void) {
    return (int)syscall(__NR_clone3, NULL, 0);
}

/* An inotify descriptor that tells when something in a directory is removed. */
int isolib_watch_removals(const char *directory) {
    int error, fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (fd < 0)
        return -1;
    if (inotify_add_watch(fd, directory, IN_DELETE | IN_ONLYDIR) < 0) {
        error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

int isolib_landlock_abi(void) {
    enum { CREATE_RULESET = 444, VERSION = 1 };
    return (int)syscall(CREATE_RULESET, NULL, 0, VERSION);
}

int isolib_security_modules(uint64_t *ids, uint32_t count) {
    enum { LIST_MODULES = 461 }; /* 6.8 */
    uint32_t size = (uint32_t)(count * sizeof(*ids));
    return (int)syscall(LIST_MODULES, ids, &size, 0);
}

/* ---- BPF ---- */

/* Always the whole union, and zeroed by the caller: kernels 6.17 to 7.1 write past a shorter one. */
static int bpf(int command, union bpf_attr *attr) {
    return (int)syscall(__NR_bpf, command, attr, sizeof(*attr));
}

int isolib_bpf_device_program(const uint64_t *instructions, uint32_t count) {
    enum { ATTEMPTS = 8 };
    int fd, attempt = 0;
    union bpf_attr attr;
    memset(&attr, 0, sizeof(attr));
    attr.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
    attr.insns = (uintptr_t)instructions;
    attr.insn_cnt = count;
    attr.license = (uintptr_t)"MIT";
    strncpy(attr.prog_name, "isolib_devices", sizeof(attr.prog_name) - 1);
    /* The verifier gives up for a signal that is about to be handled. */
    do
        fd = bpf(BPF_PROG_LOAD, &attr);
    while (fd < 0 && errno == EAGAIN && ++attempt < ATTEMPTS);
    return fd;
}

int isolib_bpf_attach(int group, int program, uint32_t flags) {
    union bpf_attr attr;
    memset(&attr, 0, sizeof(attr));
    attr.target_fd = (uint32_t)group;
    attr.attach_bpf_fd = (uint32_t)program;
    attr.attach_type = BPF_CGROUP_DEVICE;
    attr.attach_flags = flags;
    return bpf(BPF_PROG_ATTACH, &attr);
}

int isolib_bpf_detach(int group, int program) {
    union bpf_attr attr;
    memset(&attr, 0, sizeof(attr));
    attr.target_fd = (uint32_t)group;
    attr.attach_bpf_fd = (uint32_t)program;
    attr.attach_type = BPF_CGROUP_DEVICE;
    return bpf(BPF_PROG_DETACH, &attr);
}

int isolib_bpf_attached(int group, uint32_t flags, uint32_t *ids, uint32_t *count) {
    int result;
    union bpf_attr attr;
    memset(&attr, 0, sizeof(attr));
    attr.query.target_fd = (uint32_t)group;
    attr.query.attach_type = BPF_CGROUP_DEVICE;
    attr.query.query_flags = flags;
    attr.query.prog_ids = (uintptr_t)ids;
    attr.query.prog_cnt = *count;
    result = bpf(BPF_PROG_QUERY, &attr);
    *count = attr.query.prog_cnt;
    return result;
}

int isolib_bpf_program_by_id(uint32_t id) {
    union bpf_attr attr;
    memset(&attr, 0, sizeof(attr));
    attr.prog_id = id;
    return bpf(BPF_PROG_GET_FD_BY_ID, &attr);
}

int isolib_bpf_program_info(int fd, struct isolib_bpf_program *program) {
    struct bpf_prog_info info;
    union bpf_attr attr;
    memset(&info, 0, sizeof(info));
    memset(&attr, 0, sizeof(attr));
    attr.info.bpf_fd = (uint32_t)fd;
    attr.info.info_len = sizeof(info);
    attr.info.info = (uintptr_t)&info;
    if (bpf(BPF_OBJ_GET_INFO_BY_FD, &attr) < 0)
        return -1;
    program->id = info.id;
    program->type = info.type;
    memcpy(program->tag, info.tag, sizeof(program->tag));
    memcpy(program->name, info.name, sizeof(program->name));
    return 0;
}

/* ---- the image ---- */

static int copy_file(int from, int to) {
    struct stat status;
    off_t done = 0;
    if (fstat(from, &status) < 0)
        return -1;
    while (done < status.st_size)
        if (sendfile(to, from, &done, (size_t)(status.st_size - done)) <= 0)
            return -1;
    return 0;
}

/* A private copy of the launcher that nothing can change: the guest must find no host file behind /proc/1/exe. */
int isolib_launcher_seal(const char *path) {
    enum { EXECUTABLE = 0x10 /* MFD_EXEC, 6.3 */ };
    int result = -1, file = open(path, O_RDONLY | O_CLOEXEC), memory;
    if (file < 0)
        return -1;
    memory = memfd_create("isolib-launcher", MFD_CLOEXEC | MFD_ALLOW_SEALING | EXECUTABLE);
    if (memory < 0 && errno == EINVAL)
        memory = memfd_create("isolib-launcher", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    memory = isolib_raise_fd(memory);
    if (memory >= 0)
        result = copy_file(file, memory);
    if (result == 0)
        result = fchmod(memory, 0555);
    if (result == 0)
        result = fcntl(memory, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
    if (result < 0 && memory >= 0) {
        int error = errno;
        close(memory);
        errno = error;
        memory = -1;
    }
    close(file);
    return memory;
}

/* ---- what failed ---- */

#define CALL(name) {__NR_##name, #name}
static const struct {
    int32_t number;
    const char *name;
} call_names[] = {CALL(capget),
                  CALL(capset),
                  CALL(chdir),
                  CALL(clock_gettime),
                  CALL(clone),
                  CALL(clone3),
                  CALL(close),
                  CALL(close_range),
                  CALL(dup3),
                  CALL(execve),
                  CALL(execveat),
                  CALL(fchdir),
                  CALL(fchown),
                  CALL(fcntl),
                  CALL(fsconfig),
                  CALL(fsmount),
                  CALL(fsopen),
                  CALL(getcwd),
                  CALL(getdents64),
                  CALL(getresgid),
                  CALL(getresuid),
                  CALL(getrusage),
                  CALL(ioctl),
                  CALL(keyctl),
                  CALL(kill),
                  CALL(landlock_restrict_self),
                  CALL(lseek),
                  CALL(memfd_create),
                  CALL(mkdirat),
                  CALL(mknodat),
                  CALL(mmap),
                  CALL(mount_setattr),
                  CALL(move_mount),
                  CALL(open_tree),
                  CALL(openat),
                  CALL(openat2),
                  CALL(personality),
                  CALL(pidfd_open),
                  CALL(pidfd_send_signal),
                  CALL(pipe2),
                  CALL(pivot_root),
                  CALL(ppoll),
                  CALL(prctl),
                  CALL(prlimit64),
                  CALL(read),
                  CALL(recvfrom),
                  CALL(recvmsg),
                  CALL(rt_sigaction),
                  CALL(rt_sigprocmask),
                  CALL(sched_setaffinity),
                  CALL(seccomp),
                  CALL(sendmsg),
                  CALL(setdomainname),
                  CALL(setgroups),
                  CALL(sethostname),
                  CALL(setns),
                  CALL(setpgid),
                  CALL(setpriority),
                  CALL(setresgid),
                  CALL(setresuid),
                  CALL(set_robust_list),
                  CALL(setsid),
                  CALL(setsockopt),
                  CALL(signalfd4),
                  CALL(socket),
                  CALL(socketpair),
                  CALL(statx),
                  CALL(symlinkat),
                  CALL(umask),
                  CALL(umount2),
                  CALL(unshare),
                  CALL(wait4),
                  CALL(write),
                  CALL(writev)};

const char *isolib_call_name(int32_t number) {
    for (size_t i = 0; i < sizeof(call_names) / sizeof(call_names[0]); i++)
        if (call_names[i].number == number)
            return call_names[i].name;
    return NULL;
}
