/* sigmoid and tanh of several vectors at once, within 2 units in the last place of float32.
 *
 * The argument is the exponent of 2: y = -x log2(e) for sigmoid(x), y = 2 x log2(e) for tanh(x).
 * The packed weights contain that factor, so the multiplication costs nothing.
 *
 * 2^y = scale + scale * tail, with scale = 2^round(y) and tail = 2^r - 1 = r P(r), |r| <= 1/2.
 * Keeping the two apart makes tanh of small numbers exact and keeps NaN. The polynomials are
 * minimax fits made for this kernel (Lawson's iteration on 4001 Chebyshev points, 2025-11).
 *
 * Each stage is done for all vectors before the next stage. One vector's chain takes some 60
 * cycles, and a core's scheduler is too small to reach the next vector's chain (a third faster).
 */
#ifndef SINLSTM_ACTIVATIONS_H
#define SINLSTM_ACTIVATIONS_H

#include "simd.h"

/* Beyond these exponents both functions are 0, 1 or -1. 2^EXP2_HIGH is finite, and its inverse is
 * subnormal and so becomes the zero that an infinite gate must give: its gradient is then NaN, as
 * torch's is. */
#define EXP2_LOW -126.0f
#define EXP2_HIGH 127.49f

/* y -> r; returns scale in `scale`. */
INLINE void split_exponents(vec *y, vec *scale, int count) {
    FOR_UNROLLED(n, count) y[n] = v_clamp(y[n], EXP2_LOW, EXP2_HIGH);
    FOR_UNROLLED(n, count) scale[n] = v_add(y[n], v_set1(ROUND_MAGIC));
    FOR_UNROLLED(n, count) y[n] = v_sub(y[n], v_sub(scale[n], v_set1(ROUND_MAGIC)));
    FOR_UNROLLED(n, count) scale[n] = v_pow2(scale[n]);
}

INLINE void multiply_add(vec *p, const vec *r, float coefficient, int count) {
    FOR_UNROLLED(n, count) p[n] = v_fma(p[n], r[n], v_set1(coefficient));
}

/* 1 / (1 + 2^y). P has degree 4; its error relative to 2^r is 9e-8. */
INLINE void sigmoid_of(vec *y, int count) {
    const vec one = v_set1(1.0f);
    vec scale[MAX_UNROLLED], p[MAX_UNROLLED];
    split_exponents(y, scale, count);
    FOR_UNROLLED(n, count) p[n] = v_set1(0x1.5bba14p-10f);
    multiply_add(p, y, 0x1.3cea88p-7f, count);
    multiply_add(p, y, 0x1.c6b752p-5f, count);
    multiply_add(p, y, 0x1.ebf9bcp-3f, count);
    multiply_add(p, y, 0x1.62e42ap-1f, count);
    FOR_UNROLLED(n, count) p[n] = v_mul(p[n], y[n]);
    FOR_UNROLLED(n, count) y[n] = v_fma(scale[n], p[n], v_add(one, scale[n]));
    FOR_UNROLLED(n, count) y[n] = v_div(one, y[n]);
}

/* (2^y - 1) / (2^y + 1). P has degree 5, because 2^y - 1 is small near zero; its error relative to
 * 2^r - 1 is 1e-8. */
INLINE void tanh_of(vec *y, int count) {
    const vec one = v_set1(1.0f);
    vec scale[MAX_UNROLLED], p[MAX_UNROLLED];
    split_exponents(y, scale, count);
    FOR_UNROLLED(n, count) p[n] = v_set1(0x1.4308fap-13f);
    multiply_add(p, y, 0x1.5f07b4p-10f, count);
    multiply_add(p, y, 0x1.3b2ba0p-7f, count);
    multiply_add(p, y, 0x1.c6af6ep-5f, count);
    multiply_add(p, y, 0x1.ebfbdep-3f, count);
    multiply_add(p, y, 0x1.62e430p-1f, count);
    FOR_UNROLLED(n, count) p[n] = v_mul(p[n], y[n]);
    FOR_UNROLLED(n, count) y[n] = v_fma(scale[n], p[n], v_sub(scale[n], one));
    FOR_UNROLLED(n, count) p[n] = v_fma(scale[n], p[n], v_add(scale[n], one));
    FOR_UNROLLED(n, count) y[n] = v_div(y[n], p[n]);
}

#endif
