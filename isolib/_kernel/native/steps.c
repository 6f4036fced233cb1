/* One step of the plan that concerns this process alone: a switch over the kinds, each a system call or a few. */
#include "launcher.h"
#include <linux/stat.h>

static void set_slot(struct launcher *l, int32_t index, long fd) {
    if (l->slots[index] >= 0)
        SYS1(close, l->slots[index]);
    l->slots[index] = (int32_t)fd;
}

static long into_slot(struct launcher *l, const struct isolib_step *step, long fd) {
    if (fd < 0)
        return fd;
    set_slot(l, step->out, fd);
    return 0;
}

static long open_beneath(int dir, const char *path, uint64_t flags, uint64_t mode_and_resolve) {
    struct iso_open_how how = {flags | ISO_O_CLOEXEC, mode_and_resolve >> 32, mode_and_resolve & 0xffffffffU};
    long result = -EAGAIN;
    /* The kernel cannot tell whether ".." stays beneath while anything on the system is being renamed: ask again. */
    for (int tries = 0; tries < 1000 && result == -EAGAIN; tries++)
        result = SYS4(openat2, dir, path, &how, sizeof(how));
    return result;
}

/*
 * The mount point `path` beneath a root that may be hostile: every part is opened by openat2, which follows symbolic links as
 * if the root were "/" and no magic links, and parts that are absent are made in the directory that was opened before.
 */
enum { IN_ROOT = 0x10, NO_MAGICLINKS = 0x02, NO_SYMLINKS = 0x04, BENEATH = 0x08 };

static long make_part(long parent, const char *name, int is_directory, uint64_t mode) {
    long fd, result;
    if (is_directory) {
        result = SYS3(mkdirat, parent, name, mode);
    } else {
        fd = SYS4(openat, parent, name, ISO_O_CREAT | ISO_O_EXCL | ISO_O_WRONLY | ISO_O_CLOEXEC, mode);
        result = fd < 0 ? fd : SYS1(close, fd);
    }
    return result == -EEXIST ? 0 : result;
}

static long next_part(int root, long parent, const char *whole, const char *name, int is_directory, uint64_t mode) {
    uint64_t path_only = ISO_O_PATH | (is_directory ? ISO_O_DIRECTORY : 0);
    long fd = open_beneath(root, whole, path_only, IN_ROOT | NO_MAGICLINKS);
    if (fd != -ENOENT)
        return fd;
    fd = make_part(parent, name, is_directory, mode);
    if (fd < 0)
        return fd;
    return open_beneath((int)parent, name, path_only, BENEATH | NO_SYMLINKS);
}

static long open_target(int root, const char *path, int is_directory, uint64_t mode) {
    char whole[4096];
    size_t at = 0, size = length(path), name = 0;
    long parent, fd = open_beneath(root, path, ISO_O_PATH, IN_ROOT | NO_MAGICLINKS);
    if (fd != -ENOENT)
        return fd;
    if (size >= sizeof(whole))
        return -ENAMETOOLONG;
    parent = SYS3(fcntl, root, 1030, 0); /* F_DUPFD_CLOEXEC */
    while (at < size && parent >= 0) {
        int last;
        while (at < size && path[at] == '/') {
            whole[at] = '/';
            at++;
        }
        name = at;
        while (at < size && path[at] != '/') {
            whole[at] = path[at];
            at++;
        }
        whole[at] = 0;
        if (at == name)
            break;
        for (last = (int)at; path[last] == '/'; last++)
            ;
        last = path[last] == 0;
        fd = next_part(root, parent, whole, whole + name, !last || is_directory, last ? mode : 0755);
        SYS1(close, parent);
        parent = fd;
    }
    return parent;
}

static long write_file(int dir, const struct launcher *l, const struct isolib_step *step) {
    long fd = open_beneath(dir, text_of(l, step->text), step->flags, step->value), done = 0, result = 0;
    if (fd < 0)
        return fd;
    do {
        result = SYS3(write, fd, text_of(l, step->text2) + done, step->size2 - done);
        if (result > 0)
            done += result;
    } while (result > 0 && done < (long)step->size2);
    SYS1(close, fd);
    return result < 0 ? result : 0;
}

static long put(int fd, const char *data, const struct isolib_step *step) {
    long result;
    if (fd < 0 && step->flags & 1)
        return 0;
    result = SYS3(write, fd, data, step->size2);
    return result < 0 ? result : (result == (long)step->size2 ? 0 : -EIO);
}

static long mount_setattr_step(const struct launcher *l, const struct isolib_step *step) {
    struct iso_mount_attr attr = {step->value, step->size, step->size2, 0};
    if (step->fd2 >= 0)
        attr.userns = (uint64_t)slot(l, step->fd2);
    return SYS5(mount_setattr, slot(l, step->fd), text_of(l, step->text), step->flags, &attr, sizeof(attr));
}

static long fsconfig_step(const struct launcher *l, const struct isolib_step *step) {
    enum { SET_STRING = 1, SET_FD = 5 };
    const char *key = text_of(l, step->text), *value = text_of(l, step->text2);
    return SYS5(fsconfig, slot(l, step->fd), step->flags, *key ? key : 0, step->flags == SET_STRING ? value : 0,
                step->flags == SET_FD ? slot(l, step->fd2) : 0);
}

static long check_device(int fd, uint64_t number) {
    enum { TYPE = 0170000, CHARACTER = 0020000 };
    struct statx status = {0};
    long result = SYS5(statx, fd, "", ISO_AT_EMPTY_PATH, STATX_TYPE, &status);
    if (result < 0)
        return result;
    if ((status.stx_mode & TYPE) != CHARACTER || status.stx_rdev_major != number >> 32 ||
        status.stx_rdev_minor != (number & 0xffffffffU))
        return -ENODEV;
    return 0;
}

/* A working directory outside the root would be a way out of it; getcwd tells by "(unreachable)". */
static long change_directory(const char *path) {
    char where[4096];
    long result = SYS1(chdir, path);
    if (result < 0)
        return result;
    result = SYS2(getcwd, where, sizeof(where));
    if (result < 0)
        return result;
    return where[0] == '/' ? 0 : -EXDEV;
}

static long link_up(const char *name) {
    enum { INET = 2, DATAGRAM = 2, GET_FLAGS = 0x8913, SET_FLAGS = 0x8914, UP = 1 };
    struct {
        char name[16];
        int16_t flags;
        char rest[22];
    } request = {{0}, 0, {0}};
    long fd = SYS3(socket, INET, DATAGRAM | ISO_O_CLOEXEC, 0), result;
    if (fd < 0)
        return fd;
    for (size_t i = 0; i < sizeof(request.name) - 1 && name[i]; i++)
        request.name[i] = name[i];
    result = SYS3(ioctl, fd, GET_FLAGS, &request);
    if (result == 0) {
        request.flags |= UP;
        result = SYS3(ioctl, fd, SET_FLAGS, &request);
    }
    SYS1(close, fd);
    return result;
}

static long send_descriptor(int socket, int fd) {
    enum { NO_SIGNAL = 0x4000, DONT_WAIT = 0x40 };
    const char word = 0;
    struct iso_iovec part = {&word, 1};
    struct iso_fd_control control = {offsetof(struct iso_fd_control, fds) + 4, ISO_SOL_SOCKET, ISO_SCM_RIGHTS, {fd, -1}};
    struct iso_msghdr header = {0, 0, &part, 1, &control, sizeof(control), 0};
    long sent = SYS3(sendmsg, socket, &header, NO_SIGNAL | DONT_WAIT);
    return sent < 0 ? sent : 0;
}

static long pty_open(struct launcher *l, const struct isolib_step *step) {
    enum { LOCK = 0x40045431, GET_PEER = 0x5441, MODE = ISO_O_RDWR | ISO_O_NOCTTY | ISO_O_CLOEXEC };
    int32_t unlocked = 0;
    long peer, master = SYS4(openat, slot(l, step->fd), text_of(l, step->text), MODE, 0);
    if (master < 0)
        return master;
    set_slot(l, step->out, master);
    peer = SYS3(ioctl, master, LOCK, &unlocked);
    if (peer == 0)
        peer = SYS3(ioctl, master, GET_PEER, MODE);
    if (peer < 0)
        return peer;
    set_slot(l, step->fd2, peer);
    return 0;
}

static long stdio_step(int fd, int controlling) {
    enum { SET_CONTROLLING = 0x540e };
    for (int target = 0; target < 3; target++) {
        long result = SYS3(dup3, fd, target, 0);
        if (result < 0)
            return result;
    }
    return controlling ? SYS3(ioctl, 0, SET_CONTROLLING, 0) : 0;
}

static long drop_bounding(uint64_t stay) {
    enum { BOUNDING_DROP = 24 };
    for (int capability = 0; capability < 64; capability++) {
        long result;
        if (stay >> capability & 1)
            continue;
        result = SYS5(prctl, BOUNDING_DROP, capability, 0, 0, 0);
        if (result == -EINVAL)
            return 0; /* past the last that this kernel knows */
        if (result < 0)
            return result;
    }
    return 0;
}

/* Identity changes are verified: a set that did nothing must not pass for one that took. */
static long set_user(uint32_t id) {
    uint32_t now[3] = {~id, ~id, ~id};
    long result = SYS3(setresuid, id, id, id);
    if (result < 0)
        return result;
    SYS3(getresuid, &now[0], &now[1], &now[2]);
    return now[0] == id && now[1] == id && now[2] == id ? 0 : -EPERM;
}

static long set_group(uint32_t id) {
    uint32_t now[3] = {~id, ~id, ~id};
    long result = SYS3(setresgid, id, id, id);
    if (result < 0)
        return result;
    SYS3(getresgid, &now[0], &now[1], &now[2]);
    return now[0] == id && now[1] == id && now[2] == id ? 0 : -EPERM;
}

static long set_capabilities(uint64_t permitted, uint64_t inheritable) {
    enum { VERSION_3 = 0x20080522 };
    struct {
        uint32_t version;
        int32_t pid;
    } header = {VERSION_3, 0};
    uint32_t low = (uint32_t)permitted, high = (uint32_t)(permitted >> 32);
    uint32_t data[6] = {low, low, (uint32_t)inheritable, high, high, (uint32_t)(inheritable >> 32)};
    uint32_t now[6] = {0};
    long result = SYS2(capset, &header, data);
    if (result < 0)
        return result;
    result = SYS2(capget, &header, now);
    if (result < 0)
        return result;
    for (int i = 0; i < 6; i++)
        if (now[i] != data[i])
            return -EPERM;
    return 0;
}

static long set_ambient(uint64_t raised) {
    enum { AMBIENT = 47, RAISE = 2, CLEAR_ALL = 4 };
    long result = SYS5(prctl, AMBIENT, CLEAR_ALL, 0, 0, 0);
    for (int capability = 0; capability < 64 && result == 0; capability++)
        if (raised >> capability & 1)
            result = SYS5(prctl, AMBIENT, RAISE, capability, 0, 0);
    return result;
}

static long set_seccomp(const char *filter, uint32_t size, uint64_t flags) {
    enum { MODE_FILTER = 1 };
    struct {
        uint16_t count;
        const void *filter;
    } program = {(uint16_t)(size / 8), filter};
    return SYS3(seccomp, MODE_FILTER, flags, &program);
}

/* What is made for a guest has the modes that the plan says; the command gets the caller's mask back. */
static long set_umask(struct launcher *l, const struct isolib_step *step) {
    long before;
    if (step->flags & 1 && l->umask < 0)
        return 0;
    before = SYS1(umask, step->flags & 1 ? (uint64_t)l->umask : step->value);
    if (l->umask < 0)
        l->umask = (int32_t)before;
    return 0;
}

static int is_filtered(long result) {
    return result == -EPERM || result == -ENOSYS;
}

/*
 * A new session keyring.  Docker's filter answers EPERM to all calls of keyrings, and will to those of the command, which then
 * has none to reach.  One that refuses keyctl alone is no such thing: request_key would find the host's keys.  (Without a
 * filter the two calls fail with EFAULT, for they are given nothing.)
 */
static long join_keyring(void) {
    enum { JOIN_SESSION_KEYRING = 1 };
    long result = SYS2(keyctl, JOIN_SESSION_KEYRING, 0);
    if (is_filtered(result) && is_filtered(sys6(__NR_add_key, 0, 0, 0, 0, 0, 0)) &&
        is_filtered(sys6(__NR_request_key, 0, 0, 0, 0, 0, 0)))
        return -ENOSYS;
    return result == -ENOSYS ? -EPERM : result; /* only what is wholly absent is passed over */
}

static long set_rlimit(const struct isolib_step *step) {
    uint64_t limits[2] = {step->flags, step->value};
    return SYS4(prlimit64, 0, step->size, limits, 0);
}

static long run_mount_step(struct launcher *l, const struct isolib_step *step) {
    const char *text = text_of(l, step->text), *text2 = text_of(l, step->text2);
    int fd = slot(l, step->fd);
    switch (step->kind) {
    case STEP_OPEN:
        return into_slot(l, step, open_beneath(fd, text, step->flags, step->value));
    case STEP_TARGET:
        return into_slot(l, step, open_target(fd, text, step->flags & 1, step->value));
    case STEP_CLOSE:
        set_slot(l, step->fd, -1);
        return 0;
    case STEP_OPEN_TREE:
        return into_slot(l, step, SYS3(open_tree, fd, text, step->flags));
    case STEP_MOVE_MOUNT:
        return SYS5(move_mount, fd, text, slot(l, step->fd2), text2, step->flags);
    case STEP_MOUNT_SETATTR:
        return mount_setattr_step(l, step);
    case STEP_FSOPEN:
        return into_slot(l, step, SYS2(fsopen, text, step->flags));
    case STEP_FSCONFIG:
        return fsconfig_step(l, step);
    case STEP_FSMOUNT:
        return into_slot(l, step, SYS3(fsmount, fd, step->flags, step->value));
    case STEP_CHECK_DEVICE:
        return check_device(fd, step->value);
    case STEP_MKDIR:
        return SYS3(mkdirat, fd, text, step->value);
    case STEP_MKNOD:
        return SYS4(mknodat, fd, text, 0100000 | step->value, 0); /* S_IFREG */
    case STEP_SYMLINK:
        return SYS3(symlinkat, text2, fd, text);
    case STEP_WRITE:
        return write_file(fd, l, step);
    case STEP_PUT:
        return put(fd, text2, step);
    case STEP_PIVOT_ROOT:
        return SYS2(pivot_root, text, text2);
    case STEP_UMOUNT:
        return SYS2(umount2, text, step->flags);
    default:
        return -EPROTO;
    }
}

static long run_identity_step(struct launcher *l, const struct isolib_step *step) {
    const char *text = text_of(l, step->text), *text2 = text_of(l, step->text2);
    int fd = slot(l, step->fd);
    switch (step->kind) {
    case STEP_SETSID:
        return SYS0(setsid);
    case STEP_PTY_OPEN:
        return pty_open(l, step);
    case STEP_STDIO:
        return stdio_step(fd, (int)step->flags);
    case STEP_FCHOWN:
        return SYS3(fchown, fd, step->flags, step->value);
    case STEP_PRCTL:
        return SYS5(prctl, step->flags, step->value, 0, 0, 0);
    case STEP_RLIMIT:
        return set_rlimit(step);
    case STEP_UMASK:
        return set_umask(l, step);
    case STEP_PRIORITY:
        return SYS3(setpriority, 0, 0, (int)step->value);
    case STEP_PERSONALITY:
        return SYS1(personality, step->value);
    case STEP_AFFINITY:
        return SYS3(sched_setaffinity, 0, step->size2, text2);
    case STEP_KEYRING:
        return join_keyring();
    case STEP_BOUNDING:
        return drop_bounding(step->value);
    case STEP_SETGROUPS:
        return SYS2(setgroups, step->size2 / 4, text2);
    case STEP_SETGID:
        return set_group((uint32_t)step->value);
    case STEP_SETUID:
        return set_user((uint32_t)step->value);
    case STEP_CAPSET:
        return set_capabilities(step->flags, step->value);
    case STEP_AMBIENT:
        return set_ambient(step->value);
    case STEP_CLOSE_FDS:
        return iso_close_others(l->keep, l->keep_count, 0);
    case STEP_LANDLOCK:
        return SYS2(landlock_restrict_self, fd, step->flags);
    case STEP_SECCOMP:
        return set_seccomp(text2, step->size2, step->flags);
    case STEP_FAIL:
        return -(long)(step->value & 0xfff);
    default:
        return run_mount_step(l, step);
    }
    (void)text;
}

long run_step(struct launcher *l, const struct isolib_step *step) {
    const char *text = text_of(l, step->text);
    switch (step->kind) {
    case STEP_SETNS:
        return SYS2(setns, slot(l, step->fd), step->flags);
    case STEP_UNSHARE:
        return SYS1(unshare, step->flags);
    case STEP_FCHDIR:
        return SYS1(fchdir, slot(l, step->fd));
    case STEP_CHDIR:
        return change_directory(text);
    case STEP_SETHOSTNAME:
        return SYS2(sethostname, text, length(text));
    case STEP_SETDOMAINNAME:
        return SYS2(setdomainname, text, length(text));
    case STEP_LINK_UP:
        return link_up(text);
    case STEP_SOCKET:
        return into_slot(l, step, SYS3(socket, step->flags, step->value >> 32 | ISO_O_CLOEXEC, step->value & 0xffffffffU));
    case STEP_SEND:
        return send_descriptor(slot(l, step->fd2), slot(l, step->fd));
    default:
        return run_identity_step(l, step);
    }
}
