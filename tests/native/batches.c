/* batches [COUNT]: random batches in a directory of its own, with too few descriptors now and then.  What a batch says must be
 * so: how many were done, what they have opened, and that nothing is open when it is closed. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "wrappers.h"

enum { MOST = 12, ROOM = 64 };

static const char *const names[] = {"a", "b", "a/c", "file", "no/such", "", "/dev/full", "/dev/null"};
static const char *const contents[] = {"", "1", "max", "a longer text than the others"};

static unsigned below(unsigned limit) {
    return (unsigned)random() % limit;
}

static int open_descriptors(void) {
    int count = 0;
    for (int fd = 0; fd < 100; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void check(int is_true, const char *what) {
    if (!is_true) {
        fprintf(stderr, "%s (errno %d)\n", what, errno);
        exit(1);
    }
}

static char *append(char *at, const char *text) {
    return stpcpy(at, text) + 1;
}

/* Exactly as long as it says it is, that AddressSanitizer sees who goes beyond. */
static struct isolib_batch *new_batch(int base, struct isolib_batch *other) {
    uint32_t count = below(MOST);
    struct isolib_batch *batch = calloc(1, sizeof(*batch) + count * sizeof(batch->errands[0]));
    char texts[MOST * 2 * ROOM], *end = texts, *kept;
    for (uint32_t i = 0; i < count; i++) {
        struct isolib_errand *one = &batch->errands[i];
        *one = (struct isolib_errand){.kind = 1 + (int)below(ISOLIB_ERRAND_CLOSE + 1), .base = base, .fd = -1};
        one->flags = below(2) ? O_PATH : O_RDONLY | O_DIRECTORY;
        end = append(end, names[below(sizeof(names) / sizeof(names[0]))]);
        end = append(end, below(4) ? contents[below(sizeof(contents) / sizeof(contents[0]))] : "file");
        if (one->kind == ISOLIB_ERRAND_CLOSE)
            one->data = other;
        if (one->kind == ISOLIB_ERRAND_READ) {
            one->size = below(ROOM);
            one->data = malloc(one->size);
        }
    }
    kept = malloc((size_t)(end - texts) + !count);
    memcpy(kept, count ? texts : "", (size_t)(end - texts) + !count);
    batch->count = count;
    batch->texts = kept;
    return batch;
}

static void free_batch(struct isolib_batch *batch) {
    for (uint32_t i = 0; i < batch->count; i++)
        if (batch->errands[i].kind == ISOLIB_ERRAND_READ)
            free(batch->errands[i].data);
    free((void *)(uintptr_t)batch->texts);
    free(batch);
}

static int opened_by(const struct isolib_batch *batch) {
    int count = 0;
    for (uint32_t i = 0; i < batch->count; i++) {
        const struct isolib_errand *one = &batch->errands[i];
        check(one->fd < 0 || i < batch->done, "what was not done has opened something");
        check(one->read <= one->size, "more was read than there is room for");
        count += one->fd >= 0;
    }
    return count;
}

static void run(struct isolib_batch *batch) {
    while (isolib_batch_run(batch) < 0) {
        check(batch->done < batch->count && batch->call && errno > 0, "a failure that tells nothing");
        if (below(3) == 0)
            return;
        batch->done++;
    }
    check(batch->done == batch->count, "not all was done");
}

int main(int argc, char **argv) {
    char place[] = "/tmp/isolib-batches-XXXXXX";
    struct rlimit before, few;
    int base, count = argc > 1 ? atoi(argv[1]) : 20000, start;
    check(mkdtemp(place) != NULL && chdir(place) == 0 && close(creat("file", 0600)) == 0, place);
    base = open(place, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    start = open_descriptors();
    getrlimit(RLIMIT_NOFILE, &before);
    for (int i = 0; i < count; i++) {
        struct isolib_batch *first = new_batch(base, NULL), *second;
        for (uint32_t j = 0; j < first->count; j++)
            if (first->errands[j].kind == ISOLIB_ERRAND_CLOSE)
                first->errands[j].kind = ISOLIB_ERRAND_ABSENT;
        second = new_batch(base, first);
        few = before;
        few.rlim_cur = below(3) ? before.rlim_cur : (rlim_t)(start + (int)below(MOST));
        setrlimit(RLIMIT_NOFILE, &few);
        run(first);
        run(second);
        check(open_descriptors() == start + opened_by(first) + opened_by(second), "something is open that nobody has");
        if (second->count)
            isolib_errand_close(&second->errands[below(second->count)]);
        isolib_batch_close(second);
        isolib_batch_close(first);
        isolib_batch_close(first);
        check(open_descriptors() == start, "something stayed open");
        setrlimit(RLIMIT_NOFILE, &before);
        free_batch(first);
        free_batch(second);
    }
    unlink("file");
    rmdir("a/c");
    rmdir("a");
    rmdir("b");
    check(rmdir(place) == 0, "something was left");
    printf("%d batches\n", count * 2);
    return 0;
}
