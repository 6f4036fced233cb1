/*
 * Small files as they are in a tar, many in one call: nearly all files of most trees are such, and from Python the entry, the
 * header and the record of each take longer than reading it.  The bytes are those that isolib.unionfs.archive.writing makes of
 * the same files.  Whatever is not plain is left to that: several names, attributes, a path or a number that does not fit.
 * Nothing is parsed here; every number comes from the kernel.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "files.h"
#include "wrappers.h"

enum { BLOCK = 512, NAME_ROOM = 100, PREFIX_ROOM = 155, PATH_ROOM = PREFIX_ROOM + 1 + NAME_ROOM };
enum { LARGEST_ID = 07777777, RECORD_ROOM = 64, PERMISSIONS = 07777 };
static const int64_t LARGEST_TIME = 077777777777;

struct header { /* of ustar */
    char name[NAME_ROOM], mode[8], uid[8], gid[8], size[12], modified[12], sum[8], type, link[100], magic[8];
    char user[32], group[32], major[8], minor[8], prefix[167];
};

_Static_assert(sizeof(struct header) == BLOCK, "a header is a block");

/* What the directory's path is, with a slash, and room for a name. */
struct place {
    char path[PATH_ROOM + NAME_MAX + 2];
    size_t length;
};

/* ---- texts ---- */

static void put_octal(char *field, int digits, uint64_t value) {
    for (; digits > 0; value >>= 3)
        field[--digits] = (char)('0' + (value & 7));
}

static int put_decimal(char *at, uint64_t value) {
    char digits[24];
    int count = 0;
    do
        digits[count++] = (char)('0' + value % 10);
    while (value /= 10);
    for (int i = 0; i < count; i++)
        at[i] = digits[count - 1 - i];
    return count;
}

static void put_number(char *at, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++)
        at[i] = (char)(value >> (8 * i));
}

/* ---- what is plain ---- */

static int is_ascii(const char *text) {
    for (; *text; text++)
        if (*text & 0x80)
            return 0;
    return 1;
}

/* Names with .wh. in them mean something else. */
static int is_plain_text(const char *text) {
    return is_ascii(text) && !strstr(text, ".wh.");
}

static int begin(struct place *place, const char *path) {
    place->length = strlen(path);
    if (place->length >= PATH_ROOM || !is_plain_text(path))
        return -1;
    memcpy(place->path, path, place->length);
    if (place->length > 0)
        place->path[place->length++] = '/';
    return 0;
}

/* Where the name begins in the path, when what is before it is the prefix; 0: it all is the name; -1: it does not fit. */
static long divide(const char *path, size_t length) {
    const size_t last = length - 1 < PREFIX_ROOM + 1 ? length - 1 : PREFIX_ROOM + 1;
    if (length <= NAME_ROOM)
        return 0;
    for (size_t at = length - NAME_ROOM - 1; at < last; at++)
        if (path[at] == '/')
            return at > 0 ? (long)at + 1 : -1;
    return -1;
}

static int is_plain(const struct statx *seen) {
    return S_ISREG(seen->stx_mode) && seen->stx_nlink == 1 && seen->stx_size <= ISOLIB_PACK_SMALL &&
           seen->stx_uid <= LARGEST_ID && seen->stx_gid <= LARGEST_ID && seen->stx_mtime.tv_sec >= 0 &&
           seen->stx_mtime.tv_sec <= LARGEST_TIME;
}

/* Labels of the host's are kept nowhere (files.py), and where there are any, every file has one. */
static int has_attributes(int fd, int dir, const char *name) {
    static const char label[] = "security.selinux";
    char names[sizeof(label) + 1];
    int64_t size = fd >= 0 ? flistxattr(fd, names, sizeof(names)) : isolib_xattr_list(dir, name, names, sizeof(names));
    if (size < 0)
        return errno != ENOTSUP;
    return size > 0 && (size != sizeof(label) || memcmp(names, label, sizeof(label)) != 0);
}

static int is_same_time(const struct statx_timestamp *one, const struct statx_timestamp *other) {
    return one->tv_sec == other->tv_sec && one->tv_nsec == other->tv_nsec;
}

/* Whether the contents would have to be compared, or something is in the way. */
static int may_be_below(int below, const char *name, const struct statx *seen) {
    struct statx old;
    if (below < 0)
        return 0;
    if (statx(below, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_BASIC_STATS, &old) < 0)
        return errno != ENOENT;
    return old.stx_mode == seen->stx_mode && old.stx_uid == seen->stx_uid && old.stx_gid == seen->stx_gid &&
           old.stx_size == seen->stx_size && is_same_time(&old.stx_mtime, &seen->stx_mtime);
}

/* ---- headers ---- */

static void finish_header(struct header *header) {
    const unsigned char *bytes = (const unsigned char *)header;
    unsigned sum = 0;
    memcpy(header->magic, "ustar\00000", sizeof(header->magic));
    memset(header->sum, ' ', sizeof(header->sum));
    for (size_t i = 0; i < BLOCK; i++)
        sum += bytes[i];
    put_octal(header->sum, 6, sum);
    header->sum[6] = '\0';
}

/* An extended header that has the whole time; returns its size. */
static uint64_t put_time(char *at, int64_t seconds, uint32_t ns) {
    static const char name[] = "././@PaxHeader";
    struct header *header = (struct header *)at;
    char text[RECORD_ROOM] = "mtime=";
    int length = 6, all;
    length += put_decimal(text + length, (uint64_t)seconds);
    text[length++] = '.';
    for (uint32_t unit = 100000000; unit > 0; unit /= 10)
        text[length++] = (char)('0' + ns / unit % 10);
    text[length++] = '\n';
    all = length + 3; /* its own two digits and a space: it never is longer than 99, nor shorter than 10 */
    memset(at, 0, 2 * BLOCK);
    memcpy(header->name, name, sizeof(name));
    put_octal(header->mode, 7, 0644);
    put_octal(header->uid, 7, 0);
    put_octal(header->gid, 7, 0);
    put_octal(header->size, 11, (uint64_t)all);
    put_octal(header->modified, 11, 0);
    header->type = 'x';
    finish_header(header);
    at += BLOCK;
    at += put_decimal(at, (uint64_t)all);
    *at++ = ' ';
    memcpy(at, text, (size_t)length);
    return 2 * BLOCK;
}

static uint64_t put_head(char *at, const struct place *place, size_t length, long middle, const struct statx *seen,
                         const struct isolib_pack *pack) {
    int64_t seconds = seen->stx_mtime.tv_sec;
    uint32_t ns = seen->stx_mtime.tv_nsec;
    struct header *header;
    uint64_t used = 0;
    if (seconds > pack->latest_s || (seconds == pack->latest_s && ns > pack->latest_ns)) {
        seconds = pack->latest_s;
        ns = pack->latest_ns;
    }
    if (ns > 0)
        used = put_time(at, seconds, ns);
    header = (struct header *)(at + used);
    memset(header, 0, BLOCK);
    memcpy(header->name, place->path + middle, length - (size_t)middle);
    if (middle > 0) {
        memcpy(header->prefix, place->path, (size_t)middle - 1);
        put_octal(header->major, 7, 0);
        put_octal(header->minor, 7, 0);
    }
    put_octal(header->mode, 7, seen->stx_mode & PERMISSIONS);
    put_octal(header->uid, 7, seen->stx_uid);
    put_octal(header->gid, 7, seen->stx_gid);
    put_octal(header->size, 11, seen->stx_size);
    put_octal(header->modified, 11, (uint64_t)seconds);
    header->type = '0';
    finish_header(header);
    return used + BLOCK;
}

/* ---- records ---- */

enum { RECORD_HEAD = 9, LENGTH = 2 };

/* What is recorded as it is: `open` is where the record begins that is still growing, if one is. */
struct recording {
    struct isolib_pack *pack;
    uint64_t open;
    int is_open;
};

static void record_bytes(struct recording *to, const char *data, uint64_t size) {
    struct isolib_pack *pack = to->pack;
    if (!pack->is_recorded || size == 0)
        return;
    if (!to->is_open) {
        to->open = pack->records_used;
        to->is_open = 1;
        pack->records[pack->records_used] = 'r';
        pack->records_used += RECORD_HEAD;
    }
    memcpy(pack->records + pack->records_used, data, size);
    pack->records_used += size;
}

static void close_record(struct recording *to) {
    if (to->is_open)
        put_number(to->pack->records + to->open + 1, to->pack->records_used - to->open - RECORD_HEAD, 8);
    to->is_open = 0;
}

static void record_content(struct recording *to, const struct place *place, size_t length, uint64_t size) {
    struct isolib_pack *pack = to->pack;
    char *at = pack->records + pack->records_used;
    if (!pack->is_recorded)
        return;
    close_record(to);
    at[0] = 'c';
    put_number(at + 1, size, 8);
    put_number(at + RECORD_HEAD, length, LENGTH);
    memcpy(at + RECORD_HEAD + LENGTH, place->path, length);
    pack->records_used += RECORD_HEAD + LENGTH + length;
    pack->contents++;
}

/* ---- the whole ---- */

/* Opens a file and reads it to where its content goes; whether that is all that there is to it. */
static int read_plain(const struct isolib_pack *pack, const char *name, const struct statx *seen, char *content) {
    int fd = -1, result;
    if (seen->stx_size > 0 && (fd = isolib_open_seen(pack->dir, name, seen)) < 0)
        return 0;
    result = !has_attributes(fd, pack->dir, name) && (fd < 0 || isolib_read_whole(fd, seen->stx_size, content));
    if (fd >= 0)
        close(fd);
    return result;
}

/* 0: it is packed; -1: it is left */
static int pack_one(struct recording *to, struct place *place, const char *name) {
    struct isolib_pack *pack = to->pack;
    size_t size = strlen(name), length = place->length + size;
    char *at = pack->tar + pack->tar_used, *content;
    struct statx seen;
    uint64_t fill;
    long middle;
    if (size > NAME_MAX || length > PATH_ROOM || !is_plain_text(name))
        return -1;
    memcpy(place->path + place->length, name, size);
    middle = divide(place->path, length);
    if (middle < 0 || statx(pack->dir, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_BASIC_STATS, &seen) < 0)
        return -1;
    if (!is_plain(&seen) || may_be_below(pack->below, name, &seen))
        return -1;
    content = at + put_head(at, place, length, middle, &seen, pack);
    if (!read_plain(pack, name, &seen, content))
        return -1;
    record_bytes(to, at, (uint64_t)(content - at));
    if (seen.stx_size > 0)
        record_content(to, place, length, seen.stx_size);
    fill = (BLOCK - seen.stx_size % BLOCK) % BLOCK;
    memset(content + seen.stx_size, 0, fill);
    record_bytes(to, content + seen.stx_size, fill);
    pack->tar_used += (uint64_t)(content - at) + seen.stx_size + fill;
    return 0;
}

uint32_t isolib_pack(struct isolib_pack *pack, const char *names, uint32_t count) {
    struct recording recording = {pack, 0, 0};
    struct place place;
    uint32_t done;
    pack->is_full = 0;
    if (begin(&place, pack->path) < 0)
        return 0;
    for (done = 0; done < count; done++) {
        pack->is_full = pack->tar_room - pack->tar_used < ISOLIB_PACK_ROOM ||
                        (pack->is_recorded && pack->records_room - pack->records_used < ISOLIB_PACK_ROOM);
        if (pack->is_full || pack_one(&recording, &place, names) < 0)
            break;
        names += strlen(names) + 1;
    }
    close_record(&recording);
    return done;
}
