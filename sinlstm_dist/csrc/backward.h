/* The backward pass of a block through one layer: from the gradients of the last state back over
 * the tape to the gradients of the first state, and the block's sums for the gradients of the
 * weights. */
#ifndef SINLSTM_BACKWARD_H
#define SINLSTM_BACKWARD_H

#include "layout.h"
#include "unit.h"

/* Computes the gradients of the four gates before their nonlinearity, and of the cell before the
 * step, from the gradients of the state after it. */
INLINE void backward_unit(const float *act, const float *c_before, const float *dh, float *dc,
                          float *dgates, int H) {
    const UnitGradient gradient =
        unit_gradient(v_load(act), v_load(act + H * LANES), v_load(act + 2 * H * LANES),
                      v_load(act + 3 * H * LANES), v_load(act + 4 * H * LANES), v_load(c_before),
                      v_load(dh), v_load(dc));
    v_store(dgates, gradient.i);
    v_store(dgates + H * LANES, gradient.f);
    v_store(dgates + 2 * H * LANES, gradient.g);
    v_store(dgates + 3 * H * LANES, gradient.o);
    v_store(dc, gradient.c_before);
}

/* out[n] = sum over the 4H gates of weight[gate][n] * dgates[gate], for `count` (a constant)
 * columns of a weight matrix of `width` columns. */
INLINE void gates_to_columns(float *out, const float *weight, const float *dgates, int width, int H,
                             int count) {
    vec sum[MAX_UNROLLED];
    FOR_UNROLLED(n, count) sum[n] = v_zero();
    for (int r = 0; r < 4 * H; r++, weight += width) {
        const vec d = v_load(dgates + r * LANES);
        FOR_UNROLLED(n, count) sum[n] = v_fma(v_set1(weight[n]), d, sum[n]);
    }
    FOR_UNROLLED(n, count) v_store(out + n * LANES, sum[n]);
}

INLINE void gates_to_all_columns(float *out, const float *weight, const float *dgates, int width,
                                 int H) {
    int n = 0;
    for (; n + 5 <= width; n += 5)
        gates_to_columns(out + n * LANES, weight + n, dgates, width, H, 5);
    for (; n < width; n++) gates_to_columns(out + n * LANES, weight + n, dgates, width, H, 1);
}

/* sums[r][n] += sum over the chunk's steps of dgates[t][r] * columns[t][n], for 4 rows r, a
 * constant number of columns n and one register of lanes, so that the sums fit into registers. With
 * `bias`, also bias[r] += sum over the steps of dgates[t][r]. */
INLINE void weight_tile(float *sums, float *bias, const float *dgates, const float *columns,
                        int steps, int H, int width, bool first, int count) {
    const reg zero = {0};
    reg sum[4][3], sum_bias[4];
    FOR_UNROLLED(r, 4) {
        FOR_UNROLLED(n, count) sum[r][n] = first ? zero : r_load(sums + (r * width + n) * LANES);
        if (bias) sum_bias[r] = first ? zero : r_load(bias + r * LANES);
    }
    dgates += (size_t)LANES * (steps - 1) * 4 * H;
    columns += (size_t)LANES * (steps - 1) * width;
    for (int t = 0; t < steps; t++, dgates -= LANES * 4 * H, columns -= LANES * width) {
        reg column[3];
        FOR_UNROLLED(n, count) column[n] = r_load(columns + n * LANES);
        FOR_UNROLLED(r, 4) {
            const reg d = r_load(dgates + r * LANES);
            FOR_UNROLLED(n, count) sum[r][n] = r_fma(d, column[n], sum[r][n]);
            if (bias) sum_bias[r] = r_add(sum_bias[r], d);
        }
    }
    FOR_UNROLLED(r, 4) {
        FOR_UNROLLED(n, count) r_store(sums + (r * width + n) * LANES, sum[r][n]);
        if (bias) r_store(bias + r * LANES, sum_bias[r]);
    }
}

/* All columns of 4 rows, for one register of lanes. The bias is added with the first column. */
INLINE void weight_rows(float *sums, float *bias, const float *dgates, const float *columns,
                        int steps, int H, int width, bool first) {
    int n = 0;
    if (bias) {
        weight_tile(sums, bias, dgates, columns, steps, H, width, first, 1);
        n = 1;
    }
    for (; n + 3 <= width; n += 3)
        weight_tile(sums + n * LANES, NULL, dgates, columns + n * LANES, steps, H, width, first, 3);
    if (width - n == 2)
        weight_tile(sums + n * LANES, NULL, dgates, columns + n * LANES, steps, H, width, first, 2);
    if (width - n == 1)
        weight_tile(sums + n * LANES, NULL, dgates, columns + n * LANES, steps, H, width, first, 1);
}

/* Adds a chunk's part to the sums of all weights of one kind. `columns` are the vectors that the
 * weights multiply: hidden states, or inputs (then `bias` is given too). */
INLINE void weight_sums(float *sums, float *bias, const float *dgates, const float *columns,
                        int steps, int H, int width, bool first) {
    for (int r = 0; r < 4 * H; r += 4)
        for (int lane = 0; lane < LANES; lane += REG_LANES)
            weight_rows(sums + (size_t)r * width * LANES + lane,
                        bias ? bias + r * LANES + lane : NULL, dgates + r * LANES + lane,
                        columns + lane, steps, H, width, first);
}

INLINE void add_vectors(float *sums, const float *p, int count) {
    for (int n = 0; n < count; n++, sums += LANES, p += LANES)
        v_store(sums, v_add(v_load(sums), v_load(p)));
}

/* The gradients of all outputs (W x H) and of all inputs (W x D) of a layer, as vectors, which may
 * be the same memory. NULL: there are none, or nobody wants them. */
typedef struct {
    const float *outputs;
    float *inputs;
} Through;

/* Turns dh and dc after the last step into dh and dc before the first, and writes the block's
 * sums. */
INLINE void backward_sized(const Layer *layer, int W, Tape tape, Scratch scratch, LayerSums sums,
                           Through through, int D, int H) {
    for (int end = W; end > 0; end -= chunk_steps(H)) {
        const int begin = end > chunk_steps(H) ? end - chunk_steps(H) : 0;
        for (int t = end - 1; t >= begin; t--) {
            const float *act = tape.act + (size_t)LANES * t * H * ACTS;
            const float *c = tape.c + (size_t)LANES * t * H;
            float *dgates = scratch.dgates + (size_t)LANES * (t - begin) * 4 * H;
            if (through.outputs)
                add_vectors(scratch.dh, through.outputs + (size_t)LANES * t * H, H);
            for (int j = 0; j < H; j++)
                backward_unit(act + j * LANES, c + j * LANES, scratch.dh + j * LANES,
                              scratch.dc + j * LANES, dgates + j * LANES, H);
            gates_to_all_columns(scratch.dh, layer->weight_hh, dgates, H, H);
            if (through.inputs)
                gates_to_all_columns(through.inputs + (size_t)LANES * t * D, layer->weight_ih,
                                     dgates, D, H);
        }
        const bool first = end == W;
        weight_sums(sums.hh, NULL, scratch.dgates, tape.h + (size_t)LANES * begin * H, end - begin,
                    H, H, first);
        weight_sums(sums.ih, sums.bias, scratch.dgates, tape.x + (size_t)LANES * begin * D,
                    end - begin, H, D, first);
    }
}

static NOINLINE void backward_small(const Layer *layer, int W, Tape tape, Scratch scratch,
                                    LayerSums sums, Through through) {
    backward_sized(layer, W, tape, scratch, sums, through, SMALL_D, SMALL_H);
}

static NOINLINE void backward_small_above(const Layer *layer, int W, Tape tape, Scratch scratch,
                                          LayerSums sums, Through through) {
    backward_sized(layer, W, tape, scratch, sums, through, SMALL_H, SMALL_H);
}

static NOINLINE void backward_any(const Layer *layer, int W, Tape tape, Scratch scratch,
                                  LayerSums sums, Through through, int H) {
    backward_sized(layer, W, tape, scratch, sums, through, layer->D, H);
}

static void backward_block(const Layer *layer, int W, Tape tape, Scratch scratch, LayerSums sums,
                           Through through, int H) {
    if (is_small(H) && layer->D == SMALL_D) backward_small(layer, W, tape, scratch, sums, through);
    else if (is_small(H) && layer->D == SMALL_H)
        backward_small_above(layer, W, tape, scratch, sums, through);
    else backward_any(layer, W, tape, scratch, sums, through, H);
}

#endif
