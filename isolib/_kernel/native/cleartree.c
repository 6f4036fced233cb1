/*
 * Removes a tree.  Every name is used relative to a descriptor of its directory, and no link is followed.
 *
 * How deep a tree is, is not ours to choose: what lies too far down is moved up, to below the tree's own root.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "wrappers.h"

enum {
    DEPTH = 48,     /* of directories that are open at the same time */
    NAMES = 8192,   /* bytes of directory entries */
    TURN = 1 << 12, /* names that are removed between two looks at what the caller has to do */
    PRIVATE = 0700,
    LONGEST = 256
};

struct entry {
    uint64_t inode;
    int64_t offset;
    unsigned short length;
    unsigned char type;
    char name[];
};

struct level {
    int fd;
    int is_stubborn; /* it was read to its end, and there was something in it again */
    long at, size;
    char name[LONGEST];
    char entries[NAMES];
};

struct clearing {
    struct isolib_removal *removal;
    struct level *levels[DEPTH];
    int depth, left;
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
        if (length + strlen(part) + 2 < sizeof(removal->path))
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

static int open_name(int base, const char *name) {
    const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    int fd = openat(base, name, flags);
    if (fd < 0 && errno == EACCES && (fchmodat(base, name, PRIVATE, 0) == 0 || errno == ENOENT))
        fd = openat(base, name, flags);
    return fd;
}

static int descend(struct clearing *clearing, const char *name) {
    struct level *level;
    int fd = open_name(base_of(clearing), name);
    if (fd < 0)
        return errno == ENOENT ? 0 : fail(clearing, "openat", name);
    level = malloc(sizeof(*level));
    if (!level) {
        close(fd);
        errno = ENOMEM;
        return fail(clearing, "malloc", name);
    }
    level->fd = fd;
    level->is_stubborn = 0;
    level->at = level->size = 0;
    snprintf(level->name, sizeof(level->name), "%s", name);
    clearing->levels[clearing->depth++] = level;
    return 0;
}

static void ascend(struct clearing *clearing) {
    struct level *level = clearing->levels[--clearing->depth];
    close(level->fd);
    free(level);
}

/* The new name is one that no other has: a directory's own number, and how many were moved. */
static int move_up(struct clearing *clearing, uint64_t inode, const char *name) {
    char up[64];
    snprintf(up, sizeof(up), ".isolib-%llx-%llx", (unsigned long long)inode, (unsigned long long)clearing->moved++);
    clearing->levels[0]->is_stubborn = 0; /* it is read again */
    if (renameat(base_of(clearing), name, clearing->levels[0]->fd, up) == 0)
        return 0;
    if (errno == EACCES && fchmodat(base_of(clearing), name, PRIVATE, 0) == 0 &&
        renameat(base_of(clearing), name, clearing->levels[0]->fd, up) == 0)
        return 0;
    return fail(clearing, "renameat", name);
}

static int remove_entry(struct clearing *clearing, const struct entry *entry) {
    enum { IS_DIRECTORY = 4 };
    const char *name = entry->name;
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return 0;
    clearing->left--;
    if (entry->type != IS_DIRECTORY) {
        if (remove_name(clearing, base_of(clearing), name, 0) == 0)
            return 0;
        if (errno != EISDIR)
            return fail(clearing, "unlinkat", name);
    }
    return clearing->depth == DEPTH ? move_up(clearing, entry->inode, name) : descend(clearing, name);
}

/* The directory that is open is at its end. */
static int finish(struct clearing *clearing) {
    struct level *level = clearing->levels[clearing->depth - 1];
    int above = clearing->depth > 1 ? clearing->levels[clearing->depth - 2]->fd : clearing->removal->base;
    if (remove_name(clearing, above, level->name, AT_REMOVEDIR) < 0) {
        if (errno != ENOTEMPTY || level->is_stubborn) {
            fail(clearing, "unlinkat", "");
            ascend(clearing);
            return -1;
        }
        level->is_stubborn = 1;
        return lseek(level->fd, 0, SEEK_SET) < 0 ? fail(clearing, "lseek", "") : 0;
    }
    ascend(clearing);
    return 0;
}

static int step(struct clearing *clearing) {
    struct level *level = clearing->levels[clearing->depth - 1];
    if (level->at < level->size) {
        const struct entry *entry = (const void *)(level->entries + level->at);
        level->at += entry->length;
        return remove_entry(clearing, entry);
    }
    level->at = 0;
    level->size = syscall(__NR_getdents64, level->fd, level->entries, NAMES);
    if (level->size < 0)
        return fail(clearing, "getdents64", "");
    return level->size == 0 ? finish(clearing) : 0;
}

int isolib_remove_run(struct isolib_removal *removal) {
    struct clearing clearing = {.removal = removal, .left = TURN};
    struct stat status;
    int result;
    removal->error = 0;
    if (fstatat(removal->base, removal->name, &status, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) < 0)
        return errno == ENOENT ? 0 : fail(&clearing, "fstatat", ""), 0;
    if (!S_ISDIR(status.st_mode)) {
        if (remove_name(&clearing, removal->base, removal->name, 0) < 0)
            fail(&clearing, "unlinkat", "");
        return 0;
    }
    result = descend(&clearing, removal->name);
    while (result == 0 && clearing.depth && clearing.left > 0)
        result = step(&clearing);
    while (clearing.depth)
        ascend(&clearing);
    return result == 0 && clearing.left <= 0;
}
