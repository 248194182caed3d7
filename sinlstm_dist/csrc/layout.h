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

/* The sizes for which the compiler makes versions of their own: the article's layer, and one above
 * it, whose inputs are hidden states. */
#define SMALL_D 1
#define SMALL_H 5

INLINE bool is_small(int H) {
#if defined(EMULATES_FMA) /* such versions would be no faster, and take gcc seven seconds */
    (void)H;
    return false;
#else
    return H == SMALL_H;
#endif
}

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

/* Floats of a block's tapes. */
INLINE size_t tapes_floats(const Problem *p) {
    return tape_floats(p->W, p->layers[0].D, p->H) + (p->L - 1) * tape_floats(p->W, 0, p->H);
}

/* The tape of the layer above `below`, from where that one ends. Its inputs are the hidden states
 * of the layer below after each step, where they are. */
INLINE Tape tape_above(Tape below, int W, int H) {
    Tape tape = tape_at(below.act + (size_t)LANES * W * H * ACTS, W, 0, H);
    tape.x = below.h + (size_t)LANES * H;
    return tape;
}

/* Sums over samples, one vector each, in this order: of each layer, weights of the inputs (4H x D)
 * and of the hidden state (4H x H) and bias (4H); then head weight (H), head bias, squared error,
 * correct. */
typedef struct {
    float *ih, *hh, *bias;
} LayerSums;

typedef struct {
    float *weight, *bias, *totals;
} HeadSums;

INLINE size_t layer_vectors(int D, int H) { return (size_t)4 * H * (D + H + 1); }

INLINE size_t head_vectors(int H) { return (size_t)H + 1 + 2; }

/* Vectors of the layers below layer l; of all layers if l is L. */
INLINE size_t vectors_below(const Problem *p, int l) {
    const int H = p->H;
    return l == 0 ? 0 : layer_vectors(p->layers[0].D, H) + (l - 1) * layer_vectors(H, H);
}

INLINE size_t sums_vectors(const Problem *p) { return vectors_below(p, p->L) + head_vectors(p->H); }

INLINE LayerSums layer_sums(float *memory, const Problem *p, int l) {
    const int D = p->layers[l].D, H = p->H;
    LayerSums sums;
    sums.ih = memory + LANES * vectors_below(p, l);
    sums.hh = sums.ih + (size_t)LANES * 4 * H * D;
    sums.bias = sums.hh + (size_t)LANES * 4 * H * H;
    return sums;
}

INLINE HeadSums head_sums(float *memory, const Problem *p) {
    HeadSums sums;
    sums.weight = memory + LANES * vectors_below(p, p->L);
    sums.bias = sums.weight + (size_t)LANES * p->H;
    sums.totals = sums.bias + LANES;
    return sums;
}

/* Steps whose gate gradients are buffered before they are multiplied into the sums of the weights:
 * few enough that buffer, states and sums of a small LSTM stay in the first-level cache. */
#define CHUNK_STEPS_SMALL 10
#define CHUNK_STEPS_LARGE 24

INLINE int chunk_steps(int H) { return H <= 8 ? CHUNK_STEPS_SMALL : CHUNK_STEPS_LARGE; }

/* A thread's memory for one block at a time: tapes of all layers, the gradients of a chunk's gates
 * and of the state, sums, and the gradients of a layer's outputs (W x H) and inputs (W x D). */
typedef struct {
    float *tapes, *dgates, *dh, *dc, *block_sums, *item_sums, *doutputs, *dinputs;
} Scratch;

INLINE Scratch scratch_at(float *memory, const Problem *p) {
    const int W = p->W, H = p->H;
    Scratch scratch;
    scratch.tapes = memory;
    scratch.dgates = scratch.tapes + tapes_floats(p);
    scratch.dh = scratch.dgates + (size_t)LANES * chunk_steps(H) * 4 * H;
    scratch.dc = scratch.dh + (size_t)LANES * H;
    scratch.block_sums = scratch.dc + (size_t)LANES * H;
    scratch.item_sums = scratch.block_sums + LANES * sums_vectors(p);
    scratch.doutputs = scratch.item_sums + LANES * sums_vectors(p);
    scratch.dinputs = scratch.doutputs + (size_t)LANES * W * H;
    return scratch;
}

static size_t scratch_floats(const Problem *p) {
    const size_t W = p->W, H = p->H;
    return tapes_floats(p) + LANES * (chunk_steps(p->H) * 4 * H + 2 * H + 2 * sums_vectors(p) +
                                      W * (H + p->layers[0].D));
}

/* A mask for v_keep that keeps lanes [begin, end). */
INLINE vec lane_mask(int begin, int end) {
    int32_t bits[LANES];
    for (int lane = 0; lane < LANES; lane++) bits[lane] = lane >= begin && lane < end ? -1 : 0;
    float mask[LANES];
    memcpy(mask, bits, sizeof mask);
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
