/* Starting other programs: the command itself, and the setuid helpers that write id maps for an ordinary user. */
#include "launcher.h"

static long allocate(size_t size) {
    enum { READ_WRITE = 3, PRIVATE_ANONYMOUS = 0x22 };
    return iso_noted(__NR_mmap, sys6(__NR_mmap, 0, (long)size, READ_WRITE, PRIVATE_ANONYMOUS, -1, 0));
}

static const char *point_to(const char **list, uint64_t count, const char *strings) {
    for (uint64_t i = 0; i < count; i++) {
        list[i] = strings;
        strings += length(strings) + 1;
    }
    list[count] = 0;
    return strings;
}

/* As execvp does: a candidate that is not there is passed over, one that may not be executed is remembered. */
long run_exec(struct launcher *l, const struct isolib_step *step) {
    long memory = allocate((step->flags + step->value + 2) * sizeof(char *));
    const char **argv = (const char **)memory, **envp;
    const char *candidate = text_of(l, step->text), *end = candidate + step->size;
    long result = -ENOENT, refused = 0;
    if (memory < 0 && memory > -4096)
        return memory;
    envp = argv + step->flags + 1;
    point_to(envp, step->value, point_to(argv, step->flags, text_of(l, step->text2)));
    for (; candidate < end; candidate += length(candidate) + 1) {
        result = SYS3(execve, candidate, argv, envp);
        if (result == -EACCES)
            refused = result;
        else if (result != -ENOENT && result != -ENOTDIR)
            return result;
    }
    return refused ? refused : result;
}

struct helper {
    const char *argv[16];
    long error;
};

static int helper_main(void *argument) {
    struct helper *helper = argument;
    const char *no_environment[] = {0};
    long null = SYS4(openat, ISO_AT_FDCWD, "/dev/null", ISO_O_RDWR | ISO_O_CLOEXEC, 0);
    for (int fd = 0; fd < 3 && null >= 0; fd++)
        SYS3(dup3, null, fd, 0);
    SYS3(close_range, 3, ~0U, 0); /* a setuid program gets nothing of ours */
    helper->error = SYS3(execve, helper->argv[0], helper->argv, no_environment);
    return 127;
}

long run_map_helper(struct launcher *l, const struct isolib_step *step) {
    static char stack[8192] __attribute__((aligned(16)));
    char digits[DECIMAL];
    const char *word = text_of(l, step->text2), *end = word + step->size2;
    struct helper helper = {{text_of(l, step->text)}, 0};
    int count = 2, status = 0;
    long pid;
    helper.argv[1] = decimal(digits, l->child);
    for (; word < end; word += length(word) + 1) {
        if (count >= 15)
            return -E2BIG;
        helper.argv[count++] = word;
    }
    pid = isolib_clone_run(ISO_CLONE_VM | ISO_CLONE_VFORK | ISO_SIGCHLD, stack + sizeof(stack), 0, helper_main, &helper);
    if (pid < 0)
        return pid;
    while (SYS4(wait4, pid, &status, 0, 0) == -EINTR)
        ;
    if (helper.error)
        return helper.error;
    return status == 0 ? 0 : -EPERM;
}
