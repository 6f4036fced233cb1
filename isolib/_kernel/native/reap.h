#ifndef ISOLIB_REAP_H
#define ISOLIB_REAP_H
/* What the reaper's two parts know of each other: the table and the process in reap.c, one group in group.c. */
#include "launcher.h"

/* What a descriptor is that the host has sent: a directory of cgroups of either version, a netlink socket, an open setting, the
 * root of a mount. */
enum { V1 = 1, V2 = 2, NETLINK = 3, SETTING = 4, MOUNT = 5 };

/* A directory in which groups are made, or whatever else names are looked up in. */
struct directory {
    int32_t fd; /* -1: none */
    int32_t version;
};

/* This directory, or the one above. */
static inline int is_dots(const char *name) {
    return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
}

/* Waits for less than a second; returns whether the event came. */
int wait_for(int fd, int events, int64_t until);

/* Ends what is in a group and below it, and waits for nothing. */
void end_group(const struct directory *base, const char *name);
/* Removes a group with all below it, and what is in them; returns whether it is there still, and trying again may help. */
int remove_group(const struct directory *base, const char *name, int64_t deadline_ns);
#endif
