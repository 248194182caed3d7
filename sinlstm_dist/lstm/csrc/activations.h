/* sigmoid and tanh of several vectors at once, within 2 units in the last place of float32.
 *
 * Arguments come in the exponent's base: y = -x log2(e) for sigmoid(x), y = 2 x log2(e) for
 * tanh(x), so the packed weights carry the constant and the multiplication is free.
 *
 * 2^y = scale + scale * tail, with scale = 2^round(y) and tail = 2^r - 1 = r P(r), |r| <= 1/2.
 * Keeping the two apart keeps tanh of small numbers exact, and NaN a NaN. The polynomials are own
 * minimax fits (Lawson's iteration on 4001 Chebyshev points, 2025-11).
 *
 * Each stage is done for all vectors before the next: one vector's chain is some 60 cycles long,
 * and a core's schedulers are too small to find the next vector's behind it (a third faster).
 */
#ifndef SINLSTM_ACTIVATIONS_H
#define SINLSTM_ACTIVATIONS_H

#include "simd.h"

/* Beyond these both functions are 0, 1 or -1. 2^EXP2_HIGH is finite, and its inverse is subnormal:
 * flushed to the zero that an infinite gate must give, for its gradient to be torch's NaN. */
#define EXP2_LOW -126.0f
#define EXP2_HIGH 127.49f

#define MAX_TOGETHER 5
#define EACH_OF(n, count) \
    _Pragma("GCC unroll 5") for (int n = 0; n < (count); n++)

/* y -> r; returns scale in `scale`. */
INLINE void split_exponents(vec *y, vec *scale, int count) {
    EACH_OF(n, count) y[n] = v_clamp(y[n], EXP2_LOW, EXP2_HIGH);
    EACH_OF(n, count) scale[n] = v_add(y[n], v_set1(ROUND_MAGIC));
    EACH_OF(n, count) y[n] = v_sub(y[n], v_sub(scale[n], v_set1(ROUND_MAGIC)));
    EACH_OF(n, count) scale[n] = v_pow2(scale[n]);
}

INLINE void multiply_add(vec *p, const vec *r, float coefficient, int count) {
    EACH_OF(n, count) p[n] = v_fma(p[n], r[n], v_set1(coefficient));
}

/* 1 / (1 + 2^y). P has degree 4 and an error of 9e-8 relative to 2^r. */
INLINE void sigmoid_of(vec *y, int count) {
    const vec one = v_set1(1.0f);
    vec scale[MAX_TOGETHER], p[MAX_TOGETHER];
    split_exponents(y, scale, count);
    EACH_OF(n, count) p[n] = v_set1(0x1.5bba14p-10f);
    multiply_add(p, y, 0x1.3cea88p-7f, count);
    multiply_add(p, y, 0x1.c6b752p-5f, count);
    multiply_add(p, y, 0x1.ebf9bcp-3f, count);
    multiply_add(p, y, 0x1.62e42ap-1f, count);
    EACH_OF(n, count) p[n] = v_mul(p[n], y[n]);
    EACH_OF(n, count) y[n] = v_fma(scale[n], p[n], v_add(one, scale[n]));
    EACH_OF(n, count) y[n] = v_div(one, y[n]);
}

/* (2^y - 1) / (2^y + 1). One degree more, because 2^y - 1 is small near zero: 1e-8 relative to
 * 2^r - 1. */
INLINE void tanh_of(vec *y, int count) {
    const vec one = v_set1(1.0f);
    vec scale[MAX_TOGETHER], p[MAX_TOGETHER];
    split_exponents(y, scale, count);
    EACH_OF(n, count) p[n] = v_set1(0x1.4308fap-13f);
    multiply_add(p, y, 0x1.5f07b4p-10f, count);
    multiply_add(p, y, 0x1.3b2ba0p-7f, count);
    multiply_add(p, y, 0x1.c6af6ep-5f, count);
    multiply_add(p, y, 0x1.ebfbdep-3f, count);
    multiply_add(p, y, 0x1.62e430p-1f, count);
    EACH_OF(n, count) p[n] = v_mul(p[n], y[n]);
    EACH_OF(n, count) y[n] = v_fma(scale[n], p[n], v_sub(scale[n], one));
    EACH_OF(n, count) p[n] = v_fma(scale[n], p[n], v_add(scale[n], one));
    EACH_OF(n, count) y[n] = v_div(y[n], p[n]);
}

#endif
