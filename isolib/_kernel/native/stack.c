/*
 * File systems made of options, and overlays of many layers: from Python each layer would be three calls, each of which gives
 * the GIL away.  Layers are descriptors from the beginning: whoever exchanges a directory meanwhile gains nothing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "wrappers.h"

/* of fsconfig(2), with its NUL; of "/proc/self/fd/" and a number */
enum { VALUE_ROOM = 256, NAME_ROOM = 64 };
enum { SET_FLAG = 0, SET_STRING = 1, SET_FD = 5, CREATE = 6, RECONFIGURE = 7 };
enum { OPEN_TREE_CLONE_ = 1, EMPTY_PATH = 0x1000, FSPICK_CLOEXEC_ = 1, FSPICK_EMPTY_PATH_ = 8, FS_CLOEXEC = 1 };
enum { ATTR_IDMAP = 0x100000, FSPICK_NUMBER = 433, PRIVATE = 1 << 18 };

static void close_keeping_errno(int fd) {
    int error = errno;
    if (fd >= 0)
        close(fd);
    errno = error;
}

/* ---- layers ---- */

void isolib_layers_close(struct isolib_layers *layers) {
    for (uint32_t i = 0; i < layers->count; i++) {
        close_keeping_errno(layers->layers[i].fd);
        layers->layers[i].fd = -1;
    }
}

int isolib_layers_open(struct isolib_layers *layers, int base, const char *paths, int flags) {
    for (layers->at = 0; layers->at < layers->count; layers->at++) {
        struct isolib_layer *layer = &layers->layers[layers->at];
        struct stat status;
        layer->fd = openat(base, paths, O_PATH | O_DIRECTORY | O_CLOEXEC | flags);
        if (layer->fd < 0 || fstat(layer->fd, &status) < 0)
            return -1;
        layer->device = status.st_dev;
        layer->inode = status.st_ino;
        paths += strlen(paths) + 1;
    }
    return 0;
}

int isolib_layers_map(struct isolib_layers *layers, uint32_t first, int userns) {
    for (layers->at = 0; layers->at < first; layers->at++) {
        struct isolib_layer *layer = &layers->layers[layers->at];
        int clone = isolib_open_tree(layer->fd, "", OPEN_TREE_CLONE_ | EMPTY_PATH | O_CLOEXEC);
        if (clone < 0)
            return -1;
        if (isolib_mount_setattr(clone, "", EMPTY_PATH, ATTR_IDMAP, 0, PRIVATE, userns) < 0) {
            close_keeping_errno(clone);
            return -2;
        }
        close(layer->fd);
        layer->fd = clone;
    }
    return 0;
}

/* ---- file systems ---- */

/* What the kernel says of a refusal: one message for each read, the last error counts. */
static void hear_kernel(int context, struct isolib_stack *stack) {
    char text[sizeof(stack->said)];
    int error = errno;
    ssize_t size;
    while ((size = read(context, text, sizeof(text) - 1)) > 0) {
        text[size] = '\0';
        if (text[0] == 'e' && text[1] == ' ')
            snprintf(stack->said, sizeof(stack->said), "%s", text + 2);
    }
    errno = error;
}

static int put_layer(int context, const struct isolib_stack *stack, const char *key, int fd) {
    char name[NAME_ROOM];
    if (stack->way == ISOLIB_STACK_BY_FD)
        return isolib_fsconfig(context, SET_FD, key, NULL, fd);
    snprintf(name, sizeof(name), "%s%d", stack->prefix, fd);
    return isolib_fsconfig(context, SET_STRING, key, name, 0);
}

/* All names in one value, as kernels before 6.5 want them. */
static int put_together(int context, const struct isolib_stack *stack) {
    char value[VALUE_ROOM];
    size_t size = 0;
    for (uint32_t i = 0; i < stack->lowers->count; i++) {
        int more =
            snprintf(value + size, sizeof(value) - size, "%s%s%d", i ? ":" : "", stack->prefix, stack->lowers->layers[i].fd);
        if (more < 0 || (size += (size_t)more) >= sizeof(value)) {
            errno = E2BIG;
            return -1;
        }
    }
    return isolib_fsconfig(context, SET_STRING, "lowerdir", value, 0);
}

static int put_layers(int context, struct isolib_stack *stack) {
    stack->stage = ISOLIB_STACK_LOWER;
    if (stack->lowers && stack->way == ISOLIB_STACK_TOGETHER) {
        if (put_together(context, stack) < 0)
            return -1;
    } else if (stack->lowers) {
        for (stack->at = 0; stack->at < stack->lowers->count; stack->at++)
            if (put_layer(context, stack, "lowerdir+", stack->lowers->layers[stack->at].fd) < 0)
                return -1;
    }
    stack->stage = ISOLIB_STACK_UPPER;
    if (stack->upper >= 0 && put_layer(context, stack, "upperdir", stack->upper) < 0)
        return -1;
    stack->stage = ISOLIB_STACK_WORK;
    return stack->work >= 0 ? put_layer(context, stack, "workdir", stack->work) : 0;
}

static int configure(int context, struct isolib_stack *stack) {
    const char *key = stack->options, *value;
    stack->stage = ISOLIB_STACK_OPTION;
    for (stack->at = 0; *key; stack->at++) {
        value = key + strlen(key) + 1;
        if (isolib_fsconfig(context, *value ? SET_STRING : SET_FLAG, key, *value ? value : NULL, 0) < 0)
            return -1;
        key = value + strlen(value) + 1;
    }
    if (put_layers(context, stack) < 0)
        return -1;
    stack->stage = ISOLIB_STACK_CREATE;
    return isolib_fsconfig(context, CREATE, NULL, NULL, 0);
}

int isolib_stack_new(struct isolib_stack *stack) {
    int context, mount = -1;
    stack->stage = ISOLIB_STACK_OPEN;
    stack->at = 0;
    stack->said[0] = '\0';
    context = isolib_fsopen(stack->type, FS_CLOEXEC);
    if (context < 0)
        return -1;
    if (configure(context, stack) == 0) {
        stack->stage = ISOLIB_STACK_MOUNT;
        mount = isolib_fsmount(context, FS_CLOEXEC, (unsigned int)stack->attributes);
    }
    if (mount < 0)
        hear_kernel(context, stack);
    close_keeping_errno(context);
    return mount;
}

/* ---- an overlay in memory ---- */

/* As stacking.copy_attributes does it; -1: there is more to be taken over. */
static int dress_upper(int space, int lower) {
    struct stat status, made;
    struct timespec times[2];
    char names[1];
    if (fstat(lower, &status) < 0 || fstatat(space, "upper", &made, AT_SYMLINK_NOFOLLOW) < 0)
        return -1;
    if (isolib_xattr_list(lower, ".", names, 0) != 0)
        return -1;
    if ((status.st_uid != made.st_uid || status.st_gid != made.st_gid) &&
        fchownat(space, "upper", status.st_uid, status.st_gid, AT_SYMLINK_NOFOLLOW) < 0)
        return -1;
    if (status.st_mode != made.st_mode && fchmodat(space, "upper", status.st_mode & 07777, 0) < 0)
        return -1;
    times[0] = status.st_atim;
    times[1] = status.st_mtim;
    return utimensat(space, "upper", times, AT_SYMLINK_NOFOLLOW);
}

static int open_part(int space, const char *name, mode_t mode) {
    return mkdirat(space, name, mode) < 0 ? -1 : openat(space, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* Overlayfs makes itself read-only where it cannot use its work directory. */
static int is_writable(int mount) {
    struct statfs status;
    return fstatfs(mount, &status) == 0 && !(status.f_flags & ST_RDONLY);
}

static int order(const void *one, const void *other) {
    const struct isolib_layer *a = one, *b = other;
    if (a->inode != b->inode)
        return a->inode < b->inode ? -1 : 1;
    return a->device < b->device ? -1 : a->device > b->device;
}

/* whether one directory comes twice */
static int repeats(const struct isolib_layers *layers) {
    struct isolib_layer *sorted;
    int found = 0;
    if (layers->count < 2)
        return 0;
    sorted = malloc(layers->count * sizeof(*sorted));
    if (!sorted)
        return 1;
    memcpy(sorted, layers->layers, layers->count * sizeof(*sorted));
    qsort(sorted, layers->count, sizeof(*sorted), order);
    for (uint32_t i = 1; i < layers->count && !found; i++)
        found = order(&sorted[i - 1], &sorted[i]) == 0;
    free(sorted);
    return found;
}

static struct isolib_layers *open_lowers(const struct isolib_union *made) {
    struct isolib_layers *layers = malloc(sizeof(*layers) + made->count * sizeof(layers->layers[0]));
    if (!layers)
        return NULL;
    layers->count = made->count;
    for (uint32_t i = 0; i < made->count; i++)
        layers->layers[i].fd = -1;
    if (isolib_layers_open(layers, AT_FDCWD, made->lowers, 0) == 0 && !repeats(layers))
        return layers;
    isolib_layers_close(layers);
    free(layers);
    return NULL;
}

static int unite(struct isolib_union *made, const struct isolib_layers *lowers, int work) {
    const int is_first = isolib_is_in_first_userns();
    struct isolib_stack stack = {
        .type = "overlay",
        .options = is_first ? made->options : made->options_of_user,
        .way = ISOLIB_STACK_BY_FD,
        .lowers = lowers,
        .upper = made->fds[1],
        .work = work,
        .attributes = made->attributes,
    };
    made->fds[0] = is_first < 0 ? -1 : isolib_stack_new(&stack);
    return made->fds[0] >= 0 && is_writable(made->fds[0]) ? 0 : -1;
}

static int unite_above(struct isolib_union *made, const struct isolib_layers *lowers) {
    enum { UPPER_MODE = 0755, WORK_MODE = 0700 };
    struct isolib_stack space = {
        .type = "tmpfs", .options = made->space_options, .upper = -1, .work = -1, .attributes = made->space_attributes};
    int work = -1, result = -1;
    made->fds[2] = isolib_stack_new(&space);
    if (made->fds[2] >= 0)
        made->fds[1] = open_part(made->fds[2], "upper", UPPER_MODE);
    if (made->fds[1] >= 0)
        work = open_part(made->fds[2], "work", WORK_MODE);
    if (work >= 0 && dress_upper(made->fds[2], lowers->layers[0].fd) == 0)
        result = unite(made, lowers, work);
    if (work >= 0)
        close(work);
    return result;
}

int isolib_union_new(struct isolib_union *made) {
    struct isolib_layers *lowers = open_lowers(made);
    int result;
    if (!lowers)
        return -1;
    result = unite_above(made, lowers);
    isolib_layers_close(lowers);
    free(lowers);
    if (result < 0)
        isolib_union_close(made);
    return result;
}

void isolib_union_close(struct isolib_union *made) {
    for (int i = 2; i >= 0; i--)
        isolib_close_fd(&made->fds[i]);
}

int isolib_reconfigure(int mount, const char *flag) {
    int result, context = (int)syscall(FSPICK_NUMBER, mount, "", FSPICK_CLOEXEC_ | FSPICK_EMPTY_PATH_);
    if (context < 0)
        return -1;
    result = isolib_fsconfig(context, SET_FLAG, flag, NULL, 0) < 0 ? -2 : 0;
    if (result == 0 && isolib_fsconfig(context, RECONFIGURE, NULL, NULL, 0) < 0)
        result = -3;
    close_keeping_errno(context);
    return result;
}

int isolib_syncfs(int fd) {
    return syncfs(fd);
}

int isolib_enclose_thread(void) {
    if (unshare(CLONE_NEWNS) < 0) /* and with it its directories: CLONE_FS */
        return -1;
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return -2;
    return chdir("/proc/self/fd") < 0 ? -3 : 0;
}
