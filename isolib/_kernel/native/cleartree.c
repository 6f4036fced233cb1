/*
 * Removes a tree, or all that is in one.  Every name is used relative to a descriptor of its directory; no link is followed,
 * and nothing that is mounted somewhere in it is gone into.
 *
 * How deep a tree is, is not ours to choose: what lies too far down is moved up, to below the tree's own root.  Nor is what
 * others do to it meanwhile.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "files.h"
#include "wrappers.h"

enum {
    DEPTH = 48,     /* of directories that are open at the same time */
    NAMES = 8192,   /* bytes of directory entries */
    TURN = 1 << 12, /* names that are removed between two looks at what the caller has to do */
    ROUNDS =
        10000, /* in which a directory may have something in it again: file systems need few, and an opponent is not obeyed */
    PRIVATE = 0700,
    LONGEST = 256
};

struct level {
    int fd;
    long at, size, found; /* in the entries that were read last; since it was read from its beginning */
    char name[LONGEST];
    char entries[NAMES];
};

struct clearing {
    struct isolib_removal *removal;
    struct level *levels[DEPTH];
    int depth, left, rounds;
    uint64_t moved;
};

static int base_of(const struct clearing *clearing) {
    return clearing->depth ? clearing->levels[clearing->depth - 1]->fd : clearing->removal->base;
}

static int fail(struct clearing *clearing, const char *call, const char *name) {
    struct isolib_removal *removal = clearing->removal;
    size_t length = 0;
    int each, error = errno;
    removal->path[0] = '\0';
    for (each = 1; each <= clearing->depth; each++) {
        const char *part = each < clearing->depth ? clearing->levels[each]->name : name;
        if (*part && length + strlen(part) + 2 < sizeof(removal->path))
            length += (size_t)sprintf(removal->path + length, "%s%s", length ? "/" : "", part);
    }
    removal->call = call;
    removal->error = error;
    return -1;
}

/* Its owner may remove what is in a directory whatever its mode is, once he has changed that. */
static int remove_name(const struct clearing *clearing, int base, const char *name, int flags) {
    int result = unlinkat(base, name, flags);
    if (result < 0 && errno == EACCES && base != clearing->removal->base && fchmod(base, PRIVATE) == 0)
        result = unlinkat(base, name, flags);
    return result < 0 && errno == ENOENT ? 0 : result;
}

static int open_here(int base, const char *name) {
    struct open_how how = {.flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS};
    return (int)syscall(__NR_openat2, base, name, &how, sizeof(how));
}

static int open_name(int base, const char *name) {
    int fd = open_here(base, name);
    if (fd < 0 && errno == EACCES && (fchmodat(base, name, PRIVATE, AT_SYMLINK_NOFOLLOW) == 0 || errno == ENOENT))
        fd = open_here(base, name);
    return fd;
}

static int descend(struct clearing *clearing, const char *name) {
    struct level *level;
    int fd = open_name(base_of(clearing), name);
    if (fd < 0 && (errno == ENOTDIR || errno == ELOOP)) /* something else has come in its place */
        return remove_name(clearing, base_of(clearing), name, 0) < 0 ? fail(clearing, "unlinkat", name) : 0;
    if (fd < 0 && errno == EXDEV) { /* a mount of another mount namespace keeps no empty directory from being removed */
        if (remove_name(clearing, base_of(clearing), name, AT_REMOVEDIR) == 0)
            return 0;
        errno = EXDEV;
    }
    if (fd < 0)
        return errno == ENOENT ? 0 : fail(clearing, "openat2", name);
    level = malloc(sizeof(*level));
    if (!level) {
        close(fd);
        errno = ENOMEM;
        return fail(clearing, "malloc", name);
    }
    level->fd = fd;
    level->at = level->size = level->found = 0;
    snprintf(level->name, sizeof(level->name), "%s", name);
    clearing->levels[clearing->depth++] = level;
    return 0;
}

static void ascend(struct clearing *clearing) {
    struct level *level = clearing->levels[--clearing->depth];
    close(level->fd);
    free(level);
}

/* A file system that knows no such flag answers EINVAL: then what has that name is replaced, or stays, as it may be. */
static int move(int from, const char *name, int to, const char *new) {
    int result = (int)syscall(__NR_renameat2, from, name, to, new, RENAME_NOREPLACE);
    return result < 0 && errno == EINVAL ? renameat(from, name, to, new) : result;
}

/* To a name that no other has: made of a directory's own number, and of how many were moved or had such a name. */
static int move_up(struct clearing *clearing, uint64_t inode, const char *name) {
    int from = base_of(clearing), to = clearing->levels[0]->fd, is_opened = 0;
    for (;;) {
        char up[64];
        snprintf(up, sizeof(up), ".isolib-%llx-%llx", (unsigned long long)inode, (unsigned long long)clearing->moved++);
        if (move(from, name, to, up) == 0 || errno == ENOENT) {
            clearing->rounds -= clearing->rounds > 0; /* the one that it will take is no opponent's */
            return 0;
        }
        if (errno == EACCES && !is_opened) { /* a directory that gets another above it is written to */
            is_opened = 1;
            if (fchmod(to, PRIVATE) == 0 && fchmod(from, PRIVATE) == 0 &&
                fchmodat(from, name, PRIVATE, AT_SYMLINK_NOFOLLOW) == 0)
                continue;
        }
        if (errno != EEXIST && errno != ENOTEMPTY)
            return fail(clearing, "renameat2", name);
    }
}

static int remove_entry(struct clearing *clearing, const struct isolib_dirent *entry) {
    enum { IS_DIRECTORY = 4 };
    const char *name = entry->name;
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return 0;
    clearing->left--;
    clearing->levels[clearing->depth - 1]->found++;
    if (entry->type != IS_DIRECTORY) {
        if (remove_name(clearing, base_of(clearing), name, 0) == 0)
            return 0;
        if (errno != EISDIR)
            return fail(clearing, "unlinkat", name);
    }
    return clearing->depth == DEPTH ? move_up(clearing, entry->inode, name) : descend(clearing, name);
}

/* The directory that is open is read again: what was moved into it, or made in it meanwhile, was perhaps not told. */
static int again(struct clearing *clearing) {
    struct level *level = clearing->levels[clearing->depth - 1];
    if (clearing->rounds++ == ROUNDS) {
        errno = ENOTEMPTY;
        return fail(clearing, "unlinkat", "");
    }
    level->found = 0;
    return lseek(level->fd, 0, SEEK_SET) < 0 ? fail(clearing, "lseek", "") : 0;
}

/* The directory that is open is at its end. */
static int finish(struct clearing *clearing) {
    struct level *level = clearing->levels[clearing->depth - 1];
    int above = clearing->depth > 1 ? clearing->levels[clearing->depth - 2]->fd : clearing->removal->base;
    if (clearing->depth == 1 && !clearing->removal->name) {
        if (level->found) /* until there is nothing in it */
            return again(clearing);
    } else if (remove_name(clearing, above, level->name, AT_REMOVEDIR) < 0) {
        if (errno == ENOTEMPTY || errno == EEXIST)
            return again(clearing);
        if (errno != ENOTDIR || remove_name(clearing, above, level->name, 0) < 0)
            return fail(clearing, "unlinkat", "");
    }
    ascend(clearing);
    return 0;
}

static int step(struct clearing *clearing) {
    struct level *level = clearing->levels[clearing->depth - 1];
    if (level->at < level->size) {
        const struct isolib_dirent *entry = (const void *)(level->entries + level->at);
        level->at += entry->length;
        return remove_entry(clearing, entry);
    }
    level->at = 0;
    level->size = syscall(__NR_getdents64, level->fd, level->entries, NAMES);
    if (level->size < 0 && errno != ENOENT) /* it was removed */
        return fail(clearing, "getdents64", "");
    return level->size <= 0 ? finish(clearing) : 0;
}

static int begin(struct clearing *clearing) {
    const struct isolib_removal *removal = clearing->removal;
    int result;
    if (!removal->name)
        return descend(clearing, ".");
    result = remove_name(clearing, removal->base, removal->name, 0);
    if (result == 0)
        return 0;
    return errno == EISDIR ? descend(clearing, removal->name) : fail(clearing, "unlinkat", "");
}

int isolib_remove_run(struct isolib_removal *removal) {
    struct clearing clearing = {.removal = removal, .left = TURN, .rounds = removal->rounds};
    int result;
    removal->error = 0;
    result = begin(&clearing);
    while (result == 0 && clearing.depth && clearing.left > 0)
        result = step(&clearing);
    removal->rounds = clearing.rounds;
    result = result == 0 && clearing.depth;
    while (clearing.depth)
        ascend(&clearing);
    return result;
}
