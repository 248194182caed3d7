/* The mode in which the kernel computes: round to nearest, and subnormal numbers are zeros, as
 * arguments and as results.
 *
 * Gradients vanish over long windows, and some CPUs take a hundred times longer for subnormals. The
 * mode is set here because a result must depend neither on the calling thread's mode
 * (torch.set_flush_denormal) nor on which thread computes an item.
 *
 * One case differs: where rounding lifts a result to the smallest normal number, 2^-126, x86 and
 * the H100 keep it, and Arm, which looks before it rounds, makes it zero.
 */
#ifndef SINLSTM_FLOAT_MODE_H
#define SINLSTM_FLOAT_MODE_H

#include <stdint.h>

typedef uint64_t FloatMode;

#if defined(__x86_64__)
#define FLOAT_MODE 0x9fc0u /* of MXCSR: no exceptions, flush to zero, denormals are zero */
static inline FloatMode enter_float_mode(void) {
    const FloatMode before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(FLOAT_MODE);
    return before;
}
static inline void leave_float_mode(FloatMode before) { __builtin_ia32_ldmxcsr((unsigned)before); }
#elif defined(__aarch64__)
#define FLOAT_MODE (UINT64_C(1) << 24) /* of FPCR: FZ */
static inline void leave_float_mode(FloatMode before) {
    __asm__ volatile("msr fpcr, %0" : : "r"(before) : "memory");
}
static inline FloatMode enter_float_mode(void) {
    FloatMode before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before) : : "memory");
    leave_float_mode(FLOAT_MODE);
    return before;
}
#else
static inline FloatMode enter_float_mode(void) { return 0; }
static inline void leave_float_mode(FloatMode before) { (void)before; }
#endif

#endif
