/* How a block of 16 samples lies in memory: as vectors of 16 samples, one sample per lane.
 *
 * This file and those that include it are compiled once per instruction set (isa_*.c). Functions
 * take H and D as arguments and are always inlined, so calling them with constants makes a version
 * that is specialised for the common sizes.
 */
#ifndef SINLSTM_LAYOUT_H
#define SINLSTM_LAYOUT_H

#include "kernel.h"
#include "simd.h"

_Static_assert(LANES == BLOCK_SAMPLES, "a block has a sample per lane");

/* The sizes for which the compiler makes a version of its own: the article's. */
#define SMALL_D 1
#define SMALL_H 5

static bool is_small(const Problem *p) { return p->D == SMALL_D && p->H == SMALL_H; }

#define ACTS 5 /* vectors kept per unit and step */

/* A block's forward pass:
 *     x      W x D        inputs
 *     h, c   (W+1) x H    states; row t is the state before step t
 *     act    W x 5 x H    gates i, f, g, o after their nonlinearity, and tanh(c)
 * For 50 steps of 5 units this takes 116 KB, which stays in a core's second-level cache. */
typedef struct {
    float *x, *h, *c, *act;
} Tape;

INLINE Tape tape_at(float *memory, int W, int D, int H) {
    Tape tape;
    tape.x = memory;
    tape.h = tape.x + (size_t)LANES * W * D;
    tape.c = tape.h + (size_t)LANES * (W + 1) * H;
    tape.act = tape.c + (size_t)LANES * (W + 1) * H;
    return tape;
}

/* Sums over samples, one vector each, in this order: weights of the inputs (4H x D) and of the
 * hidden state (4H x H), bias (4H), head weight (H), head bias, squared error, correct. */
typedef struct {
    float *ih, *hh, *bias, *head, *head_bias, *totals;
} Sums;

INLINE size_t sums_vectors(int D, int H) { return (size_t)4 * H * (D + H) + 4 * H + H + 1 + 2; }

INLINE Sums sums_at(float *memory, int D, int H) {
    Sums sums;
    sums.ih = memory;
    sums.hh = sums.ih + (size_t)LANES * 4 * H * D;
    sums.bias = sums.hh + (size_t)LANES * 4 * H * H;
    sums.head = sums.bias + (size_t)LANES * 4 * H;
    sums.head_bias = sums.head + (size_t)LANES * H;
    sums.totals = sums.head_bias + LANES;
    return sums;
}

/* Steps whose gate gradients are buffered before they are multiplied into the sums of the weights:
 * few enough that buffer, states and sums of a small LSTM stay in the first-level cache. */
#define CHUNK_STEPS_SMALL 10
#define CHUNK_STEPS_LARGE 24

INLINE int chunk_steps(int H) { return H <= 8 ? CHUNK_STEPS_SMALL : CHUNK_STEPS_LARGE; }

/* A thread's memory for one block at a time. */
typedef struct {
    float *tape, *dgates, *dh, *dc, *block_sums, *item_sums;
} Scratch;

INLINE Scratch scratch_at(float *memory, int W, int D, int H) {
    Scratch scratch;
    scratch.tape = memory;
    scratch.dgates = scratch.tape + tape_floats(W, D, H);
    scratch.dh = scratch.dgates + (size_t)LANES * chunk_steps(H) * 4 * H;
    scratch.dc = scratch.dh + (size_t)LANES * H;
    scratch.block_sums = scratch.dc + (size_t)LANES * H;
    scratch.item_sums = scratch.block_sums + LANES * sums_vectors(D, H);
    return scratch;
}

static size_t scratch_floats(const Problem *p) {
    const int H = p->H;
    return tape_floats(p->W, p->D, H) +
           LANES * ((size_t)chunk_steps(H) * 4 * H + 2 * H + 2 * sums_vectors(p->D, H));
}

/* A mask for v_keep whose first `lanes` lanes are kept. */
INLINE vec lane_mask(int lanes) {
    static const int32_t bits[2 * LANES] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                            -1, -1, -1, -1, -1, -1, -1, -1};
    float mask[LANES];
    memcpy(mask, bits + LANES - lanes, sizeof mask);
    return v_load(mask);
}

INLINE void zero_vectors(float *p, size_t n) { memset(p, 0, n * LANES * sizeof *p); }

/* dst[t][u] = element (first + lane, t, u) of src; idle lanes are zero. */
INLINE void load_samples(float *dst, Tensor src, int64_t first, int lanes, int steps,
                         int features) {
    static const float zero;
    for (int group = 0; group < LANES; group += 4) {
        /* Four samples at a time: the loads overlap and each 16 bytes are written once. */
        const float *from[4];
        ptrdiff_t step[4], feature[4];
        for (int i = 0; i < 4; i++) {
            const bool idle = group + i >= lanes;
            from[i] = idle ? &zero : src.data + (first + group + i) * src.sample_stride;
            step[i] = idle ? 0 : src.step_stride;
            feature[i] = idle ? 0 : src.feature_stride;
        }
        float *to = dst + group;
        for (int t = 0; t < steps; t++)
            for (int u = 0; u < features; u++, to += LANES) {
                const float four[4] = {
                    from[0][t * step[0] + u * feature[0]], from[1][t * step[1] + u * feature[1]],
                    from[2][t * step[2] + u * feature[2]], from[3][t * step[3] + u * feature[3]]};
                memcpy(to, four, sizeof four);
            }
    }
}

/* Element (first + lane, t, u) of dst = src[t][u], for all lanes but the idle ones. */
INLINE void store_samples(Tensor dst, const float *src, int64_t first, int lanes, int steps,
                          int features) {
    for (int lane = 0; lane < lanes; lane++) {
        const float *from = src + lane;
        float *to = dst.data + (first + lane) * dst.sample_stride;
        for (int t = 0; t < steps; t++, to += dst.step_stride)
            for (int u = 0; u < features; u++, from += LANES) to[u * dst.feature_stride] = *from;
    }
}

/* A state (1, B, H) into lanes; zeros if there is no such tensor. */
INLINE void load_state(float *dst, Tensor state, int64_t first, int lanes, int H) {
    if (state.data) load_samples(dst, state, first, lanes, 1, H);
    else zero_vectors(dst, H);
}

#endif
