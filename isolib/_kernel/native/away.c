/* The calling thread goes to another namespace and comes back: in one call, or for the length of a stay. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sys.h"
#include "wrappers.h"

/* What is done elsewhere; it returns a descriptor, or -1 and errno, and says how far it came. */
struct visit {
    int (*act)(const struct visit *visit, int32_t *stage);
    int kind;         /* of the namespace: its clone flag */
    const char *file; /* the thread's own one in /proc */
    int target;       /* the namespace to go to, or -1: the visit makes one */
    int lo;
    const char *hostname, *domainname;
    const char *path, *text;
    int family, type, protocol; /* for a path, type is the flags */
    struct isolib_identity *identity;
};

/* One call, so that no signal handler of Python's runs while the thread is elsewhere. */
static int run_visit(const struct visit *visit, int32_t *stage) {
    int made = -1, error = 0, before;
    *stage = ISOLIB_AWAY_OPEN;
    before = open(visit->file, O_RDONLY | O_CLOEXEC);
    if (before < 0)
        return -1;
    /* Root of a user namespace may leave a namespace of the host's, but not come back: so that is tried first. */
    *stage = ISOLIB_AWAY_WAY_BACK;
    if (setns(before, visit->kind) < 0) {
        error = errno;
    } else {
        *stage = ISOLIB_AWAY_ENTER;
        if (visit->target < 0 || setns(visit->target, visit->kind) == 0)
            made = visit->act(visit, stage);
        error = made < 0 ? errno : 0;
        if (setns(before, visit->kind) < 0) {
            *stage = ISOLIB_AWAY_RETURN;
            error = errno;
        }
    }
    close(before);
    if (error && made >= 0)
        close(made);
    errno = error;
    return error ? -1 : made;
}

static int make_namespace(const struct visit *visit, int32_t *stage) {
    struct stat status;
    int fd;
    *stage = ISOLIB_AWAY_UNSHARE;
    if (unshare(visit->kind) < 0)
        return -1;
    *stage = ISOLIB_AWAY_LINK_UP;
    if (visit->lo && isolib_link_up("lo") < 0)
        return -1;
    *stage = ISOLIB_AWAY_HOSTNAME;
    if (visit->hostname && sethostname(visit->hostname, strlen(visit->hostname)) < 0)
        return -1;
    *stage = ISOLIB_AWAY_DOMAINNAME;
    if (visit->domainname && setdomainname(visit->domainname, strlen(visit->domainname)) < 0)
        return -1;
    *stage = ISOLIB_AWAY_REOPEN;
    fd = open(visit->file, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    if (fstat(fd, &status) < 0) {
        close(fd);
        return -1;
    }
    *visit->identity = (struct isolib_identity){status.st_dev, status.st_ino};
    return fd;
}

int isolib_namespace_new(int kind, const char *file, int lo, const char *hostname, const char *domainname, int32_t *stage,
                         struct isolib_identity *identity) {
    struct visit visit = {.act = make_namespace, .kind = kind, .file = file, .target = -1, .lo = lo};
    visit.hostname = hostname;
    visit.domainname = domainname;
    visit.identity = identity;
    return run_visit(&visit, stage);
}

int isolib_socket(int family, int type, int protocol) {
    return socket(family, type | SOCK_CLOEXEC, protocol);
}

static int make_socket(const struct visit *visit, int32_t *stage) {
    *stage = ISOLIB_AWAY_SOCKET;
    return isolib_socket(visit->family, visit->type, visit->protocol);
}

int isolib_socket_in(int net, const char *file, int family, int type, int protocol, int32_t *stage) {
    struct visit visit = {.act = make_socket, .kind = CLONE_NEWNET, .file = file, .target = net};
    visit.family = family;
    visit.type = type;
    visit.protocol = protocol;
    return run_visit(&visit, stage);
}

static int open_file(const struct visit *visit, int32_t *stage) {
    *stage = ISOLIB_AWAY_FILE;
    return open(visit->path, visit->type | O_CLOEXEC);
}

int isolib_open_in(int net, const char *file, const char *path, int flags, int32_t *stage) {
    struct visit visit = {.act = open_file, .kind = CLONE_NEWNET, .file = file, .target = net, .path = path};
    visit.type = flags;
    return run_visit(&visit, stage);
}

/* Returns the file. */
static int put(const struct visit *visit, int32_t *stage) {
    int error, fd;
    *stage = ISOLIB_AWAY_FILE;
    fd = open(visit->path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    *stage = ISOLIB_AWAY_PUT;
    if (write(fd, visit->text, strlen(visit->text)) >= 0)
        return fd;
    error = errno;
    close(fd);
    errno = error;
    return -1;
}

int isolib_put_in(int net, const char *file, const char *path, const char *text, int32_t *stage) {
    struct visit visit = {.act = put, .kind = CLONE_NEWNET, .file = file, .target = net, .path = path};
    visit.text = text;
    int fd = run_visit(&visit, stage);
    return fd < 0 ? -1 : close(fd);
}

static int make_netlink(const struct visit *visit, int32_t *stage) {
    int error, fd = visit->path ? put(visit, stage) : -1;
    if (visit->path && (fd < 0 || close(fd) < 0))
        return -1;
    fd = make_socket(visit, stage);
    if (fd < 0)
        return -1;
    *stage = ISOLIB_AWAY_CONNECT;
    if (isolib_netlink_prepare(fd) == 0)
        return fd;
    error = errno;
    close(fd);
    errno = error;
    return -1;
}

int isolib_netlink_in(int net, const char *file, int protocol, const char *path, const char *text, int32_t *stage) {
    struct visit visit = {.act = make_netlink, .kind = CLONE_NEWNET, .file = file, .target = net, .path = path};
    visit.text = text;
    visit.family = AF_NETLINK;
    visit.type = SOCK_RAW;
    visit.protocol = protocol;
    return run_visit(&visit, stage);
}

void isolib_stay_forget(struct isolib_stay *stay) {
    if (stay->before >= 0)
        close(stay->before);
    stay->before = -1;
}

int isolib_stay_begin(struct isolib_stay *stay, int fd, const char *file) {
    int error, result = -1;
    stay->before = open(file, O_RDONLY | O_CLOEXEC);
    if (stay->before < 0)
        return -1;
    if (setns(stay->before, stay->kind) < 0)
        result = -2;
    else if (setns(fd, stay->kind) < 0)
        result = -3;
    else
        return 0;
    error = errno;
    isolib_stay_forget(stay);
    errno = error;
    return result;
}

int isolib_stay_end(struct isolib_stay *stay) {
    if (stay->before >= 0 && setns(stay->before, stay->kind) < 0)
        return -1;
    isolib_stay_forget(stay);
    return 0;
}
