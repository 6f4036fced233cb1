/* The host's side of the reaper: its table in a memory file, and the directories that it is sent. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "wrappers.h"

_Static_assert(sizeof(struct isolib_table) == 64 && sizeof(struct isolib_entry) == 320, "reaper.py computes with these");

enum { TABLE_SIZE = sizeof(struct isolib_table) + ISOLIB_TABLE_ENTRIES * sizeof(struct isolib_entry) };

/* Its size is sealed: an access beyond the end of a file that somebody has cut would be a SIGBUS. */
int isolib_table_new(void) {
    static const struct isolib_table empty = {.magic = ISOLIB_TABLE_MAGIC,
                                              .version = ISOLIB_TABLE_VERSION,
                                              .entry_size = sizeof(struct isolib_entry),
                                              .capacity = ISOLIB_TABLE_ENTRIES};
    int error, fd = isolib_raise_fd(memfd_create("isolib-table", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (fd < 0)
        return -1;
    if (ftruncate(fd, TABLE_SIZE) == 0 && pwrite(fd, &empty, sizeof(empty), 0) == (ssize_t)sizeof(empty) &&
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0)
        return fd;
    error = errno;
    close(fd);
    errno = error;
    return -1;
}

void *isolib_table_map(int fd) {
    void *table = mmap(NULL, TABLE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return table == MAP_FAILED ? NULL : table;
}

void isolib_table_unmap(void *table) {
    munmap(table, TABLE_SIZE);
}

/* The reaper takes each at once, if it gets the processor; somebody may have stopped it, so it is not waited for without limit.
 */
static int send_within(int fd, const struct msghdr *message, int milliseconds) {
    struct pollfd room = {fd, POLLOUT, 0};
    ssize_t sent = sendmsg(fd, message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EAGAIN && poll(&room, 1, milliseconds) >= 0)
        sent = sendmsg(fd, message, MSG_NOSIGNAL | MSG_DONTWAIT);
    return sent < 0 ? -1 : 0;
}

int isolib_table_send_base(int status, const struct isolib_base *base, int fd) {
    struct isolib_base said = *base;
    struct iovec part = {&said, sizeof(said)};
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr aligned;
    } control = {{0}};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof(control);
        control.aligned.cmsg_level = SOL_SOCKET;
        control.aligned.cmsg_type = SCM_RIGHTS;
        control.aligned.cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(&control.aligned), &fd, sizeof(fd));
    }
    return send_within(status, &message, 1000);
}

int isolib_table_await_answer(int status, uint32_t answer, int milliseconds) {
    struct pollfd heard = {status, POLLIN, 0};
    struct isolib_message message;
    ssize_t got;
    for (;;) {
        got = recv(status, &message, sizeof(message), MSG_DONTWAIT);
        if (got == sizeof(message) && message.type == ISOLIB_HOLDING && (uint32_t)message.value == answer)
            return 0;
        if (got > 0)
            continue;
        if (got == 0 || errno != EAGAIN)
            return -1;
        if (poll(&heard, 1, milliseconds) <= 0)
            return -1;
    }
}
