/* What the floors share: system calls without libc, and a clone3() whose child needs no copy of its parent's memory.  A child
 * that shares memory touches no libc until its exec, for errno is the parent's. */
#ifndef ISOLIB_BENCHMARKS_FLOOR_H
#define ISOLIB_BENCHMARKS_FLOOR_H

#include <linux/sched.h>
#include <sys/syscall.h>

#if defined(__x86_64__)
#include "../isolib/_kernel/native/arch/x86_64.h" /* sys6() */

/* clone3() whose child calls entry(argument) on its own stack and never returns. */
static long clone_to(struct clone_args *args, void (*entry)(void *), void *argument) {
    long result;
    register void (*fn)(void *) __asm__("r12") = entry;
    register void *arg __asm__("r13") = argument;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "mov %%r13, %%rdi\n\t"
                     "call *%%r12\n\t"
                     "hlt\n"
                     "1:"
                     : "=a"(result)
                     : "a"(SYS_clone3), "D"(args), "S"(sizeof *args), "r"(fn), "r"(arg)
                     : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__)
#include "../isolib/_kernel/native/arch/aarch64.h"

static long clone_to(struct clone_args *args, void (*entry)(void *), void *argument) {
    register long x8 __asm__("x8") = SYS_clone3;
    register void *x0 __asm__("x0") = args;
    register long x1 __asm__("x1") = sizeof *args;
    register void (*fn)(void *) __asm__("x20") = entry;
    register void *arg __asm__("x21") = argument;
    __asm__ volatile("svc #0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, xzr\n\t"
                     "mov x0, x21\n\t"
                     "blr x20\n\t"
                     "brk #0\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(fn), "r"(arg)
                     : "memory");
    return (long)x0;
}
#else
#error "the floor knows x86-64 and aarch64"
#endif

#define PICK_6(number, a, b, c, d, e, f, ...) sys6((number), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define SYS(name, ...) PICK_6(SYS_##name, __VA_ARGS__, 0, 0, 0, 0, 0, 0)

#endif
