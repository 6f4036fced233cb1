/* A conversation with the kernel about several network namespaces, in one call: from Python each part of it would give the
 * interpreter up.  What is said in one turn presupposes what was said in those before, so the first that fails is the last. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/netlink.h>
#include <string.h>
#include <sys/socket.h>

#include "wrappers.h"

/* Whether the last of several requests was carried out, as far as these answers say, and none of them was refused. */
static int is_whole(const char *answers, uint32_t size, uint32_t last) {
    struct nlmsghdr header;
    int32_t error;
    int whole = 0;
    for (uint32_t at = 0, left; (left = size - at) >= sizeof(header); at += NLMSG_ALIGN(header.nlmsg_len)) {
        memcpy(&header, answers + at, sizeof(header));
        if (header.nlmsg_len < sizeof(header) || header.nlmsg_len > left)
            return 0;
        if (header.nlmsg_type == NLMSG_ERROR) {
            if (header.nlmsg_len < sizeof(header) + sizeof(error))
                return 0;
            memcpy(&error, answers + at + sizeof(header), sizeof(error));
            if (error)
                return 0;
            whole |= header.nlmsg_seq == last;
        }
        if (NLMSG_ALIGN(header.nlmsg_len) >= left)
            break;
    }
    return whole;
}

/* Returns how far it came, or 0. */
static int32_t prepare(struct isolib_turn *turn, const char *file, int *made) {
    int32_t stage = 0;
    int result;
    if (turn->fd < 0)
        result = *made = isolib_netlink_in(turn->net, file, turn->protocol, turn->path, turn->text, &stage);
    else if (turn->path)
        result = isolib_put_in(turn->net, file, turn->path, turn->text, &stage);
    else
        return 0;
    if (result < 0)
        return stage;
    if (turn->fd < 0)
        turn->fd = result;
    turn->path = NULL; /* done: the turn may be taken again */
    return 0;
}

/* Returns 0 or an errno. */
static int32_t talk(const struct isolib_conversation *with, struct isolib_turn *turn, uint32_t heard) {
    int32_t error;
    int got = isolib_netlink_talk(turn->fd, turn->sent, turn->size, with->heard + heard, with->room - heard, &error);
    turn->start = heard;
    turn->end = heard + (uint32_t)(got < 0 ? 0 : got);
    return got < 0 ? errno : error;
}

int isolib_converse(struct isolib_conversation *with, const char *file) {
    uint32_t heard = with->done ? with->turns[with->done - 1].end : 0;
    int made = -1;
    for (; with->done < with->count; with->done++) {
        struct isolib_turn *turn = &with->turns[with->done];
        with->error = 0;
        with->stage = prepare(turn, file, &made);
        if (with->stage) {
            with->error = errno;
            break;
        }
        with->stage = ISOLIB_AWAY_TALK;
        with->error = talk(with, turn, heard);
        if (with->error || !is_whole(with->heard + turn->start, turn->end - turn->start, turn->last))
            break;
        heard = turn->end;
    }
    return made;
}
