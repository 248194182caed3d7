/* One logical vector: 16 samples, on every instruction set.
 *
 * AVX-512 holds it in one register, AVX2 in two, the plain path in four of the compiler's vectors.
 * The size is 16 everywhere, so blocks, lane order and the tree over lanes are the same everywhere.
 * Every multiply-add is written out (v_fma, which rounds once) and the build forbids contraction,
 * so a source line is the same arithmetic wherever it is inlined, with any instruction set.
 *
 * Defines: vec, v_load, v_store, v_set1, v_zero, v_add, v_sub, v_mul, v_div, v_fma (a*b + c),
 * v_fnma (c - a*b), v_max and v_min (the second argument where either is NaN), v_abs,
 * v_one_if_less, v_keep (zero where the mask's bits are zero), v_pow2 (2^n from the bits of
 * n + ROUND_MAGIC), v_sum (in a fixed tree). For loops that need many sums in registers it defines
 * reg, the REG_LANES lanes of a vector that one register holds, with r_load, r_store, r_add, r_fma.
 *
 * On a GPU a lane is a thread: vec is its float, only lane 0 has v_sum, and there is no v_keep or
 * reg.
 */
#ifndef SINLSTM_SIMD_H
#define SINLSTM_SIMD_H

#define LANES 16

/* UNROLLED turns the loop after it, of a constant count, into straight code. FOR_UNROLLED is such a
 * loop over at most MAX_UNROLLED vectors, so arrays of them live in registers. */
#define MAX_UNROLLED 5

#if defined(ISA_CUDA)
#define INLINE __device__ __forceinline__
#define UNROLLED _Pragma("unroll")
#else
#include <stdint.h>
#include <string.h>
#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#if defined(__clang__) /* ignores gcc's pragma, and without its own is half as fast (2026-11) */
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED _Pragma("GCC unroll 16") /* no such loop is longer */
#endif
#endif
#define FOR_UNROLLED(n, count) UNROLLED for (int n = 0; n < (count); n++)

/* x + 1.5 * 2^23 rounds x to the nearest integer and leaves that integer in the low bits. */
#define ROUND_MAGIC 12582912.0f
#define FLOAT_ONE_BITS 0x3f800000

#if defined(ISA_CUDA) /* a lane is a thread; the build sets subnormal numbers to zero */

typedef float vec;

INLINE vec v_load(const float *p) { return p[threadIdx.x]; }
INLINE void v_store(float *p, vec a) { p[threadIdx.x] = a; }
INLINE vec v_set1(float x) { return x; }
INLINE vec v_zero(void) { return 0.0f; }
INLINE vec v_add(vec a, vec b) { return __fadd_rn(a, b); }
INLINE vec v_sub(vec a, vec b) { return __fsub_rn(a, b); }
INLINE vec v_mul(vec a, vec b) { return __fmul_rn(a, b); }
INLINE vec v_div(vec a, vec b) { return __fdiv_rn(a, b); }
INLINE vec v_fma(vec a, vec b, vec c) { return __fmaf_rn(a, b, c); }
INLINE vec v_fnma(vec a, vec b, vec c) { return __fmaf_rn(-a, b, c); }
INLINE vec v_max(vec a, vec b) { return a > b ? a : b; }
INLINE vec v_min(vec a, vec b) { return a < b ? a : b; }
INLINE vec v_abs(vec a) { return fabsf(a); }
INLINE vec v_one_if_less(vec a, vec b) { return a < b ? 1.0f : 0.0f; }
INLINE vec v_pow2(vec rounded) {
    return __uint_as_float((__float_as_uint(rounded) << 23) + FLOAT_ONE_BITS);
}
/* Lane 0 has the sum. Every thread of a warp takes part. */
INLINE float v_sum(vec x) {
    for (int width = LANES / 2; width > 0; width /= 2)
        x = v_add(x, __shfl_down_sync(0xffffffffu, x, width, LANES));
    return x;
}

#elif defined(ISA_AVX512)

#include <immintrin.h>
typedef __m512 vec;

typedef __m512 reg;
#define REG_LANES 16
INLINE reg r_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void r_store(float *p, reg a) { _mm512_storeu_ps(p, a); }
INLINE reg r_add(reg a, reg b) { return _mm512_add_ps(a, b); }
INLINE reg r_fma(reg a, reg b, reg c) { return _mm512_fmadd_ps(a, b, c); }

INLINE vec v_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void v_store(float *p, vec a) { _mm512_storeu_ps(p, a); }
INLINE vec v_set1(float x) { return _mm512_set1_ps(x); }
INLINE vec v_zero(void) { return _mm512_setzero_ps(); }
INLINE vec v_add(vec a, vec b) { return _mm512_add_ps(a, b); }
INLINE vec v_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
INLINE vec v_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
INLINE vec v_div(vec a, vec b) { return _mm512_div_ps(a, b); }
INLINE vec v_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vec v_fnma(vec a, vec b, vec c) { return _mm512_fnmadd_ps(a, b, c); }
INLINE vec v_max(vec a, vec b) { return _mm512_max_ps(a, b); }
INLINE vec v_min(vec a, vec b) { return _mm512_min_ps(a, b); }
INLINE vec v_abs(vec a) {
    return _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff)));
}
INLINE vec v_one_if_less(vec a, vec b) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), _mm512_set1_ps(1.0f));
}
INLINE vec v_keep(vec mask, vec a) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(mask), _mm512_castps_si512(a)));
}
INLINE vec v_pow2(vec rounded) {
    const __m512i n = _mm512_slli_epi32(_mm512_castps_si512(rounded), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(n, _mm512_set1_epi32(FLOAT_ONE_BITS)));
}

#elif defined(ISA_AVX2)

#include <immintrin.h>
typedef struct {
    __m256 a, b;
} vec;

typedef __m256 reg;
#define REG_LANES 8
INLINE reg r_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void r_store(float *p, reg a) { _mm256_storeu_ps(p, a); }
INLINE reg r_add(reg a, reg b) { return _mm256_add_ps(a, b); }
INLINE reg r_fma(reg a, reg b, reg c) { return _mm256_fmadd_ps(a, b, c); }

#define BOTH(name, x, y) ((vec){name((x).a, (y).a), name((x).b, (y).b)})

INLINE vec v_load(const float *p) { return (vec){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE void v_store(float *p, vec x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
INLINE vec v_set1(float x) { return (vec){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE vec v_zero(void) { return (vec){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
INLINE vec v_add(vec x, vec y) { return BOTH(_mm256_add_ps, x, y); }
INLINE vec v_sub(vec x, vec y) { return BOTH(_mm256_sub_ps, x, y); }
INLINE vec v_mul(vec x, vec y) { return BOTH(_mm256_mul_ps, x, y); }
INLINE vec v_div(vec x, vec y) { return BOTH(_mm256_div_ps, x, y); }
INLINE vec v_fma(vec x, vec y, vec z) {
    return (vec){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
INLINE vec v_fnma(vec x, vec y, vec z) {
    return (vec){_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}
INLINE vec v_max(vec x, vec y) { return BOTH(_mm256_max_ps, x, y); }
INLINE vec v_min(vec x, vec y) { return BOTH(_mm256_min_ps, x, y); }
INLINE vec v_keep(vec mask, vec x) { return BOTH(_mm256_and_ps, mask, x); }
INLINE vec v_abs(vec x) {
    const __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    return (vec){_mm256_and_ps(x.a, m), _mm256_and_ps(x.b, m)};
}
INLINE vec v_one_if_less(vec x, vec y) {
    const __m256 one = _mm256_set1_ps(1.0f);
    return (vec){_mm256_and_ps(_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), one),
                 _mm256_and_ps(_mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ), one)};
}
INLINE __m256 half_pow2(__m256 rounded) {
    const __m256i n = _mm256_slli_epi32(_mm256_castps_si256(rounded), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(n, _mm256_set1_epi32(FLOAT_ONE_BITS)));
}
INLINE vec v_pow2(vec rounded) { return (vec){half_pow2(rounded.a), half_pow2(rounded.b)}; }

#else /* plain: the compiler's vectors of four floats, SSE2 on x86-64 and NEON on Arm */

typedef float f4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));
typedef uint32_t u4 __attribute__((vector_size(16)));
typedef double d2 __attribute__((vector_size(16)));
typedef int64_t l2 __attribute__((vector_size(16)));
typedef double d4 __attribute__((vector_size(32)));
/* A d4 whose halves are added apart: 2^20 multiply-adds take 1.28 ms with gcc, and 1.98 ms if one
 * vector of 32 bytes is added (2026-11). */
typedef union {
    d4 all;
    d2 half[2];
} doubles;
#define TO_DOUBLE(x) __builtin_convertvector(x, d4)
typedef struct {
    f4 a, b, c, d;
} vec;

#define EACH(name, x, y)                                                                    \
    ((vec){name((x).a, (y).a), name((x).b, (y).b), name((x).c, (y).c), name((x).d, (y).d)})
#define EACH_OP(x, op, y) ((vec){(x).a op(y).a, (x).b op(y).b, (x).c op(y).c, (x).d op(y).d})

INLINE f4 f4_load(const float *p) {
    f4 x;
    memcpy(&x, p, sizeof x);
    return x;
}
INLINE f4 f4_set1(float x) { return (f4){x, x, x, x}; }
INLINE f4 f4_select(i4 mask, f4 yes, f4 no) { return (f4)((mask & (i4)yes) | (~mask & (i4)no)); }
INLINE f4 f4_max(f4 a, f4 b) { return f4_select((i4)(a > b), a, b); }
INLINE f4 f4_min(f4 a, f4 b) { return f4_select((i4)(a < b), a, b); }
INLINE f4 f4_keep(f4 mask, f4 a) { return (f4)((i4)mask & (i4)a); }
INLINE f4 f4_one_if_less(f4 a, f4 b) { return f4_keep((f4)(a < b), f4_set1(1.0f)); }
INLINE f4 f4_pow2(f4 rounded) { return (f4)(((u4)rounded << 23) + (uint32_t)FLOAT_ONE_BITS); }
#if defined(__aarch64__)
#include <arm_neon.h>
INLINE f4 f4_fma(f4 a, f4 b, f4 c) {
    return (f4)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
#else
#define EMULATES_FMA
/* Rounds once, as the other instruction sets do. The product of two floats is exact in float64. The
 * sum is rounded to odd: where it is not exact, its last bit becomes 1, on the side of zero. The
 * second rounding, to float32, then gives what one rounding of the exact value gives.
 *
 * Source: Boldo and Melquiond: Emulation of FMA and correctly rounded sums (2008).
 */
INLINE d2 d2_add_to_odd(d2 a, d2 b) {
    const d2 sum = a + b;
    const d2 other = sum - a;
    const d2 error = (a - (sum - other)) + (b - other); /* NaN where the sum is not finite */
    const d2 side = sum * error;
    const l2 too_far = (l2)(side < 0), too_near = (l2)(side > 0); /* all bits set where true */
    return (d2)(((l2)sum + too_far) | ((too_far | too_near) & 1));
}
INLINE f4 f4_fma(f4 a, f4 b, f4 c) {
    doubles sum = {TO_DOUBLE(a) * TO_DOUBLE(b)};
    const doubles addend = {TO_DOUBLE(c)};
    sum.half[0] = d2_add_to_odd(sum.half[0], addend.half[0]);
    sum.half[1] = d2_add_to_odd(sum.half[1], addend.half[1]);
    return __builtin_convertvector(sum.all, f4);
}
#endif

typedef f4 reg;
#define REG_LANES 4
INLINE reg r_load(const float *p) { return f4_load(p); }
INLINE void r_store(float *p, reg a) { memcpy(p, &a, sizeof a); }
INLINE reg r_add(reg a, reg b) { return a + b; }
INLINE reg r_fma(reg a, reg b, reg c) { return f4_fma(a, b, c); }

INLINE vec v_load(const float *p) {
    return (vec){f4_load(p), f4_load(p + 4), f4_load(p + 8), f4_load(p + 12)};
}
INLINE void v_store(float *p, vec x) { memcpy(p, &x, sizeof x); }
INLINE vec v_set1(float x) { return (vec){f4_set1(x), f4_set1(x), f4_set1(x), f4_set1(x)}; }
INLINE vec v_zero(void) { return v_set1(0.0f); }
INLINE vec v_add(vec x, vec y) { return EACH_OP(x, +, y); }
INLINE vec v_sub(vec x, vec y) { return EACH_OP(x, -, y); }
INLINE vec v_mul(vec x, vec y) { return EACH_OP(x, *, y); }
INLINE vec v_div(vec x, vec y) { return EACH_OP(x, /, y); }
INLINE vec v_fma(vec x, vec y, vec z) {
    return (vec){f4_fma(x.a, y.a, z.a), f4_fma(x.b, y.b, z.b), f4_fma(x.c, y.c, z.c),
                 f4_fma(x.d, y.d, z.d)};
}
INLINE vec v_fnma(vec x, vec y, vec z) {
    return (vec){f4_fma(-x.a, y.a, z.a), f4_fma(-x.b, y.b, z.b), f4_fma(-x.c, y.c, z.c),
                 f4_fma(-x.d, y.d, z.d)};
}
INLINE vec v_max(vec x, vec y) { return EACH(f4_max, x, y); }
INLINE vec v_min(vec x, vec y) { return EACH(f4_min, x, y); }
INLINE vec v_keep(vec mask, vec x) { return EACH(f4_keep, mask, x); }
INLINE vec v_abs(vec x) {
    const f4 m = (f4)(i4){0x7fffffff, 0x7fffffff, 0x7fffffff, 0x7fffffff};
    return EACH(f4_keep, x, ((vec){m, m, m, m}));
}
INLINE vec v_one_if_less(vec x, vec y) { return EACH(f4_one_if_less, x, y); }
INLINE vec v_pow2(vec x) { return (vec){f4_pow2(x.a), f4_pow2(x.b), f4_pow2(x.c), f4_pow2(x.d)}; }

#endif

#if !defined(ISA_CUDA)
/* The tree over lanes: i with i+8, then i+4, then i+2, then i+1. It works on memory, by four
 * lanes, so it is the same on every instruction set. */
INLINE float v_sum(vec x) {
    float lane[LANES];
    v_store(lane, x);
    for (int i = 0; i < 8; i++) lane[i] += lane[i + 8];
    for (int i = 0; i < 4; i++) lane[i] += lane[i + 4];
    return (lane[0] + lane[2]) + (lane[1] + lane[3]);
}
#endif

/* NaN arguments stay NaN: the constant comes first. */
INLINE vec v_clamp(vec x, float low, float high) {
    return v_min(v_set1(high), v_max(v_set1(low), x));
}

#endif
