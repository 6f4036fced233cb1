/* The floor of union file systems: what a detached overlay costs when nothing but the bare system calls is paid for.
 *
 * Like isolib's: the upper directory lies in a tmpfs that is attached nowhere, and each layer is named by a descriptor
 * (lowerdir+, Linux 6.13).  No path is checked, no attribute of the topmost layer taken over, no error explained.
 *
 * Every function returns 0, or -errno. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MOST = 512, FD_OPTION = 5 /* FSCONFIG_SET_FD */, STRING_OPTION = 1, CREATE = 6, CLOEXEC = 1 };

static long failed;

static int must(long result) {
    if (result < 0 && !failed)
        failed = -errno;
    return (int)result;
}

static int opened(const char *type) {
    return must(syscall(SYS_fsopen, type, CLOEXEC));
}

static void set(int context, unsigned kind, const char *key, const void *value, int extra) {
    must(syscall(SYS_fsconfig, context, kind, key, value, extra));
}

static int made(int context) {
    set(context, CREATE, NULL, NULL, 0);
    int mount = must(syscall(SYS_fsmount, context, CLOEXEC, 0));
    close(context);
    return mount;
}

/* Make an overlay of directories, the topmost first, and let it go. */
long floor_overlay(const char *const *lowers, size_t count) {
    int fds[MOST];
    failed = 0;
    if (count > MOST)
        return -E2BIG;
    int context = opened("tmpfs");
    set(context, STRING_OPTION, "size", "256m", 0);
    int space = made(context);
    must(mkdirat(space, "upper", 0755));
    must(mkdirat(space, "work", 0700));
    int upper = must(openat(space, "upper", O_PATH | O_CLOEXEC)), work = must(openat(space, "work", O_PATH | O_CLOEXEC));
    context = opened("overlay");
    for (size_t i = 0; i < count; i++) {
        fds[i] = must(open(lowers[i], O_PATH | O_DIRECTORY | O_CLOEXEC));
        set(context, FD_OPTION, "lowerdir+", NULL, fds[i]);
    }
    set(context, FD_OPTION, "upperdir", NULL, upper);
    set(context, FD_OPTION, "workdir", NULL, work);
    int mount = made(context);
    for (size_t i = 0; i < count; i++)
        close(fds[i]);
    close(upper);
    close(work);
    close(mount);
    close(space);
    return failed;
}
