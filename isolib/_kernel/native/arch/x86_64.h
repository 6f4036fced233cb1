#ifndef ISOLIB_ARCH_H
#define ISOLIB_ARCH_H
/* x86-64 Linux: system calls, process entry, and a clone whose child runs a function on a stack of its own. */

static inline long sys6(long number, long a, long b, long c, long d, long e, long f) {
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

/* The kernel enters with the argument block on the stack and no return address. */
#define ISOLIB_DEFINE_START(entry)                                    \
    __asm__(".text\n.globl _start\n.type _start,@function\n_start:\n" \
            "  xorl %ebp, %ebp\n  movq %rsp, %rdi\n  andq $-16, %rsp\n  call " #entry "\n  hlt\n")

/* long isolib_clone_run(unsigned long flags, void *stack_top, int *tid, int (*function)(void *), void *argument)
 * tid is the parent's and the child's.  The argument doubles as the unused tls word; function waits in r9, which the call
 * preserves. */
#define ISOLIB_DEFINE_CLONE                                                                                                   \
    __asm__(".text\n.hidden isolib_clone_run\n.globl isolib_clone_run\n.type isolib_clone_run,@function\nisolib_clone_run:\n" \
            "  andq $-16, %rsi\n  movq %rcx, %r9\n  movq %rdx, %r10\n  movl $56, %eax\n  syscall\n"                           \
            "  testq %rax, %rax\n  jz 1f\n  ret\n"                                                                            \
            "1: xorl %ebp, %ebp\n  movq %r8, %rdi\n  call *%r9\n  movl %eax, %edi\n  movl $60, %eax\n  syscall\n  hlt\n")
#endif
