/* The forward pass of a block: all steps, from inputs and first states to the tape. */
#ifndef SINLSTM_FORWARD_H
#define SINLSTM_FORWARD_H

#include "activations.h"
#include "layout.h"
#include "unit.h"

#ifndef TOGETHER
#define TOGETHER 2 /* vectors whose activations are computed side by side */
#endif

/* The four gates of one unit before their nonlinearity. w is the unit's row of packed weights,
 * [1 + D + H][4 gates], already scaled for exponentials of base 2. */
INLINE void forward_gates(const float *w, const float *x, const float *h, float *gates, int D,
                          int H) {
    vec i = v_set1(w[0]), f = v_set1(w[1]), g = v_set1(w[2]), o = v_set1(w[3]);
    w += 4;
    for (int d = 0; d < D; d++, w += 4) {
        const vec column = v_load(x + d * LANES);
        i = v_fma(v_set1(w[0]), column, i);
        f = v_fma(v_set1(w[1]), column, f);
        g = v_fma(v_set1(w[2]), column, g);
        o = v_fma(v_set1(w[3]), column, o);
    }
    for (int k = 0; k < H; k++, w += 4) {
        const vec column = v_load(h + k * LANES);
        i = v_fma(v_set1(w[0]), column, i);
        f = v_fma(v_set1(w[1]), column, f);
        g = v_fma(v_set1(w[2]), column, g);
        o = v_fma(v_set1(w[3]), column, o);
    }
    v_store(gates, i);
    v_store(gates + H * LANES, f);
    v_store(gates + 2 * H * LANES, g);
    v_store(gates + 3 * H * LANES, o);
}

/* Applies function to `count` vectors at p, in place: TOGETHER of them at a time, then the rest. */
INLINE void activate(void (*function)(vec *, int), float *p, int count) {
    for (; count >= TOGETHER; count -= TOGETHER, p += TOGETHER * LANES) {
        vec y[TOGETHER];
        FOR_UNROLLED(n, TOGETHER) y[n] = v_load(p + n * LANES);
        function(y, TOGETHER);
        FOR_UNROLLED(n, TOGETHER) v_store(p + n * LANES, y[n]);
    }
    for (; count > 0; count--, p += LANES) {
        vec y = v_load(p);
        function(&y, 1);
        v_store(p, y);
    }
}

/* States of `count` units after the step, from their gates. */
INLINE void forward_units(float *act, const float *c_before, float *c_after, float *h_after, int H,
                          int count) {
    vec y[MAX_UNROLLED];
    FOR_UNROLLED(n, count) {
        const vec c = next_cell(v_load(act + n * LANES), v_load(act + (H + n) * LANES),
                                v_load(act + (2 * H + n) * LANES), v_load(c_before + n * LANES));
        v_store(c_after + n * LANES, c);
        y[n] = v_mul(c, v_set1((float)(2 * LOG2E)));
    }
    tanh_of(y, count);
    FOR_UNROLLED(n, count) {
        v_store(act + (4 * H + n) * LANES, y[n]);
        v_store(h_after + n * LANES, v_mul(v_load(act + (3 * H + n) * LANES), y[n]));
    }
}

INLINE void forward_states(float *act, const float *c_before, float *c_after, float *h_after,
                           int H) {
    int j = 0;
    for (; j + TOGETHER <= H; j += TOGETHER)
        forward_units(act + j * LANES, c_before + j * LANES, c_after + j * LANES,
                      h_after + j * LANES, H, TOGETHER);
    for (; j < H; j++)
        forward_units(act + j * LANES, c_before + j * LANES, c_after + j * LANES,
                      h_after + j * LANES, H, 1);
}

/* Does one kind of work for all units, then the next kind. Unit by unit, each long chain (gate,
 * exponential, division, cell, tanh) would fill the core's instruction window and stall it. */
INLINE void forward_step(const float *packed, Tape tape, int t, int D, int H) {
    const float *x = tape.x + (size_t)LANES * t * D;
    float *h = tape.h + (size_t)LANES * t * H, *c = tape.c + (size_t)LANES * t * H;
    float *act = tape.act + (size_t)LANES * t * H * ACTS;
    for (int j = 0; j < H; j++)
        forward_gates(packed + (size_t)j * 4 * (1 + D + H), x, h, act + j * LANES, D, H);
    activate(sigmoid_of, act, 2 * H);
    activate(tanh_of, act + 2 * H * LANES, H);
    activate(sigmoid_of, act + 3 * H * LANES, H);
    forward_states(act, c, c + H * LANES, h + H * LANES, H);
}

INLINE void forward_sized(const float *packed, Tape tape, int W, int D, int H) {
    for (int t = 0; t < W; t++) forward_step(packed, tape, t, D, H);
}

/* Not inlined, so that the loops get all registers. */
static NOINLINE void forward_small(const float *packed, Tape tape, int W) {
    forward_sized(packed, tape, W, SMALL_D, SMALL_H);
}

static NOINLINE void forward_small_above(const float *packed, Tape tape, int W) {
    forward_sized(packed, tape, W, SMALL_H, SMALL_H);
}

static NOINLINE void forward_any(const float *packed, Tape tape, int W, int D, int H) {
    forward_sized(packed, tape, W, D, H);
}

/* One layer. */
static void forward_block(const Layer *layer, Tape tape, int W, int H) {
    if (is_small(H) && layer->D == SMALL_D) forward_small(layer->packed, tape, W);
    else if (is_small(H) && layer->D == SMALL_H) forward_small_above(layer->packed, tape, W);
    else forward_any(layer->packed, tape, W, layer->D, H);
}

#endif
