/* conversations [COUNT]: random conversations with a kernel that this program is.  They end at the first turn that fails,
 * whatever the answers are made of, say how far they came, and go on from there. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/netlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wrappers.h"

enum { MOST = 5, ROOM = 400, SOCKET = 50, NET = 60 };

static unsigned said, made, written;
static int expected; /* what has failed: a stage, or 0 */

static unsigned below(unsigned limit) {
    return (unsigned)random() % limit;
}

static void check(int is_true, const char *what) {
    if (!is_true) {
        fprintf(stderr, "%s\n", what);
        exit(1);
    }
}

int isolib_put_in(int net, const char *file, const char *path, const char *text, int32_t *stage) {
    check(net == NET && file && path && text, "a setting is not that of the namespace");
    *stage = ISOLIB_AWAY_PUT;
    if (below(6) == 0) {
        expected = ISOLIB_AWAY_PUT;
        errno = EINVAL;
        return -1;
    }
    written++;
    return 0;
}

int isolib_netlink_in(int net, const char *file, int protocol, const char *path, const char *text, int32_t *stage) {
    check(net == NET && file && protocol == NETLINK_ROUTE && !path == !text, "a socket is not that of the namespace");
    *stage = ISOLIB_AWAY_SOCKET;
    if (below(6) == 0) {
        expected = ISOLIB_AWAY_SOCKET;
        errno = EPERM;
        return -1;
    }
    made++;
    written += path != NULL;
    return SOCKET;
}

static uint32_t answer(char *heard, uint32_t room, uint32_t sequence, int32_t error) {
    const struct nlmsghdr header = {.nlmsg_len = NLMSG_HDRLEN + 4, .nlmsg_type = NLMSG_ERROR, .nlmsg_seq = sequence};
    if (room < header.nlmsg_len)
        return 0;
    memcpy(heard, &header, sizeof(header));
    memcpy(heard + NLMSG_HDRLEN, &error, sizeof(error));
    return header.nlmsg_len;
}

int isolib_netlink_talk(int fd, const char *sent, uint32_t size, char *heard, uint32_t room, int32_t *error) {
    uint32_t done;
    check(fd >= SOCKET && size == 4 && !memcmp(sent, "said", size), "something else was said, or to somebody else");
    said++;
    *error = 0;
    switch (below(8)) {
    case 0: /* anything */
        done = below(room < 64 ? room + 1 : 64);
        for (uint32_t i = 0; i < done; i++)
            heard[i] = (char)below(below(2) ? 4 : 256);
        return (int)done;
    case 1:
        expected = ISOLIB_AWAY_TALK;
        return (int)answer(heard, room, 7, -EEXIST);
    case 2:
        expected = ISOLIB_AWAY_TALK;
        *error = ENOBUFS;
        return 0;
    case 3:
        expected = ISOLIB_AWAY_TALK;
        errno = EMSGSIZE;
        return -1;
    default:
        done = answer(heard, room, 3, 0);
        done += answer(heard + done, room - done, 7, 0);
        return (int)done;
    }
}

/* Each is as long as it says, that AddressSanitizer sees who goes beyond. */
static struct isolib_conversation *new_conversation(void) {
    uint32_t count = 1 + below(MOST), stranger = below(2 * MOST);
    struct isolib_conversation *with = calloc(1, sizeof(*with) + count * sizeof(with->turns[0]));
    with->count = count;
    with->room = below(ROOM);
    with->heard = malloc(with->room + !with->room);
    for (uint32_t i = 0; i < count; i++) {
        struct isolib_turn *turn = &with->turns[i];
        *turn = (struct isolib_turn){.fd = i == stranger ? -1 : SOCKET + 1, .net = NET, .sent = "said", .size = 4, .last = 7};
        if (below(3) == 0) {
            turn->path = "path";
            turn->text = "text";
        }
    }
    return with;
}

static void hold(void) {
    struct isolib_conversation *with = new_conversation();
    for (int again = 0; again < 3; again++) {
        uint32_t before = with->done;
        int result;
        said = made = written = 0;
        expected = 0;
        result = isolib_converse(with, "file");
        check(result == (made ? SOCKET : -1) && made < 2, "it returns another socket than it has made");
        check(with->done >= before && with->done <= with->count, "it took more turns than there are");
        check(with->done < with->count || !expected, "it has not seen what failed");
        check(with->done == with->count || !expected || with->stage == expected, "something else failed");
        check(said == with->done - before + (with->done < with->count && with->stage == ISOLIB_AWAY_TALK),
              "it went on after what failed");
        for (uint32_t i = 0; i < with->done; i++)
            check(with->turns[i].start < with->turns[i].end && with->turns[i].end <= with->room && !with->turns[i].path &&
                      with->turns[i].fd >= SOCKET && (!i || with->turns[i].start == with->turns[i - 1].end),
                  "a turn was taken in part");
    }
    free(with->heard);
    free(with);
}

int main(int argc, char **argv) {
    long count = argc > 1 ? atol(argv[1]) : 200000;
    for (long i = 0; i < count; i++)
        hold();
    printf("%ld conversations\n", count);
    return 0;
}
