#ifndef ISOLIB_ARCH_H
#define ISOLIB_ARCH_H
/* AArch64 Linux: system calls, process entry, and a clone whose child runs a function on a stack of its own. */

static inline long sys6(long number, long a, long b, long c, long d, long e, long f) {
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}

/* The kernel enters with the argument block on the stack. */
#define ISOLIB_DEFINE_START(entry)                                    \
    __asm__(".text\n.globl _start\n.type _start,%function\n_start:\n" \
            "  mov x29, xzr\n  mov x30, xzr\n  mov x0, sp\n  and sp, x0, #-16\n  bl " #entry "\n  brk #0\n")

/* long isolib_clone_run(unsigned long flags, void *stack_top, int *tid, int (*function)(void *), void *argument)
 * tid is the parent's and the child's. */
#define ISOLIB_DEFINE_CLONE                                                                                                   \
    __asm__(".text\n.hidden isolib_clone_run\n.globl isolib_clone_run\n.type isolib_clone_run,%function\nisolib_clone_run:\n" \
            "  and x1, x1, #-16\n  mov x10, x3\n  mov x11, x4\n  mov x3, xzr\n  mov x4, x2\n  mov x8, #220\n  svc #0\n"       \
            "  cbz x0, 1f\n  ret\n"                                                                                           \
            "1: mov x29, xzr\n  mov x30, xzr\n  mov x0, x11\n  blr x10\n  mov x8, #93\n  svc #0\n  brk #0\n")
#endif
