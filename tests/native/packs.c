/* packs [COUNT]: random directories, packed into room that is exactly as much as it is said to be, that AddressSanitizer sees
 * who goes beyond.  What is packed must be blocks whose check sums are right, and whose contents are the files'. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "wrappers.h"

enum { MOST = 8, BLOCK = 512, LONGEST = 255 };

static unsigned below(unsigned limit) {
    return (unsigned)random() % limit;
}

static void check(int is_true, const char *what) {
    if (!is_true) {
        fprintf(stderr, "%s (errno %d)\n", what, errno);
        exit(1);
    }
}

static void make_name(char *name, unsigned number) {
    const unsigned length = below(5) ? 1 + below(12) : 1 + below(LONGEST - 4);
    memset(name, below(20) ? 'n' : 0xC3, length);
    sprintf(name + length, "%03u", number);
}

static void make_file(int dir, const char *name) {
    const unsigned sizes[] = {
        0, 1, BLOCK - 1, BLOCK, BLOCK + 1, ISOLIB_PACK_SMALL - 1, ISOLIB_PACK_SMALL, ISOLIB_PACK_SMALL + 1};
    const struct timespec times[2] = {{0, 0}, {below(8) ? (long)below(2000000000) : -5, below(2) ? below(1000000000) : 0}};
    const unsigned size = below(4) ? below(9000) : sizes[below(sizeof(sizes) / sizeof(sizes[0]))];
    char *data = malloc(size + 1);
    int fd = openat(dir, name, O_CREAT | O_WRONLY | O_EXCL | O_CLOEXEC, 0600 | below(0200));
    check(fd >= 0, "a file");
    memset(data, name[strlen(name) - 1], size);
    check(write(fd, data, size) == (ssize_t)size && futimens(fd, times) == 0, "its content");
    close(fd);
    free(data);
}

static unsigned long number(const char *field) {
    return strtoul(field, NULL, 8);
}

/* A header, whose sum is right: returns what comes after it and its content. */
static const char *check_header(const char *at, const char *end, unsigned *files) {
    unsigned long sum = 8 * ' ', size = number(at + 124);
    check(end - at >= BLOCK, "a whole header");
    for (int i = 0; i < BLOCK; i++)
        sum += i < 148 || i >= 156 ? (unsigned char)at[i] : 0;
    check(sum == number(at + 148), "its sum");
    check(memcmp(at + 257, "ustar\00000", 8) == 0, "its format");
    *files += at[156] == '0';
    if (at[156] == '0' && size > 0)
        check(at[BLOCK] == at[BLOCK + size - 1] && at[BLOCK] >= '0' && at[BLOCK] <= '9', "its content");
    return at + BLOCK + (size + BLOCK - 1) / BLOCK * BLOCK;
}

static unsigned check_archive(const struct isolib_pack *pack) {
    const char *at = pack->tar, *end = pack->tar + pack->tar_used;
    unsigned files = 0;
    while (at < end)
        at = check_header(at, end, &files);
    check(at == end, "the end of the archive");
    return files;
}

/* Records: how long they are says each of them, and all they tell of is the archive. */
static void check_records(const struct isolib_pack *pack) {
    const unsigned char *at = (const unsigned char *)pack->records, *end = at + pack->records_used;
    uint64_t told = 0, size;
    while (at < end) {
        const int kind = *at++;
        memcpy(&size, at, sizeof(size));
        at += sizeof(size);
        told += size;
        check(kind == 'r' || kind == 'c', "a record");
        at += kind == 'r' ? size : 2U + at[0] + 256U * at[1];
    }
    check(at == end, "the end of the records");
    check(told == (pack->is_recorded ? pack->tar_used : 0), "what they tell of");
}

static unsigned packed;

static void pack_all(int dir, const char *path, const char *names, unsigned count) {
    const uint64_t rooms[] = {0, ISOLIB_PACK_ROOM - 1, ISOLIB_PACK_ROOM, 2 * ISOLIB_PACK_ROOM, 8 * ISOLIB_PACK_ROOM};
    struct isolib_pack pack = {.dir = dir, .below = below(8) ? -1 : dir, .path = path, .latest_s = below(2) ? INT64_MAX : 1000};
    unsigned done;
    pack.tar_room = rooms[below(2) ? 4 : below(5)];
    pack.records_room = rooms[below(2) ? 4 : below(5)];
    pack.is_recorded = below(2);
    pack.tar = malloc(pack.tar_room + !pack.tar_room);
    pack.records = malloc(pack.records_room + !pack.records_room);
    done = isolib_pack(&pack, names, count);
    check(done <= count && pack.tar_used <= pack.tar_room && pack.records_used <= pack.records_room, "room");
    check(check_archive(&pack) == done, "how many");
    check_records(&pack);
    packed += done;
    if (pack.below >= 0)
        check(done == 0, "what is the same below");
    free(pack.tar);
    free(pack.records);
}

static void try_one(const char *top) {
    const unsigned count = below(MOST), deep = below(2) ? below(20) : below(300);
    char *paths = malloc(deep + 1), *names = malloc(count * (LONGEST + 1U) + 1), *end = names, *exact;
    const int made = mkdir(top, 0700), dir = open(top, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    check(made == 0 && dir >= 0, "a directory");
    memset(paths, 'd', deep);
    paths[deep] = '\0';
    for (unsigned i = 0; i < count; i++) {
        make_name(end, i);
        if (below(20))
            make_file(dir, end);
        end += strlen(end) + 1;
    }
    exact = malloc((size_t)(end - names) + !count);
    memcpy(exact, names, (size_t)(end - names));
    pack_all(dir, paths, exact, count);
    for (const char *name = exact; name < exact + (end - names); name += strlen(name) + 1)
        unlinkat(dir, name, 0);
    close(dir);
    check(rmdir(top) == 0, "its end");
    free(exact);
    free(names);
    free(paths);
}

int main(int argc, char **argv) {
    char top[] = "/tmp/packs-XXXXXX", path[64];
    const long count = argc > 1 ? atol(argv[1]) : 3000;
    check(mkdtemp(top) != NULL, "a directory of its own");
    snprintf(path, sizeof(path), "%s/one", top);
    for (long i = 0; i < count; i++) {
        srandom((unsigned)i);
        try_one(path);
    }
    check(rmdir(top) == 0, "the end of it");
    printf("%ld directories, %u files packed\n", count, packed);
    check(packed > 0 || count < 100, "files that are packed");
    return 0;
}
