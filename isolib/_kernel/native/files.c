/*
 * Names below a directory's descriptor, many in one call: thousands of small files are read, made and removed, and from Python
 * each of the five to ten system calls for one would give the GIL away.  Nothing here follows a symbolic link.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "files.h"
#include "wrappers.h"

static void close_quietly(int fd) {
    int error = errno;
    close(fd);
    errno = error;
}

/* ---- extended attributes ---- */

/* The same number in every architecture, since 6.13. */
enum { NR_SETXATTRAT = 463, NR_GETXATTRAT, NR_LISTXATTRAT };

struct xattr_value {
    uint64_t value __attribute__((aligned(8)));
    uint32_t size;
    uint32_t flags;
};

/* Without them a name is reached through the directory's magic link: a path of which only that is followed. */
enum { IN_PROC_ROOM = NAME_MAX + sizeof("/proc/self/fd/2147483647/") };

static int has_xattrat(void) {
    enum { UNKNOWN, NO, YES };
    static int known = UNKNOWN;
    int now = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (now == UNKNOWN) {
        /* A kernel that has it sees that there is no such descriptor; a filter may answer EPERM to what it does not know. */
        now = syscall(NR_LISTXATTRAT, -1, "x", 0, NULL, 0) < 0 && errno == EBADF ? YES : NO;
        __atomic_store_n(&known, now, __ATOMIC_RELAXED);
    }
    return now == YES;
}

static const char *in_proc(char *path, int dir, const char *name) {
    if (snprintf(path, IN_PROC_ROOM, "/proc/self/fd/%d/%s", dir, name) < IN_PROC_ROOM)
        return path;
    errno = ENAMETOOLONG;
    return NULL;
}

int64_t isolib_xattr_list(int dir, const char *name, char *names, uint64_t room) {
    char path[IN_PROC_ROOM];
    if (has_xattrat())
        return syscall(NR_LISTXATTRAT, dir, name, AT_SYMLINK_NOFOLLOW, names, room);
    return in_proc(path, dir, name) ? llistxattr(path, names, room) : -1;
}

int64_t isolib_xattr_get(int dir, const char *name, const char *attribute, void *value, uint64_t room) {
    char path[IN_PROC_ROOM];
    struct xattr_value told = {(uint64_t)(uintptr_t)value, (uint32_t)room, 0};
    if (has_xattrat())
        return syscall(NR_GETXATTRAT, dir, name, AT_SYMLINK_NOFOLLOW, attribute, &told, sizeof(told));
    return in_proc(path, dir, name) ? lgetxattr(path, attribute, value, room) : -1;
}

int isolib_xattr_set(int dir, const char *name, const char *attribute, const void *value, uint64_t size) {
    char path[IN_PROC_ROOM];
    struct xattr_value told = {(uint64_t)(uintptr_t)value, (uint32_t)size, 0};
    if (has_xattrat())
        return (int)syscall(NR_SETXATTRAT, dir, name, AT_SYMLINK_NOFOLLOW, attribute, &told, sizeof(told));
    return in_proc(path, dir, name) ? lsetxattr(path, attribute, value, size, 0) : -1;
}

int isolib_chmod_at(int dir, const char *name, uint32_t mode) {
    /* libc goes by way of an O_PATH descriptor where the kernel has no fchmodat2 (6.6). */
    return fchmodat(dir, name, mode, AT_SYMLINK_NOFOLLOW);
}

/* ---- looking ---- */

static int open_to_read(int dir, const char *name) {
    /* Not blocking: the name may stand for a FIFO by now. */
    enum { READING = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC };
    int fd = openat(dir, name, READING | O_NOATIME);
    if (fd < 0 && errno == EPERM) /* O_NOATIME is the owner's right */
        fd = openat(dir, name, READING);
    return fd;
}

int isolib_open_to_read(int dir, const char *name) {
    return open_to_read(dir, name);
}

int isolib_open_seen(int dir, const char *name, const struct statx *seen) {
    struct stat status;
    int fd = open_to_read(dir, name);
    if (fd < 0)
        return -1;
    if (fstat(fd, &status) == 0 && status.st_ino == seen->stx_ino && (uint64_t)status.st_size == seen->stx_size &&
        status.st_dev == makedev(seen->stx_dev_major, seen->stx_dev_minor))
        return fd;
    close_quietly(fd);
    return -1;
}

int isolib_read_whole(int fd, uint64_t size, char *data) {
    uint64_t done = 0;
    ssize_t got = 0;
    while (done < size && (got = read(fd, data + done, size - done)) > 0)
        done += (uint64_t)got;
    return done == size;
}

static void note(struct isolib_found *row, const struct statx *seen) {
    row->device = makedev(seen->stx_dev_major, seen->stx_dev_minor);
    row->inode = seen->stx_ino;
    row->size = seen->stx_size;
    row->modified_s = seen->stx_mtime.tv_sec;
    row->modified_ns = seen->stx_mtime.tv_nsec;
    row->mode = seen->stx_mode;
    row->uid = seen->stx_uid;
    row->gid = seen->stx_gid;
    row->links = seen->stx_nlink;
    row->major = seen->stx_rdev_major;
    row->minor = seen->stx_rdev_minor;
}

/* The kernel takes as much memory as there is room for: little will do, nearly always. */
static int64_t list_attributes(int fd, int dir, const char *name, char *data) {
    enum { FEW = 256 };
    int64_t size = fd >= 0 ? flistxattr(fd, data, FEW) : isolib_xattr_list(dir, name, data, FEW);
    if (size < 0 && errno == ERANGE)
        size = isolib_xattr_list(dir, name, data, ISOLIB_XATTRS_ROOM);
    return size < 0 && errno == ENOTSUP ? 0 : size;
}

/* Looks at one; returns how many bytes of the data it has used. */
static uint64_t look_at(int dir, const char *name, struct isolib_found *row, char *data, uint32_t small) {
    struct statx seen;
    int64_t size;
    int fd = -1;
    memset(row, 0, sizeof(*row));
    if (statx(dir, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_BASIC_STATS, &seen) < 0) {
        row->error = errno;
        return 0;
    }
    note(row, &seen);
    if (S_ISREG(seen.stx_mode) && seen.stx_size > 0 && seen.stx_size <= small)
        fd = isolib_open_seen(dir, name, &seen);
    size = list_attributes(fd, dir, name, data);
    if (size < 0) {
        row->error = errno;
        if (fd >= 0)
            close(fd);
        return 0;
    }
    row->xattrs = (uint32_t)size;
    data += row->xattrs;
    if (S_ISLNK(seen.stx_mode)) {
        size = readlinkat(dir, name, data, PATH_MAX);
        if (size < 0)
            row->error = errno;
        else
            row->content = (uint32_t)size;
        row->is_whole = size >= 0;
    } else if (S_ISREG(seen.stx_mode) && seen.stx_size <= small) {
        row->is_whole = seen.stx_size == 0 || (fd >= 0 && isolib_read_whole(fd, seen.stx_size, data));
        row->content = row->is_whole ? (uint32_t)seen.stx_size : 0;
    }
    if (fd >= 0)
        close(fd);
    return row->xattrs + row->content;
}

uint32_t isolib_look(int dir, const char *names, uint32_t count, struct isolib_found *found, char *data, uint64_t room,
                     uint32_t small) {
    const uint64_t needed = ISOLIB_XATTRS_ROOM + (small > PATH_MAX ? small : PATH_MAX);
    uint32_t done = 0;
    while (done < count && room >= needed) {
        uint64_t used = look_at(dir, names, &found[done], data, small);
        data += used;
        room -= used;
        names += strlen(names) + 1;
        if (S_ISDIR(found[done++].mode)) /* what is in it comes first; what is read before that would only wait */
            break;
    }
    return done;
}

/* ---- making ---- */

static int fill(int fd, const char *data, uint64_t size) {
    while (size > 0) {
        ssize_t put = write(fd, data, size);
        if (put < 0)
            return -1;
        data += put;
        size -= (uint64_t)put;
    }
    return 0;
}

/* A write and a change of the owner take set-user-id away: the mode comes after them, and the time last. */
static int dress(int fd, const struct isolib_dress *dress) {
    const struct timespec times[2] = {{0, UTIME_OMIT}, {dress->modified_s, dress->modified_ns}};
    if (dress->is_owned && fchown(fd, dress->uid, dress->gid) < 0)
        return ISOLIB_MAKE_OWNER;
    if (fchmod(fd, dress->mode) < 0)
        return ISOLIB_MAKE_MODE;
    return futimens(fd, times) < 0 ? ISOLIB_MAKE_TIME : 0;
}

int isolib_make_file(int dir, const char *name, const char *data, uint64_t size, const struct isolib_dress *wanted) {
    enum { PRIVATE = 0600 };
    int stage, fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, PRIVATE);
    if (fd < 0)
        return ISOLIB_MAKE_OPEN;
    stage = fill(fd, data, size) < 0 ? ISOLIB_MAKE_WRITE : dress(fd, wanted);
    close_quietly(fd);
    if (stage != 0) {
        int error = errno;
        unlinkat(dir, name, 0);
        errno = error;
    }
    return stage;
}

/* ---- comparing ---- */

/* Of an encoded (compressed) extent it is told where that begins, and not which part of it the file has. */
enum {
    EXTENTS = 64,
    TELLS_NOTHING = FIEMAP_EXTENT_UNKNOWN | FIEMAP_EXTENT_DELALLOC | FIEMAP_EXTENT_NOT_ALIGNED | FIEMAP_EXTENT_ENCODED,
};

struct extents {
    struct fiemap map;
    struct fiemap_extent extents[EXTENTS];
};

static int list_extents(int fd, uint64_t start, struct extents *out) {
    memset(&out->map, 0, sizeof(out->map));
    out->map.fm_start = start;
    out->map.fm_length = FIEMAP_MAX_OFFSET - start;
    out->map.fm_flags = FIEMAP_FLAG_SYNC;
    out->map.fm_extent_count = EXTENTS;
    return ioctl(fd, FS_IOC_FIEMAP, &out->map);
}

static int is_same_extent(const struct fiemap_extent *a, const struct fiemap_extent *b) {
    const uint32_t unshared = ~(uint32_t)(FIEMAP_EXTENT_SHARED | FIEMAP_EXTENT_LAST);
    return a->fe_logical == b->fe_logical && a->fe_physical == b->fe_physical && a->fe_length == b->fe_length &&
           ((a->fe_flags ^ b->fe_flags) & unshared) == 0 && (a->fe_flags & TELLS_NOTHING) == 0 &&
           (a->fe_flags & FIEMAP_EXTENT_SHARED) != 0 && (b->fe_flags & FIEMAP_EXTENT_SHARED) != 0;
}

int isolib_same_extents(int one, int other) {
    struct extents a, b;
    uint64_t start = 0;
    for (;;) {
        const struct fiemap_extent *last;
        if (list_extents(one, start, &a) < 0 || list_extents(other, start, &b) < 0)
            return 0;
        if (a.map.fm_mapped_extents != b.map.fm_mapped_extents || a.map.fm_mapped_extents == 0)
            return 0;
        for (uint32_t i = 0; i < a.map.fm_mapped_extents; i++)
            if (!is_same_extent(&a.extents[i], &b.extents[i]))
                return 0;
        last = &a.extents[a.map.fm_mapped_extents - 1];
        if (last->fe_flags & FIEMAP_EXTENT_LAST)
            return (b.extents[a.map.fm_mapped_extents - 1].fe_flags & FIEMAP_EXTENT_LAST) != 0;
        start = last->fe_logical + last->fe_length;
    }
}
