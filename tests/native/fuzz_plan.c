/* fuzz-plan COUNT: COUNT mutated plans for plan_check(), which must read nothing but what it is given.  The bytes lie at the
 * end of an allocation of their size, so that AddressSanitizer sees an access one byte beyond. */
#include "plans.h"
#include <stdio.h>

/* plan_check() makes no system call. */
long sys6(long nr, long a, long b, long c, long d, long e, long f) {
    (void)a, (void)b, (void)c, (void)d, (void)e, (void)f;
    fprintf(stderr, "system call %ld\n", nr);
    abort();
}

int main(int argc, char **argv) {
    static uint8_t plan[ROOM], scratch[ROOM];
    long count = argc > 1 ? atol(argv[1]) : 100000, accepted = 0, sound = 0, plans = 0;
    for (long i = 0; i < count; i++) {
        static size_t size;
        uint8_t *bytes;
        size_t mutated;
        if (i % 64 == 0) {
            size = random_plan(plan, scratch);
            plans++;
            sound += plan_check(plan, size) == 0;
        }
        mutated = size;
        bytes = malloc(size);
        memcpy(bytes, plan, size);
        mutate(bytes, &mutated);
        if (mutated < size) {
            uint8_t *shorter = malloc(mutated);
            memcpy(shorter, bytes, mutated);
            free(bytes);
            bytes = shorter;
        }
        accepted += plan_check(bytes, mutated) == 0;
        free(bytes);
    }
    printf("%ld mutated plans, %ld accepted; %ld of %ld before mutation\n", count, accepted, sound, plans);
    return sound * 2 > plans && accepted > 0 && accepted < count ? 0 : 1;
}
