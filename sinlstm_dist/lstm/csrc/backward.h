/* Forward and backward pass of a block of 16 samples, and what an item does with its blocks.
 *
 * Included once per instruction set (isa_*.c). Functions take H and D as arguments and are always
 * inlined, so calling them with constants makes a version specialised for the common sizes.
 *
 * A block's forward pass is kept in a *tape* (vectors of 16 samples, time-major):
 *     x      W x D        inputs
 *     h, c   (W+1) x H    states; row t is the state before step t
 *     act    W x 5 x H    gates i, f, g, o after their nonlinearity, and tanh(c)
 * For 50 steps of 5 units that is 116 KB, which stays in a core's second-level cache.
 */
#include "activations.h"
#include "kernel.h"

#include <stdbool.h>

#ifndef TOGETHER
#define TOGETHER 2 /* vectors whose activations are computed side by side */
#endif
#define ACTS 5 /* vectors kept per unit and step */

/* Steps whose gate gradients are buffered before they are multiplied into the weights' sums: few
 * enough that buffer, states and sums of a small LSTM stay in the first-level cache. */
#define CHUNK_STEPS_SMALL 10
#define CHUNK_STEPS_LARGE 24

/* The size that the compiler knows: the article's. */
#define SMALL_D 1
#define SMALL_H 5

static bool is_small(const Problem *p) { return p->D == SMALL_D && p->H == SMALL_H; }

typedef struct { float *x, *h, *c, *act; } Tape;

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
typedef struct { float *ih, *hh, *bias, *head, *head_bias, *totals; } Sums;

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

INLINE vec lane_mask(int lanes) {
    static const int32_t bits[2 * LANES] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                            -1, -1, -1, -1, -1, -1, -1, -1};
    float mask[LANES];
    memcpy(mask, bits + LANES - lanes, sizeof mask);
    return v_load(mask);
}

/* ---------------------------------------------------------------- memory in rows <-> lanes */

/* dst[t][u] = element (rows[lane], t, u); idle lanes are zero. */
INLINE void rows_to_lanes(float *dst, Rows src, const int64_t *rows, int lanes, int steps,
                          int units) {
    static const float zero;
    for (int group = 0; group < LANES; group += 4) {
        /* Four rows at a time: the loads overlap and each 16 bytes are written once. */
        const float *from[4];
        ptrdiff_t step[4], unit[4];
        for (int i = 0; i < 4; i++) {
            const bool idle = group + i >= lanes;
            from[i] = idle ? &zero : src.data + rows[group + i] * src.row;
            step[i] = idle ? 0 : src.step;
            unit[i] = idle ? 0 : src.unit;
        }
        float *to = dst + group;
        for (int t = 0; t < steps; t++)
            for (int u = 0; u < units; u++, to += LANES) {
                const float four[4] = {
                    from[0][t * step[0] + u * unit[0]], from[1][t * step[1] + u * unit[1]],
                    from[2][t * step[2] + u * unit[2]], from[3][t * step[3] + u * unit[3]]};
                memcpy(to, four, sizeof four);
            }
    }
}

INLINE void lanes_to_rows(Rows dst, const float *src, int64_t first, int lanes, int steps,
                          int units) {
    for (int lane = 0; lane < lanes; lane++) {
        const float *from = src + lane;
        float *to = dst.data + (first + lane) * dst.row;
        for (int t = 0; t < steps; t++, to += dst.step)
            for (int u = 0; u < units; u++, from += LANES) to[u * dst.unit] = *from;
    }
}

INLINE void zero_vectors(float *p, size_t n) { memset(p, 0, n * LANES * sizeof *p); }

/* Which rows the block's samples are: `rows` for inputs and targets. */
INLINE void block_rows(const Problem *p, int64_t first, int lanes, int64_t *rows) {
    for (int lane = 0; lane < lanes; lane++)
        rows[lane] = p->indices ? p->indices[first + lane] : first + lane;
}

INLINE void load_state(float *dst, Rows state, int64_t first, int lanes, int H) {
    int64_t rows[LANES];
    for (int lane = 0; lane < lanes; lane++) rows[lane] = first + lane;
    if (state.data) rows_to_lanes(dst, state, rows, lanes, 1, H);
    else zero_vectors(dst, H);
}

/* ---------------------------------------------------------------- forward */

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

/* Vectors at p, p + 16, ... in place. TOGETHER of them at a time, then the rest. */
INLINE void activate(void (*function)(vec *, int), float *p, int count) {
    for (; count >= TOGETHER; count -= TOGETHER, p += TOGETHER * LANES) {
        vec y[TOGETHER];
        EACH_OF(n, TOGETHER) y[n] = v_load(p + n * LANES);
        function(y, TOGETHER);
        EACH_OF(n, TOGETHER) v_store(p + n * LANES, y[n]);
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
    vec y[MAX_TOGETHER];
    EACH_OF(n, count) {
        const vec i_g = v_mul(v_load(act + n * LANES), v_load(act + (2 * H + n) * LANES));
        const vec c = v_fma(v_load(act + (H + n) * LANES), v_load(c_before + n * LANES), i_g);
        v_store(c_after + n * LANES, c);
        y[n] = v_mul(c, v_set1((float)(2 * LOG2E)));
    }
    tanh_of(y, count);
    EACH_OF(n, count) {
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

/* One kind of work after another over all units: done unit by unit, the long chains (gate,
 * exponential, division, cell, tanh) fill the core's window of instructions and it waits. */
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

/* Not inlined: on their own, the loops get all registers. */
static NOINLINE void forward_small(const float *packed, Tape tape, int W) {
    forward_sized(packed, tape, W, SMALL_D, SMALL_H);
}

static NOINLINE void forward_any(const float *packed, Tape tape, int W, int D, int H) {
    forward_sized(packed, tape, W, D, H);
}

static void forward_block(const Problem *p, Tape tape) {
    if (is_small(p)) forward_small(p->packed, tape, p->W);
    else forward_any(p->packed, tape, p->W, p->D, p->H);
}

/* ---------------------------------------------------------------- backward */

/* Gradients with respect to the four gates before their nonlinearity, and of the cell before the
 * step, from those of the state after it. 1 - tanh^2 is never formed: w - (w t) t is as exact. */
INLINE void backward_unit(const float *act, const float *c_before, const float *dh, float *dc,
                          float *dgates, int H) {
    const vec i = v_load(act), f = v_load(act + H * LANES), g = v_load(act + 2 * H * LANES);
    const vec o = v_load(act + 3 * H * LANES), tanh_c = v_load(act + 4 * H * LANES);
    const vec one = v_set1(1.0f);
    const vec dh_o = v_mul(v_load(dh), o);
    const vec dh_o_t = v_mul(dh_o, tanh_c);
    const vec dc_now = v_fnma(dh_o_t, tanh_c, v_add(v_load(dc), dh_o));
    const vec dc_i = v_mul(dc_now, i);
    const vec dc_i_g = v_mul(dc_i, g);
    const vec dc_f = v_mul(dc_now, f);
    v_store(dgates, v_mul(dc_i_g, v_sub(one, i)));
    v_store(dgates + H * LANES, v_mul(v_mul(dc_f, v_load(c_before)), v_sub(one, f)));
    v_store(dgates + 2 * H * LANES, v_fnma(dc_i_g, g, dc_i));
    v_store(dgates + 3 * H * LANES, v_mul(dh_o_t, v_sub(one, o)));
    v_store(dc, dc_f);
}

/* out[n] = sum over the 4H gates of weight[gate][n] * dgates[gate], for `count` (a constant)
 * columns of a weight matrix of `width` columns. */
INLINE void gates_to_columns(float *out, const float *weight, const float *dgates, int width,
                             int H, int count) {
    vec sum[5];
#pragma GCC unroll 5
    for (int n = 0; n < count; n++) sum[n] = v_zero();
    for (int r = 0; r < 4 * H; r++, weight += width) {
        const vec d = v_load(dgates + r * LANES);
#pragma GCC unroll 5
        for (int n = 0; n < count; n++) sum[n] = v_fma(v_set1(weight[n]), d, sum[n]);
    }
#pragma GCC unroll 5
    for (int n = 0; n < count; n++) v_store(out + n * LANES, sum[n]);
}

INLINE void gates_to_all_columns(float *out, const float *weight, const float *dgates, int width,
                                 int H) {
    int n = 0;
    for (; n + 5 <= width; n += 5)
        gates_to_columns(out + n * LANES, weight + n, dgates, width, H, 5);
    for (; n < width; n++) gates_to_columns(out + n * LANES, weight + n, dgates, width, H, 1);
}

#define ROWS(r) _Pragma("GCC unroll 4") for (int r = 0; r < 4; r++)
#define COLUMNS(n, count) _Pragma("GCC unroll 3") for (int n = 0; n < (count); n++)

/* sums[r][n] += sum over the chunk's steps of dgates[t][r] * column[t][n], for 4 rows and a constant
 * number of columns, one register of lanes: then the sums fit in registers. With `bias`, also
 * bias[r] += sum over steps of dgates[t][r]. */
INLINE void weight_tile(float *sums, float *bias, const float *dgates, const float *columns,
                        int steps, int H, int width, bool first, int count) {
    const reg zero = {0};
    reg sum[4][3], sum_bias[4];
    ROWS(r) {
        COLUMNS(n, count) sum[r][n] = first ? zero : r_load(sums + (r * width + n) * LANES);
        if (bias) sum_bias[r] = first ? zero : r_load(bias + r * LANES);
    }
    dgates += (size_t)LANES * (steps - 1) * 4 * H;
    columns += (size_t)LANES * (steps - 1) * width;
    for (int t = 0; t < steps; t++, dgates -= LANES * 4 * H, columns -= LANES * width) {
        reg column[3];
        COLUMNS(n, count) column[n] = r_load(columns + n * LANES);
        ROWS(r) {
            const reg d = r_load(dgates + r * LANES);
            COLUMNS(n, count) sum[r][n] = r_fma(d, column[n], sum[r][n]);
            if (bias) sum_bias[r] = r_add(sum_bias[r], d);
        }
    }
    ROWS(r) {
        COLUMNS(n, count) r_store(sums + (r * width + n) * LANES, sum[r][n]);
        if (bias) r_store(bias + r * LANES, sum_bias[r]);
    }
}

/* All columns of 4 rows, one register of lanes. The bias goes with the first column. */
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

/* A chunk's part of the sums for all weights of one kind, `columns` being what they multiply:
 * inputs (then the biases' sums too) or hidden states. */
INLINE void weight_sums(float *sums, float *bias, const float *dgates, const float *columns,
                        int steps, int H, int width, bool first) {
    for (int r = 0; r < 4 * H; r += 4)
        for (int lane = 0; lane < LANES; lane += REG_LANES)
            weight_rows(sums + (size_t)r * width * LANES + lane,
                        bias ? bias + r * LANES + lane : NULL, dgates + r * LANES + lane,
                        columns + lane, steps, H, width, first);
}

/* What the backward pass meets at each step besides the recurrence: the gradient of the outputs
 * and the wanted gradient of the inputs. */
typedef struct {
    const Problem *problem;
    int64_t first;
    int lanes;
} Outside;

INLINE void add_output_gradient(const Outside *outside, int t, float *dh, int H) {
    Rows grad = outside->problem->grad_outputs;
    if (!grad.data) return;
    float *column = grad.data + outside->first * grad.row + t * grad.step;
    for (int lane = 0; lane < outside->lanes; lane++)
        for (int j = 0; j < H; j++) dh[j * LANES + lane] += column[lane * grad.row + j * grad.unit];
}

INLINE void write_input_gradient(const Outside *outside, int t, const float *dgates, int D, int H) {
    Rows grad = outside->problem->grad_inputs;
    if (!grad.data) return;
    grad.data += t * grad.step;
    for (int d = 0; d < D; d++) {
        float column[LANES];
        gates_to_columns(column, outside->problem->weight_ih + d, dgates, D, H, 1);
        Rows feature = {grad.data + d * grad.unit, grad.row, 0, 0};
        lanes_to_rows(feature, column, outside->first, outside->lanes, 1, 1);
    }
}

/* From dh and dc after the last step to dh and dc before the first, and the block's sums.
 * `outside` is NULL for the predictor. */
INLINE void backward_sized(const Problem *p, Tape tape, Scratch scratch, Sums sums,
                           const Outside *outside, int D, int H) {
    const int W = p->W;
    for (int end = W; end > 0; end -= chunk_steps(H)) {
        const int begin = end > chunk_steps(H) ? end - chunk_steps(H) : 0;
        for (int t = end - 1; t >= begin; t--) {
            const float *act = tape.act + (size_t)LANES * t * H * ACTS;
            const float *c = tape.c + (size_t)LANES * t * H;
            float *dgates = scratch.dgates + (size_t)LANES * (t - begin) * 4 * H;
            if (outside) add_output_gradient(outside, t, scratch.dh, H);
            for (int j = 0; j < H; j++)
                backward_unit(act + j * LANES, c + j * LANES, scratch.dh + j * LANES,
                              scratch.dc + j * LANES, dgates + j * LANES, H);
            gates_to_all_columns(scratch.dh, p->weight_hh, dgates, H, H);
            if (outside) write_input_gradient(outside, t, dgates, D, H);
        }
        const bool first = end == W;
        weight_sums(sums.hh, NULL, scratch.dgates, tape.h + (size_t)LANES * begin * H, end - begin,
                    H, H, first);
        weight_sums(sums.ih, sums.bias, scratch.dgates, tape.x + (size_t)LANES * begin * D,
                    end - begin, H, D, first);
    }
}

static NOINLINE void backward_small(const Problem *p, Tape tape, Scratch scratch, Sums sums) {
    backward_sized(p, tape, scratch, sums, NULL, SMALL_D, SMALL_H);
}

static NOINLINE void backward_any(const Problem *p, Tape tape, Scratch scratch, Sums sums) {
    backward_sized(p, tape, scratch, sums, NULL, p->D, p->H);
}

static NOINLINE void backward_outside_small(const Problem *p, Tape tape, Scratch scratch, Sums sums,
                                            const Outside *outside) {
    backward_sized(p, tape, scratch, sums, outside, SMALL_D, SMALL_H);
}

static NOINLINE void backward_outside_any(const Problem *p, Tape tape, Scratch scratch, Sums sums,
                                          const Outside *outside) {
    backward_sized(p, tape, scratch, sums, outside, p->D, p->H);
}

static void backward_block(const Problem *p, Tape tape, Scratch scratch, Sums sums) {
    if (is_small(p)) backward_small(p, tape, scratch, sums);
    else backward_any(p, tape, scratch, sums);
}

static void backward_block_outside(const Problem *p, Tape tape, Scratch scratch, Sums sums,
                                   const Outside *outside) {
    if (is_small(p)) backward_outside_small(p, tape, scratch, sums, outside);
    else backward_outside_any(p, tape, scratch, sums, outside);
}

/* ---------------------------------------------------------------- items */

/* Idle lanes are dropped here, whatever they hold: their inputs are zeros, but not what weights
 * that are infinite make of zeros. */
INLINE void add_block_sums(float *item_sums, const float *block_sums, vec mask, size_t count) {
    for (size_t n = 0; n < count; n++, item_sums += LANES, block_sums += LANES)
        v_store(item_sums, v_add(v_load(item_sums), v_keep(mask, v_load(block_sums))));
}

INLINE float *write_sums(float *out, const float *sums, size_t count) {
    for (size_t n = 0; n < count; n++) *out++ = v_sum(v_load(sums + n * LANES));
    return out;
}

/* Returns where the head's gradients go. */
INLINE float *write_lstm_gradient(float *out, Sums sums, int D, int H) {
    float *bias = write_sums(out, sums.ih, (size_t)4 * H * (D + H)); /* hh follows ih */
    out = write_sums(bias, sums.bias, 4 * H);
    memcpy(out, bias, 4 * H * sizeof *out); /* both biases have the same gradient */
    return out + 4 * H;
}

INLINE vec head_prediction(const Problem *p, const float *h, int H) {
    vec prediction = v_set1(p->head_bias[0]);
    for (int j = 0; j < H; j++)
        prediction = v_fma(v_set1(p->head_weight[j]), v_load(h + j * LANES), prediction);
    return prediction;
}

/* Gradients of the squared error with respect to the head and to the last hidden state. */
INLINE void head_backward(const Problem *p, const float *h, vec error, Scratch scratch, Sums sums,
                          int H) {
    const vec slope = v_add(error, error);
    v_store(sums.head_bias, slope);
    for (int j = 0; j < H; j++) {
        v_store(sums.head + j * LANES, v_mul(slope, v_load(h + j * LANES)));
        v_store(scratch.dh + j * LANES, v_mul(slope, v_set1(p->head_weight[j])));
        v_store(scratch.dc + j * LANES, v_zero());
    }
}

static void predictor_block(const Problem *p, int64_t first, int lanes, Scratch scratch,
                            float *item_sums) {
    const int W = p->W, D = p->D, H = p->H;
    int64_t rows[LANES];
    float target[LANES];
    const Tape tape = tape_at(scratch.tape, W, D, H);
    const Sums sums = sums_at(scratch.block_sums, D, H);
    block_rows(p, first, lanes, rows);
    rows_to_lanes(tape.x, p->inputs, rows, lanes, W, D);
    rows_to_lanes(target, p->targets, rows, lanes, 1, 1);
    zero_vectors(tape.h, H);
    zero_vectors(tape.c, H);
    forward_block(p, tape);
    const float *h_last = tape.h + (size_t)LANES * W * H;
    const vec error = v_sub(head_prediction(p, h_last, H), v_load(target));
    v_store(sums.totals, v_mul(error, error));
    v_store(sums.totals + LANES, v_one_if_less(v_abs(error), v_set1(p->tolerance)));
    if (p->with_gradient) {
        head_backward(p, h_last, error, scratch, sums, H);
        backward_block(p, tape, scratch, sums);
        add_block_sums(item_sums, scratch.block_sums, lane_mask(lanes), sums_vectors(D, H));
    } else {
        const Sums item = sums_at(item_sums, D, H);
        add_block_sums(item.totals, sums.totals, lane_mask(lanes), 2);
    }
}

static int lanes_left(const Item *item, int done) {
    return item->count - done < LANES ? item->count - done : LANES;
}

static void predictor_item(const Problem *p, const Item *item, float *memory) {
    const int D = p->D, H = p->H;
    const Scratch scratch = scratch_at(memory, p->W, D, H);
    const Sums sums = sums_at(scratch.item_sums, D, H);
    zero_vectors(scratch.item_sums, sums_vectors(D, H));
    for (int done = 0; done < item->count; done += LANES)
        predictor_block(p, item->first + done, lanes_left(item, done), scratch, scratch.item_sums);
    float *out = item->result;
    if (p->with_gradient) {
        out = write_lstm_gradient(out, sums, D, H);
        out = write_sums(out, sums.head, H + 1); /* head_bias follows head */
    }
    write_sums(out, sums.totals, 2);
    out[2] = (float)item->count;
}

static void lstm_forward_block(const Problem *p, int64_t first, int lanes, float *tape_memory) {
    const int W = p->W, H = p->H;
    const Tape tape = tape_at(tape_memory, W, p->D, H);
    const float *h_last = tape.h + (size_t)LANES * W * H, *c_last = tape.c + (size_t)LANES * W * H;
    int64_t rows[LANES];
    block_rows(p, first, lanes, rows);
    rows_to_lanes(tape.x, p->inputs, rows, lanes, W, p->D);
    load_state(tape.h, p->hidden0, first, lanes, H);
    load_state(tape.c, p->cell0, first, lanes, H);
    forward_block(p, tape);
    lanes_to_rows(p->outputs, tape.h + (size_t)LANES * H, first, lanes, W, H);
    lanes_to_rows(p->hidden, h_last, first, lanes, 1, H);
    lanes_to_rows(p->cell, c_last, first, lanes, 1, H);
}

static void lstm_forward(const Problem *p, const Item *item, float *memory) {
    const size_t size = tape_floats(p->W, p->D, p->H);
    for (int done = 0; done < item->count; done += LANES) {
        const int64_t block = item->block + done / LANES;
        lstm_forward_block(p, item->first + done, lanes_left(item, done),
                           p->tapes ? p->tapes + block * size : memory);
    }
}

static void lstm_backward_block(const Problem *p, Outside outside, float *tape_memory,
                                Scratch scratch, Sums sums) {
    const int H = p->H, lanes = outside.lanes;
    const int64_t first = outside.first;
    load_state(scratch.dh, p->grad_hidden, first, lanes, H);
    load_state(scratch.dc, p->grad_cell, first, lanes, H);
    backward_block_outside(p, tape_at(tape_memory, p->W, p->D, H), scratch, sums, &outside);
    if (p->grad_hidden0.data) lanes_to_rows(p->grad_hidden0, scratch.dh, first, lanes, 1, H);
    if (p->grad_cell0.data) lanes_to_rows(p->grad_cell0, scratch.dc, first, lanes, 1, H);
}

static void lstm_backward(const Problem *p, const Item *item, float *memory) {
    const int W = p->W, D = p->D, H = p->H;
    const Scratch scratch = scratch_at(memory, W, D, H);
    const Sums sums = sums_at(scratch.block_sums, D, H);
    const size_t num_sums = (size_t)4 * H * (D + H) + 4 * H;
    zero_vectors(scratch.item_sums, num_sums);
    for (int done = 0; done < item->count; done += LANES) {
        const Outside outside = {p, item->first + done, lanes_left(item, done)};
        float *tape = p->tapes + (item->block + done / LANES) * tape_floats(W, D, H);
        lstm_backward_block(p, outside, tape, scratch, sums);
        add_block_sums(scratch.item_sums, scratch.block_sums, lane_mask(outside.lanes), num_sums);
    }
    write_lstm_gradient(item->result, sums_at(scratch.item_sums, D, H), D, H);
}

const Kernel KERNEL = {KERNEL_NAME, scratch_floats, predictor_item, lstm_forward, lstm_backward};
