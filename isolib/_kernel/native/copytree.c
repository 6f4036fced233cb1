/*
 * Copies a tree as it is: contents, holes, owners, modes, times, extended attributes, hard links, special files.
 *
 * The work is a stack of directories to open and of lists of names in an open one, which several threads take from; the
 * caller's waits for them, so that it can leave off at any time.  Every name is used relative to a descriptor of its directory,
 * and no link is followed.  A directory gets its own mode and times when all below it is done.
 *
 * How deep a tree is, is not ours to choose: nothing here recurses, and a directory far down keeps no descriptors while it
 * waits for those below it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "files.h"
#include "wrappers.h"

enum {
    KEPT_DEPTH = 12,  /* a directory that lies deeper keeps no descriptors while it waits */
    NAMES = 16384,    /* bytes of directory entries that are one piece of work */
    BUFFER = 1 << 18, /* for contents that the kernel does not copy itself, and values of attributes: XATTR_SIZE_MAX fits */
    ATTRIBUTE_NAMES = 65536, /* XATTR_LIST_MAX */
    FEW_NAMES = 256,
    SMALL = 65536,   /* contents that a read and a write copy faster than the kernel does */
    PIECE = 1 << 26, /* of contents, between two looks at whether to stop */
    LINKS = 4096,    /* heads of the table of hard links */
    MOST_THREADS = 8,
    PATIENCE = 100, /* milliseconds, between two looks at what the caller has to do */
    PRIVATE = 0700
};

struct directory {
    struct directory *parent;
    struct directory *before, *after; /* of all that there are */
    int source, target;               /* -1: not open */
    int users;                        /* of the descriptors, at this moment */
    int pending;                      /* pieces of work in it and below; at 0 it is complete */
    int references;
    int is_complete;
    unsigned depth;
    struct stat status;
    char name[];
};

/* a piece of work: a directory to be opened, or names in an open one */
struct piece {
    struct piece *next;
    struct directory *directory;
    long size; /* of entries; 0: open it */
    char entries[];
};

/* a file of several names */
struct first {
    struct first *next;
    dev_t device;
    ino_t inode;
    nlink_t left;
    int is_there;
    struct directory *directory;
    char name[];
};

struct isolib_copy_state {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct piece *stack;
    struct directory *all;
    struct directory *warm; /* the one of those far down whose descriptors stay open, for the next is mostly below it */
    int running, working, stopped;
    int done; /* eventfd */
    int threads;
    pthread_t thread[MOST_THREADS];
    pthread_mutex_t linking;
    pthread_cond_t linked;
    struct first *links[LINKS];
    int no_clone;   /* the file system has no reflinks */
    off_t unshared; /* a file of up to so many bytes is copied faster than shared, and on the disk too */
    struct isolib_copy *copy;
};

struct worker {
    struct isolib_copy_state *state;
    char *buffer, *names;
};

/* ---- errors ---- */

static int is_stopped(struct isolib_copy_state *state) {
    return __atomic_load_n(&state->stopped, __ATOMIC_RELAXED);
}

static void stop(struct isolib_copy_state *state) {
    pthread_mutex_lock(&state->lock);
    __atomic_store_n(&state->stopped, 1, __ATOMIC_RELAXED);
    pthread_cond_broadcast(&state->changed);
    pthread_mutex_unlock(&state->lock);
    pthread_mutex_lock(&state->linking);
    pthread_cond_broadcast(&state->linked);
    pthread_mutex_unlock(&state->linking);
}

static void put_before(char *path, const char *name) {
    size_t length = strlen(path), more = strlen(name);
    if (!more || length + more + 2 > ISOLIB_TREE_PATH)
        return;
    memmove(path + more + (length ? 1 : 0), path, length + 1);
    memcpy(path, name, more);
    if (length)
        path[more] = '/';
}

/* The first one is told; what else fails is mostly its consequence. */
static int fail(struct isolib_copy_state *state, const char *call, const struct directory *directory, const char *name) {
    struct isolib_copy *copy = state->copy;
    int error = errno;
    pthread_mutex_lock(&state->lock);
    if (!copy->error) {
        copy->error = error;
        copy->call = call;
        copy->path[0] = '\0';
        put_before(copy->path, name);
        for (; directory; directory = directory->parent)
            put_before(copy->path, directory->name);
    }
    pthread_mutex_unlock(&state->lock);
    stop(state);
    return -1;
}

/* ---- directories and their descriptors ---- */

static struct directory *new_directory(struct isolib_copy_state *state, struct directory *parent, const char *name) {
    struct directory *made = calloc(1, sizeof(*made) + strlen(name) + 1);
    if (!made)
        return NULL;
    made->parent = parent;
    made->source = made->target = -1;
    made->pending = made->references = 1;
    strcpy(made->name, name);
    if (parent) {
        made->depth = parent->depth + 1;
        __atomic_add_fetch(&parent->pending, 1, __ATOMIC_RELAXED);
        __atomic_add_fetch(&parent->references, 1, __ATOMIC_RELAXED);
    }
    pthread_mutex_lock(&state->lock);
    made->after = state->all;
    if (state->all)
        state->all->before = made;
    state->all = made;
    pthread_mutex_unlock(&state->lock);
    return made;
}

static void close_directory(struct directory *directory) {
    if (directory->source >= 0)
        close(directory->source);
    if (directory->target >= 0)
        close(directory->target);
    directory->source = directory->target = -1;
}

static void forget(struct isolib_copy_state *state, struct directory *directory) {
    while (directory && __atomic_sub_fetch(&directory->references, 1, __ATOMIC_ACQ_REL) == 0) {
        struct directory *parent = directory->parent;
        pthread_mutex_lock(&state->lock);
        if (directory->after)
            directory->after->before = directory->before;
        if (directory->before)
            directory->before->after = directory->after;
        else
            state->all = directory->after;
        pthread_mutex_unlock(&state->lock);
        close_directory(directory);
        free(directory);
        directory = parent;
    }
}

static int open_beneath(int base, const char *path) {
    struct open_how how = {.flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
    int fd;
    do
        fd = (int)syscall(__NR_openat2, base, path, &how, sizeof(how));
    while (fd < 0 && (errno == EAGAIN || errno == EINTR));
    if (fd < 0 && errno == ENOSYS && !strchr(path, '/')) /* a filter hides it */
        fd = openat(base, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    return fd;
}

/* Opens anew what was closed: from the nearest above that is open, as many names at a time as make a path. */
static int walk(struct directory *to, int is_target) {
    struct directory *from = to, **way, *each;
    size_t count = 0, next = 0;
    char path[ISOLIB_TREE_PATH];
    int fd = -1, base;
    for (; from->source < 0; from = from->parent)
        count++;
    way = malloc(count * sizeof(*way));
    if (!way)
        return -1;
    for (each = to; each != from; each = each->parent)
        way[--count] = each;
    base = is_target ? from->target : from->source;
    for (each = NULL; each != to;) {
        size_t length = 0;
        int further;
        do {
            size_t more = strlen(way[next]->name);
            if (length + more + 2 > sizeof(path))
                break;
            if (length)
                path[length++] = '/';
            memcpy(path + length, way[next]->name, more + 1);
            length += more;
            each = way[next++];
        } while (each != to);
        further = open_beneath(fd < 0 ? base : fd, path);
        if (fd >= 0) {
            int error = errno;
            close(fd);
            errno = error;
        }
        fd = further;
        if (fd < 0)
            break;
    }
    free(way);
    return fd;
}

static int hold(struct isolib_copy_state *state, struct directory *directory) {
    int result = 0;
    pthread_mutex_lock(&state->lock);
    if (directory->source < 0) {
        int source = walk(directory, 0), target = source < 0 ? -1 : walk(directory, 1);
        if (target >= 0) {
            directory->source = source;
            directory->target = target;
        } else {
            int error = errno;
            if (source >= 0)
                close(source);
            errno = error;
            result = -1;
        }
    }
    if (result == 0)
        directory->users++;
    pthread_mutex_unlock(&state->lock);
    return result;
}

static void let_go(struct isolib_copy_state *state, struct directory *directory) {
    pthread_mutex_lock(&state->lock);
    if (--directory->users == 0 && directory->is_complete) {
        close_directory(directory);
    } else if (directory->users == 0 && directory->depth > KEPT_DEPTH && state->warm != directory) {
        if (state->warm && state->warm->users == 0)
            close_directory(state->warm);
        state->warm = directory;
    }
    pthread_mutex_unlock(&state->lock);
}

/* ---- the stack ---- */

static void push(struct isolib_copy_state *state, struct piece *piece) {
    pthread_mutex_lock(&state->lock);
    piece->next = state->stack;
    state->stack = piece;
    pthread_cond_signal(&state->changed);
    pthread_mutex_unlock(&state->lock);
}

static struct piece *take(struct isolib_copy_state *state) {
    struct piece *piece = NULL;
    pthread_mutex_lock(&state->lock);
    while (!state->stack && state->working && !is_stopped(state))
        pthread_cond_wait(&state->changed, &state->lock);
    if (state->stack && !is_stopped(state)) {
        piece = state->stack;
        state->stack = piece->next;
        state->working++;
    }
    pthread_mutex_unlock(&state->lock);
    return piece;
}

static void taken_care_of(struct isolib_copy_state *state) {
    pthread_mutex_lock(&state->lock);
    if (--state->working == 0 && !state->stack)
        pthread_cond_broadcast(&state->changed);
    pthread_mutex_unlock(&state->lock);
}

/* ---- extended attributes ---- */

/* Where there is no descriptor of a thing itself, /proc has a path of it that leads nowhere else. */
struct thing {
    int fd;
    const char *path; /* NULL: fd itself */
};

/* The kernel takes as much memory as there is room for: little will do, nearly always. */
static ssize_t attribute_names(struct thing thing, char *names) {
    size_t room = FEW_NAMES;
    for (;;) {
        ssize_t size = thing.path ? llistxattr(thing.path, names, room) : flistxattr(thing.fd, names, room);
        if (size >= 0 || errno != ERANGE || room == ATTRIBUTE_NAMES)
            return size;
        room = ATTRIBUTE_NAMES;
    }
}

/* Returns the call that has failed, or NULL. */
static const char *copy_attributes(struct worker *worker, struct thing from, struct thing to) {
    ssize_t size = attribute_names(from, worker->names), length;
    const char *name = worker->names, *end = worker->names + size;
    if (size < 0)
        return errno == EOPNOTSUPP ? NULL : "listxattr";
    for (; name < end; name += strlen(name) + 1) {
        length =
            from.path ? lgetxattr(from.path, name, worker->buffer, BUFFER) : fgetxattr(from.fd, name, worker->buffer, BUFFER);
        if (length < 0) {
            if (errno == ENODATA) /* it was taken away meanwhile */
                continue;
            return "getxattr";
        }
        if ((to.path ? lsetxattr(to.path, name, worker->buffer, (size_t)length, 0)
                     : fsetxattr(to.fd, name, worker->buffer, (size_t)length, 0)) < 0)
            return "setxattr";
    }
    return NULL;
}

/* ---- contents ---- */

static int write_all(int fd, const char *data, size_t size, off_t at) {
    while (size) {
        ssize_t put = pwrite(fd, data, size, at);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return -1;
        data += put;
        at += put;
        size -= (size_t)put;
    }
    return 0;
}

/* Through memory.  A file that is shorter than it was is as long as it is. */
static const char *copy_by_hand(struct worker *worker, int in, int out, off_t at, off_t end) {
    while (at < end && !is_stopped(worker->state)) {
        size_t room = end - at < BUFFER ? (size_t)(end - at) : BUFFER;
        ssize_t got = pread(in, worker->buffer, room, at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return "read";
        if (got == 0)
            break;
        if (write_all(out, worker->buffer, (size_t)got, at) < 0)
            return "write";
        at += got;
    }
    return NULL;
}

static int is_refusal(int error) {
    return error == EXDEV || error == EINVAL || error == EOPNOTSUPP || error == ENOSYS || error == ENOTTY || error == EPERM ||
           error == ETXTBSY;
}

static const char *copy_range(struct worker *worker, int in, int out, off_t at, off_t end) {
    while (end - at > SMALL && !is_stopped(worker->state)) {
        off_t from = at, to = at;
        ssize_t got = copy_file_range(in, &from, out, &to, end - at < PIECE ? (size_t)(end - at) : PIECE, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && !is_refusal(errno))
            return "copy_file_range";
        if (got <= 0)
            break;
        at += got;
    }
    return copy_by_hand(worker, in, out, at, end);
}

static const char *copy_with_holes(struct worker *worker, int in, int out, off_t size) {
    off_t at = 0;
    if (ftruncate(out, size) < 0)
        return "ftruncate";
    while (at < size && !is_stopped(worker->state)) {
        const char *failed;
        off_t hole, data = lseek(in, at, SEEK_DATA);
        if (data < 0)
            return errno == ENXIO ? NULL : errno == EINVAL ? copy_range(worker, in, out, at, size) : "lseek";
        hole = lseek(in, data, SEEK_HOLE);
        if (hole < 0)
            return "lseek";
        failed = copy_range(worker, in, out, data, hole < size ? hole : size);
        if (failed)
            return failed;
        at = hole;
    }
    return NULL;
}

static const char *copy_content(struct worker *worker, int in, int out, const struct stat *status) {
    enum { BLOCK = 512 };
    if (status->st_size == 0)
        return NULL;
    if (status->st_size > worker->state->unshared && !__atomic_load_n(&worker->state->no_clone, __ATOMIC_RELAXED)) {
        if (ioctl(out, FICLONE, in) == 0)
            return NULL;
        if (!is_refusal(errno))
            return "ioctl FICLONE";
        if (errno == EOPNOTSUPP || errno == ENOTTY || errno == EXDEV)
            __atomic_store_n(&worker->state->no_clone, 1, __ATOMIC_RELAXED);
    }
    if (status->st_blocks < status->st_size / BLOCK)
        return copy_with_holes(worker, in, out, status->st_size);
    return copy_range(worker, in, out, 0, status->st_size);
}

/* ---- one entry ---- */

static int open_source(int base, const char *name, int flags) {
    int fd;
    flags |= O_RDONLY | O_NOFOLLOW | O_CLOEXEC;
    do
        fd = openat(base, name, flags | O_NOATIME);
    while (fd < 0 && errno == EINTR);
    if (fd < 0 && errno == EPERM) /* somebody else's file, and no CAP_FOWNER over it */
        fd = openat(base, name, flags);
    return fd;
}

/* The owner first: to change him takes set-user-id bits and capabilities away; the mode last: an access list has a part of it.
 */
static const char *finish(struct worker *worker, int in, int out, const struct stat *status) {
    const struct timespec times[2] = {status->st_atim, status->st_mtim};
    const char *failed;
    struct stat made;
    int is_given;
    if (fstat(out, &made) < 0)
        return "fstat";
    is_given = made.st_uid != status->st_uid || made.st_gid != status->st_gid;
    if (is_given && fchown(out, status->st_uid, status->st_gid) < 0)
        return "fchown";
    failed = copy_attributes(worker, (struct thing){in, NULL}, (struct thing){out, NULL});
    if (failed)
        return failed;
    if ((is_given || made.st_mode != status->st_mode) && fchmod(out, status->st_mode & 07777) < 0)
        return "fchmod";
    return futimens(out, times) < 0 ? "utimensat" : NULL;
}

static const char *copy_file(struct worker *worker, struct directory *in, const char *name, const struct stat *status) {
    const char *failed;
    int error, to, from = open_source(in->source, name, 0);
    if (from < 0)
        return "openat";
    to = openat(in->target, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, status->st_mode & 0777);
    if (to < 0) {
        failed = "openat";
    } else {
        failed = copy_content(worker, from, to, status);
        if (!failed)
            failed = finish(worker, from, to, status);
        error = errno;
        if (close(to) < 0 && !failed && errno != EINTR)
            failed = "close";
        else
            errno = error;
    }
    error = errno;
    close(from);
    errno = error;
    return failed;
}

static const char *make_special(struct directory *in, const char *name, const struct stat *status) {
    char text[ISOLIB_TREE_PATH];
    ssize_t length;
    if (!S_ISLNK(status->st_mode))
        return mknodat(in->target, name, status->st_mode, status->st_rdev) < 0 ? "mknodat" : NULL;
    length = readlinkat(in->source, name, text, sizeof(text) - 1);
    if (length < 0)
        return "readlinkat";
    text[length] = '\0';
    return symlinkat(text, in->target, name) < 0 ? "symlinkat" : NULL;
}

static const char *copy_special(struct worker *worker, struct directory *in, const char *name, const struct stat *status) {
    const struct timespec times[2] = {status->st_atim, status->st_mtim};
    char from[ISOLIB_TREE_PATH], to[ISOLIB_TREE_PATH];
    const char *failed = make_special(in, name, status);
    if (failed)
        return failed;
    if (fchownat(in->target, name, status->st_uid, status->st_gid, AT_SYMLINK_NOFOLLOW) < 0)
        return "fchownat";
    snprintf(from, sizeof(from), "/proc/thread-self/fd/%d/%s", in->source, name);
    snprintf(to, sizeof(to), "/proc/thread-self/fd/%d/%s", in->target, name);
    failed = copy_attributes(worker, (struct thing){-1, from}, (struct thing){-1, to});
    if (failed)
        return failed;
    if (!S_ISLNK(status->st_mode) && fchmodat(in->target, name, status->st_mode & 07777, 0) < 0)
        return "fchmodat";
    return utimensat(in->target, name, times, AT_SYMLINK_NOFOLLOW) < 0 ? "utimensat" : NULL;
}

/* ---- hard links ---- */

static struct first **find_first(struct isolib_copy_state *state, const struct stat *status) {
    struct first **found = &state->links[(status->st_ino ^ status->st_ino >> 12) % LINKS];
    while (*found && ((*found)->inode != status->st_ino || (*found)->device != status->st_dev))
        found = &(*found)->next;
    return found;
}

/* 1: another name of it is there already, and this one is now too; 0: it is the first, to be copied; -1 */
static int link_to_first(struct isolib_copy_state *state, struct directory *in, const char *name, const struct stat *status) {
    struct first **found, *first;
    int result = 0;
    pthread_mutex_lock(&state->linking);
    found = find_first(state, status);
    first = *found;
    if (!first) {
        first = calloc(1, sizeof(*first) + strlen(name) + 1);
        if (first) {
            *first = (struct first){
                .device = status->st_dev, .inode = status->st_ino, .left = status->st_nlink - 1, .directory = in};
            strcpy(first->name, name);
            __atomic_add_fetch(&in->references, 1, __ATOMIC_RELAXED);
            *found = first;
        }
        pthread_mutex_unlock(&state->linking);
        return first ? 0 : -1;
    }
    while (!first->is_there && !is_stopped(state)) /* another thread is copying it */
        pthread_cond_wait(&state->linked, &state->linking);
    pthread_mutex_unlock(&state->linking);
    if (is_stopped(state))
        return 1;
    if (hold(state, first->directory) < 0)
        return -1;
    if (linkat(first->directory->target, first->name, in->target, name, 0) < 0)
        result = -1;
    let_go(state, first->directory);
    if (result < 0)
        return -1;
    pthread_mutex_lock(&state->linking);
    if (--first->left == 0) { /* this was the last name of it: nobody looks for it any more */
        found = find_first(state, status);
        *found = first->next;
        forget(state, first->directory);
        free(first);
    }
    pthread_mutex_unlock(&state->linking);
    return 1;
}

static void tell_first(struct isolib_copy_state *state, const struct stat *status) {
    pthread_mutex_lock(&state->linking);
    (*find_first(state, status))->is_there = 1;
    pthread_cond_broadcast(&state->linked);
    pthread_mutex_unlock(&state->linking);
}

static int push_directory(struct worker *worker, struct directory *in, const char *name) {
    struct piece *piece = calloc(1, sizeof(*piece));
    struct directory *made = piece ? new_directory(worker->state, in, name) : NULL;
    if (!made) {
        free(piece);
        return fail(worker->state, "malloc", in, name);
    }
    piece->directory = made;
    push(worker->state, piece);
    return 0;
}

static int copy_entry(struct worker *worker, struct directory *in, const struct isolib_dirent *entry) {
    enum { IS_DIRECTORY = 4 };
    struct isolib_copy_state *state = worker->state;
    const char *name = entry->name, *failed;
    struct stat status;
    int linked = 0;
    if (entry->type == IS_DIRECTORY)
        return push_directory(worker, in, name);
    if (fstatat(in->source, name, &status, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) < 0)
        return fail(state, "fstatat", in, name);
    if (S_ISDIR(status.st_mode))
        return push_directory(worker, in, name);
    if (status.st_nlink > 1)
        linked = link_to_first(state, in, name, &status);
    if (linked)
        return linked < 0 ? fail(state, "linkat", in, name) : 0;
    failed = S_ISREG(status.st_mode) ? copy_file(worker, in, name, &status) : copy_special(worker, in, name, &status);
    if (failed)
        return fail(state, failed, in, name);
    if (status.st_nlink > 1)
        tell_first(state, &status);
    return 0;
}

/* ---- one piece of work ---- */

/* A piece of work in a directory is done: what is complete thereby gets its mode and its times. */
static int complete(struct worker *worker, struct directory *directory) {
    struct isolib_copy_state *state = worker->state;
    while (directory && __atomic_sub_fetch(&directory->pending, 1, __ATOMIC_ACQ_REL) == 0) {
        struct directory *parent = directory->parent;
        const char *failed;
        if (hold(state, directory) < 0)
            return fail(state, "openat", directory, "");
        failed = finish(worker, directory->source, directory->target, &directory->status);
        if (failed)
            fail(state, failed, directory, "");
        pthread_mutex_lock(&state->lock);
        directory->is_complete = 1;
        if (state->warm == directory)
            state->warm = NULL;
        if (--directory->users == 0) /* another thread may be making a link to a name in it */
            close_directory(directory);
        pthread_mutex_unlock(&state->lock);
        forget(state, directory);
        if (failed)
            return -1;
        directory = parent;
    }
    return 0;
}

static int copy_names(struct worker *worker, struct directory *in, const char *entries, long size) {
    long at;
    for (at = 0; at < size && !is_stopped(worker->state);) {
        const struct isolib_dirent *entry = (const void *)(entries + at);
        at += entry->length;
        if (strcmp(entry->name, ".") != 0 && strcmp(entry->name, "..") != 0 && copy_entry(worker, in, entry) < 0)
            return -1;
    }
    return 0;
}

/* Reads the names; all but the last piece of them are left to whoever has time. */
static int copy_list(struct worker *worker, struct directory *in) {
    struct isolib_copy_state *state = worker->state;
    struct piece *last = NULL;
    int result = 0;
    while (result == 0 && !is_stopped(state)) {
        struct piece *piece = malloc(sizeof(*piece) + NAMES);
        if (!piece) {
            result = fail(state, "malloc", in, "");
            break;
        }
        piece->directory = in;
        piece->size = syscall(__NR_getdents64, in->source, piece->entries, NAMES);
        if (piece->size <= 0) {
            if (piece->size < 0)
                result = fail(state, "getdents64", in, "");
            free(piece);
            break;
        }
        if (last) {
            __atomic_add_fetch(&in->pending, 1, __ATOMIC_RELAXED);
            push(state, last);
        }
        last = piece;
    }
    if (last && result == 0)
        result = copy_names(worker, in, last->entries, last->size);
    free(last);
    return result;
}

static int is_mounted_on(int fd) {
    struct statx status;
    return statx(fd, "", AT_EMPTY_PATH, 0, &status) == 0 && status.stx_attributes & STATX_ATTR_MOUNT_ROOT;
}

static const char *open_pair(struct directory *directory) {
    struct directory *parent = directory->parent;
    directory->source = open_source(parent->source, directory->name, O_DIRECTORY);
    if (directory->source < 0)
        return "openat";
    if (fstat(directory->source, &directory->status) < 0)
        return "fstat";
    if (mkdirat(parent->target, directory->name, PRIVATE) < 0)
        return "mkdirat";
    directory->target = openat(parent->target, directory->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return directory->target < 0 ? "openat" : NULL;
}

static int open_and_copy(struct worker *worker, struct directory *directory) {
    struct isolib_copy_state *state = worker->state;
    struct directory *parent = directory->parent;
    int result = 0;
    if (parent) {
        const char *failed = "openat";
        if (hold(state, parent) == 0) {
            failed = open_pair(directory);
            let_go(state, parent);
        }
        if (failed)
            return fail(state, failed, directory, "");
    }
    directory->users++;
    if (!parent || !is_mounted_on(directory->source)) /* what is mounted there is no part of the tree */
        result = copy_list(worker, directory);
    let_go(state, directory);
    return result;
}

static void do_piece(struct worker *worker, struct piece *piece) {
    struct directory *directory = piece->directory;
    int result;
    if (piece->size == 0) {
        result = open_and_copy(worker, directory);
    } else if (hold(worker->state, directory) < 0) {
        result = fail(worker->state, "openat", directory, "");
    } else {
        result = copy_names(worker, directory, piece->entries, piece->size);
        let_go(worker->state, directory);
    }
    free(piece);
    if (result == 0 && !is_stopped(worker->state))
        complete(worker, directory);
}

static void *work(void *argument) {
    struct isolib_copy_state *state = argument;
    struct worker worker = {state, malloc(BUFFER), malloc(ATTRIBUTE_NAMES)};
    struct piece *piece;
    const uint64_t one = 1;
    int is_last;
    if (!worker.buffer || !worker.names)
        fail(state, "malloc", NULL, "");
    while ((piece = take(state))) {
        do_piece(&worker, piece);
        taken_care_of(state);
    }
    free(worker.buffer);
    free(worker.names);
    pthread_mutex_lock(&state->lock);
    is_last = --state->running == 0;
    pthread_mutex_unlock(&state->lock);
    if (is_last && write(state->done, &one, sizeof(one)) < 0)
        abort(); /* an eventfd takes it */
    return NULL;
}

/* ---- the whole ---- */

static void start_threads(struct isolib_copy_state *state, int count) {
    sigset_t all, before;
    int each;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the program's threads */
    pthread_mutex_lock(&state->lock);
    for (each = 0; each < count && each < MOST_THREADS; each++)
        if (pthread_create(&state->thread[state->threads], NULL, work, state) == 0) {
            state->threads++;
            state->running++;
        }
    pthread_mutex_unlock(&state->lock);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void work_alone(struct isolib_copy_state *state) {
    state->running = 1;
    work(state);
}

/* Lists that the target's directory may have from the one above it would be in all that is made there. */
static void take_lists_away(int target) {
    fremovexattr(target, "system.posix_acl_default");
    fremovexattr(target, "system.posix_acl_access");
}

/* XFS keeps a count of who shares each extent, in a tree of its own, which takes longer to change than to write two blocks;
 * btrfs takes longer to make room for contents than to share them. */
static off_t unshared_on(int target) {
    enum { TWO_BLOCKS = 8192 };
    struct statfs status;
    return fstatfs(target, &status) == 0 && status.f_type == XFS_SUPER_MAGIC ? TWO_BLOCKS : 0;
}

static int begin(struct isolib_copy *copy) {
    struct isolib_copy_state *state = calloc(1, sizeof(*state));
    struct piece *piece = calloc(1, sizeof(*piece));
    struct directory *root;
    if (!state || !piece) {
        free(piece);
        free(state);
        copy->error = ENOMEM;
        copy->call = "malloc";
        return -1;
    }
    copy->state = state;
    state->copy = copy;
    state->done = -1;
    pthread_mutex_init(&state->lock, NULL);
    pthread_mutex_init(&state->linking, NULL);
    pthread_cond_init(&state->changed, NULL);
    pthread_cond_init(&state->linked, NULL);
    root = new_directory(state, NULL, "");
    if (!root) {
        free(piece);
        return fail(state, "malloc", NULL, "");
    }
    piece->directory = root;
    state->stack = piece;
    /* not copies of the caller's: those would share the place in the list of names */
    state->done = eventfd(0, EFD_CLOEXEC);
    root->source = openat(copy->source, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    root->target = openat(copy->target, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (state->done < 0 || root->source < 0 || root->target < 0)
        return fail(state, state->done < 0 ? "eventfd" : "openat", root, "");
    if (fstat(root->source, &root->status) < 0)
        return fail(state, "fstat", root, "");
    take_lists_away(root->target);
    state->unshared = unshared_on(root->target);
    start_threads(state, copy->threads);
    if (!state->threads)
        work_alone(state);
    return 0;
}

static void discard_rest(struct isolib_copy_state *state) {
    int head;
    while (state->stack) {
        struct piece *piece = state->stack;
        state->stack = piece->next;
        free(piece);
    }
    for (head = 0; head < LINKS; head++)
        while (state->links[head]) {
            struct first *first = state->links[head];
            state->links[head] = first->next;
            free(first);
        }
    while (state->all) {
        struct directory *directory = state->all;
        state->all = directory->after;
        close_directory(directory);
        free(directory);
    }
}

void isolib_copy_end(struct isolib_copy *copy) {
    struct isolib_copy_state *state = copy->state;
    if (!state)
        return;
    stop(state);
    while (state->threads)
        pthread_join(state->thread[--state->threads], NULL);
    discard_rest(state);
    if (state->done >= 0)
        close(state->done);
    pthread_cond_destroy(&state->changed);
    pthread_cond_destroy(&state->linked);
    pthread_mutex_destroy(&state->lock);
    pthread_mutex_destroy(&state->linking);
    free(state);
    copy->state = NULL;
}

int isolib_copy_run(struct isolib_copy *copy) {
    struct pollfd done;
    if (!copy->state && begin(copy) < 0) {
        isolib_copy_end(copy);
        return 0;
    }
    done = (struct pollfd){.fd = copy->state->done, .events = POLLIN};
    if (poll(&done, 1, PATIENCE) <= 0)
        return 1; /* a signal, or it takes longer: the caller sees to what else there is */
    isolib_copy_end(copy);
    return 0;
}
