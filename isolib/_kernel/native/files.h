#ifndef ISOLIB_FILES_H
#define ISOLIB_FILES_H
/* What is shared by those that look at files. */
#include <stdint.h>

struct statx;

/* linux_dirent64 of getdents64(2) */
struct isolib_dirent {
    uint64_t inode;
    int64_t offset;
    unsigned short length;
    unsigned char type;
    char name[];
};

/* Opens a file to be read if it is the one that was looked at; -1 otherwise. */
int isolib_open_seen(int dir, const char *name, const struct statx *seen);
/* whether a file has so many bytes, which are there then */
int isolib_read_whole(int fd, uint64_t size, char *data);
#endif
