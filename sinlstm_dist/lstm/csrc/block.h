/* Forward and backward pass of a block of 16 samples, and what an item does with its blocks.
 *
 * Included once per instruction set (isa_*.c). Functions take H and D as arguments and are always
 * inlined, so calling them with constants makes a version specialised for the common sizes.
 *
 * A block's forward pass is kept in a *tape* (vectors of 16 samples, time-major):
 *     x      W x D        inputs
 *     h, c   (W+1) x H    states; row t is the state before step t
 *     act    W x H x 5    per unit: gates i, f, g, o after their nonlinearity, and tanh(c)
 * For 50 steps of 5 units that is 116 KB, which stays in a core's second-level cache.
 */
#include "kernel.h"
#include "simd.h"

#include <stdbool.h>

#define ACTS 5 /* vectors kept per unit and step */
#define LOG2E 1.4426950408889634

/* Steps whose gate gradients are buffered before they are multiplied into the weights' sums: few
 * enough that buffer, states and sums of a small LSTM stay in the first-level cache. */
#define CHUNK_STEPS_SMALL 10
#define CHUNK_STEPS_LARGE 24
#define SMALL_HIDDEN 8

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

INLINE int chunk_steps(int H) { return H <= SMALL_HIDDEN ? CHUNK_STEPS_SMALL : CHUNK_STEPS_LARGE; }

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
    for (int lane = 0; lane < LANES; lane++) {
        float *to = dst + lane;
        if (lane >= lanes) {
            for (ptrdiff_t i = 0; i < (ptrdiff_t)steps * units; i++) to[i * LANES] = 0.0f;
            continue;
        }
        const float *from = src.data + rows[lane] * src.row;
        for (int t = 0; t < steps; t++, from += src.step)
            for (int u = 0; u < units; u++, to += LANES) *to = from[u * src.unit];
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

/* One unit, one step: w is the unit's row of packed weights, [1 + D + H][4 gates], already scaled
 * for the exponentials of base 2. */
INLINE void forward_unit(const float *w, const float *x, const float *h, const float *c_before,
                         float *c_after, float *h_after, float *act, int D, int H) {
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
    i = sigmoid_of(i);
    f = sigmoid_of(f);
    g = tanh_of(g);
    o = sigmoid_of(o);
    const vec c = v_fma(f, v_load(c_before), v_mul(i, g));
    const vec tanh_c = tanh_of(v_mul(c, v_set1((float)(2 * LOG2E))));
    v_store(act + 0 * LANES, i);
    v_store(act + 1 * LANES, f);
    v_store(act + 2 * LANES, g);
    v_store(act + 3 * LANES, o);
    v_store(act + 4 * LANES, tanh_c);
    v_store(c_after, c);
    v_store(h_after, v_mul(o, tanh_c));
}

INLINE void forward_block(const float *packed, Tape tape, int W, int D, int H) {
    for (int t = 0; t < W; t++) {
        const float *x = tape.x + (size_t)LANES * t * D;
        float *h = tape.h + (size_t)LANES * t * H, *c = tape.c + (size_t)LANES * t * H;
        float *act = tape.act + (size_t)LANES * t * H * ACTS;
        for (int j = 0; j < H; j++)
            forward_unit(packed + (size_t)j * 4 * (1 + D + H), x, h, c + j * LANES,
                         c + (H + j) * LANES, h + (H + j) * LANES, act + j * ACTS * LANES, D, H);
    }
}

/* ---------------------------------------------------------------- backward */

/* Gradients with respect to the four gates before their nonlinearity, and of the cell before the
 * step, from those of the state after it. 1 - tanh^2 is never formed: w - (w t) t is as exact. */
INLINE void backward_unit(const float *act, const float *c_before, const float *dh, float *dc,
                          float *dgates) {
    const vec i = v_load(act), f = v_load(act + LANES), g = v_load(act + 2 * LANES);
    const vec o = v_load(act + 3 * LANES), tanh_c = v_load(act + 4 * LANES);
    const vec one = v_set1(1.0f);
    const vec dh_o = v_mul(v_load(dh), o);
    const vec dh_o_t = v_mul(dh_o, tanh_c);
    const vec dc_now = v_fnma(dh_o_t, tanh_c, v_add(v_load(dc), dh_o));
    const vec dc_i = v_mul(dc_now, i);
    const vec dc_i_g = v_mul(dc_i, g);
    const vec dc_f = v_mul(dc_now, f);
    v_store(dgates, v_mul(dc_i_g, v_sub(one, i)));
    v_store(dgates + LANES, v_mul(v_mul(dc_f, v_load(c_before)), v_sub(one, f)));
    v_store(dgates + 2 * LANES, v_fnma(dc_i_g, g, dc_i));
    v_store(dgates + 3 * LANES, v_mul(dh_o_t, v_sub(one, o)));
    v_store(dc, dc_f);
}

/* out[n] = sum over gates of weight[gate][n] * dgates[gate], for `count` (a constant) columns of a
 * weight matrix of `width` columns. Gates in the order unit, then i, f, g, o. */
INLINE void gates_to_columns(float *out, const float *weight, const float *dgates, int width,
                             int H, int count) {
    vec sum[5];
#pragma GCC unroll 5
    for (int n = 0; n < count; n++) sum[n] = v_zero();
    for (int j = 0; j < H; j++) {
#pragma GCC unroll 4
        for (int gate = 0; gate < 4; gate++) {
            const vec d = v_load(dgates + (j * 4 + gate) * LANES);
            const float *w = weight + ((size_t)gate * H + j) * width;
#pragma GCC unroll 5
            for (int n = 0; n < count; n++) sum[n] = v_fma(v_set1(w[n]), d, sum[n]);
        }
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

/* sums[r][n] += sum over the chunk's steps of dgates[t][r] * column[t][n], for constant numbers of
 * rows and columns whose sums fit in registers. */
INLINE void weight_tile(float *sums, const float *dgates, const float *columns, int steps, int H,
                        int width, bool first, int rows, int count) {
    vec sum[6];
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int n = 0; n < count; n++)
            sum[r * count + n] = first ? v_zero() : v_load(sums + (r * width + n) * LANES);
    for (int t = steps - 1; t >= 0; t--) {
        const float *d = dgates + (size_t)LANES * t * 4 * H;
        const float *column = columns + (size_t)LANES * t * width;
#pragma GCC unroll 2
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
            for (int n = 0; n < count; n++)
                sum[r * count + n] = v_fma(v_load(d + r * LANES), v_load(column + n * LANES),
                                           sum[r * count + n]);
    }
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int n = 0; n < count; n++)
            v_store(sums + (r * width + n) * LANES, sum[r * count + n]);
}

INLINE void weight_sums(float *sums, const float *dgates, const float *columns, int steps, int H,
                        int width, bool first) {
    for (int r = 0; r < 4 * H; r += 2) {
        float *row = sums + (size_t)r * width * LANES;
        const float *d = dgates + r * LANES;
        int n = 0;
        for (; n + 3 <= width; n += 3)
            weight_tile(row + n * LANES, d, columns + n * LANES, steps, H, width, first, 2, 3);
        if (width - n == 2)
            weight_tile(row + n * LANES, d, columns + n * LANES, steps, H, width, first, 2, 2);
        if (width - n == 1)
            weight_tile(row + n * LANES, d, columns + n * LANES, steps, H, width, first, 2, 1);
    }
}

/* One unit's four sums of its gates' gradients: its biases'. */
INLINE void bias_sums(float *sums, const float *dgates, int steps, int H, bool first) {
    for (int r = 0; r < 4 * H; r += 4) {
        vec sum[4];
#pragma GCC unroll 4
        for (int n = 0; n < 4; n++) sum[n] = first ? v_zero() : v_load(sums + (r + n) * LANES);
        for (int t = steps - 1; t >= 0; t--)
#pragma GCC unroll 4
            for (int n = 0; n < 4; n++)
                sum[n] = v_add(sum[n], v_load(dgates + ((size_t)t * 4 * H + r + n) * LANES));
#pragma GCC unroll 4
        for (int n = 0; n < 4; n++) v_store(sums + (r + n) * LANES, sum[n]);
    }
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
 * `outside` (or NULL) is for the differentiable operation only. */
INLINE void backward_block(const Problem *p, Tape tape, Scratch scratch, Sums sums,
                           const Outside *outside, int W, int D, int H) {
    for (int end = W; end > 0; end -= chunk_steps(H)) {
        const int begin = end > chunk_steps(H) ? end - chunk_steps(H) : 0;
        for (int t = end - 1; t >= begin; t--) {
            const float *act = tape.act + (size_t)LANES * t * H * ACTS;
            const float *c = tape.c + (size_t)LANES * t * H;
            float *dgates = scratch.dgates + (size_t)LANES * (t - begin) * 4 * H;
            if (outside) add_output_gradient(outside, t, scratch.dh, H);
            for (int j = 0; j < H; j++)
                backward_unit(act + j * ACTS * LANES, c + j * LANES, scratch.dh + j * LANES,
                              scratch.dc + j * LANES, dgates + j * 4 * LANES);
            gates_to_all_columns(scratch.dh, p->weight_hh, dgates, H, H);
            if (outside) write_input_gradient(outside, t, dgates, D, H);
        }
        const bool first = end == W;
        weight_sums(sums.hh, scratch.dgates, tape.h + (size_t)LANES * begin * H, end - begin, H,
                    H, first);
        weight_sums(sums.ih, scratch.dgates, tape.x + (size_t)LANES * begin * D, end - begin, H,
                    D, first);
        bias_sums(sums.bias, scratch.dgates, end - begin, H, first);
    }
}

/* ---------------------------------------------------------------- items */

/* Idle lanes are dropped here, whatever they hold: their inputs are zeros, but not what weights
 * that are infinite make of zeros. */
INLINE void add_block_sums(float *item_sums, const float *block_sums, vec mask, size_t count) {
    for (size_t n = 0; n < count; n++, item_sums += LANES, block_sums += LANES)
        v_store(item_sums, v_add(v_load(item_sums), v_keep(mask, v_load(block_sums))));
}

/* Rows of a weight matrix: sums hold them by unit and gate, nn.LSTM by gate and unit. */
INLINE float *write_gate_rows(float *out, const float *sums, int H, int width) {
    for (int gate = 0; gate < 4; gate++)
        for (int j = 0; j < H; j++)
            for (int n = 0; n < width; n++)
                *out++ = v_sum(v_load(sums + ((size_t)(j * 4 + gate) * width + n) * LANES));
    return out;
}

/* Returns where the head's gradients go. */
INLINE float *write_lstm_gradient(float *out, Sums sums, int D, int H) {
    out = write_gate_rows(out, sums.ih, H, D);
    out = write_gate_rows(out, sums.hh, H, H);
    float *bias = out;
    out = write_gate_rows(out, sums.bias, H, 1);
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

INLINE void predictor_block(const Problem *p, int64_t first, int lanes, Scratch scratch,
                            float *item_sums, int D, int H) {
    const int W = p->W;
    int64_t rows[LANES];
    float target[LANES];
    const Tape tape = tape_at(scratch.tape, W, D, H);
    const Sums sums = sums_at(scratch.block_sums, D, H);
    block_rows(p, first, lanes, rows);
    rows_to_lanes(tape.x, p->inputs, rows, lanes, W, D);
    rows_to_lanes(target, p->targets, rows, lanes, 1, 1);
    zero_vectors(tape.h, H);
    zero_vectors(tape.c, H);
    forward_block(p->packed, tape, W, D, H);
    const float *h_last = tape.h + (size_t)LANES * W * H;
    const vec error = v_sub(head_prediction(p, h_last, H), v_load(target));
    v_store(sums.totals, v_mul(error, error));
    v_store(sums.totals + LANES, v_one_if_less(v_abs(error), v_set1(p->tolerance)));
    if (p->with_gradient) {
        head_backward(p, h_last, error, scratch, sums, H);
        backward_block(p, tape, scratch, sums, NULL, W, D, H);
        add_block_sums(item_sums, scratch.block_sums, lane_mask(lanes), sums_vectors(D, H));
    } else {
        const Sums item = sums_at(item_sums, D, H);
        add_block_sums(item.totals, sums.totals, lane_mask(lanes), 2);
    }
}

INLINE void predictor_item_sized(const Problem *p, const Item *item, float *memory, int D, int H) {
    const Scratch scratch = scratch_at(memory, p->W, D, H);
    const Sums sums = sums_at(scratch.item_sums, D, H);
    zero_vectors(scratch.item_sums, sums_vectors(D, H));
    for (int done = 0; done < item->count; done += LANES) {
        const int left = item->count - done, lanes = left < LANES ? left : LANES;
        predictor_block(p, item->first + done, lanes, scratch, scratch.item_sums, D, H);
    }
    float *out = item->result;
    if (p->with_gradient) {
        out = write_lstm_gradient(out, sums, D, H);
        for (int j = 0; j < H; j++) *out++ = v_sum(v_load(sums.head + j * LANES));
        *out++ = v_sum(v_load(sums.head_bias));
    }
    out[0] = v_sum(v_load(sums.totals));
    out[1] = v_sum(v_load(sums.totals + LANES));
    out[2] = (float)item->count;
}

INLINE void lstm_forward_block(const Problem *p, int64_t first, int lanes, float *tape_memory,
                               int D, int H) {
    const int W = p->W;
    const Tape tape = tape_at(tape_memory, W, D, H);
    const float *h_last = tape.h + (size_t)LANES * W * H, *c_last = tape.c + (size_t)LANES * W * H;
    int64_t rows[LANES];
    block_rows(p, first, lanes, rows);
    rows_to_lanes(tape.x, p->inputs, rows, lanes, W, D);
    load_state(tape.h, p->hidden0, first, lanes, H);
    load_state(tape.c, p->cell0, first, lanes, H);
    forward_block(p->packed, tape, W, D, H);
    lanes_to_rows(p->outputs, tape.h + (size_t)LANES * H, first, lanes, W, H);
    lanes_to_rows(p->hidden, h_last, first, lanes, 1, H);
    lanes_to_rows(p->cell, c_last, first, lanes, 1, H);
}

INLINE void lstm_forward_sized(const Problem *p, const Item *item, float *memory, int D, int H) {
    const size_t size = tape_floats(p->W, D, H);
    for (int done = 0; done < item->count; done += LANES) {
        const int left = item->count - done, lanes = left < LANES ? left : LANES;
        const int64_t block = item->block + done / LANES;
        lstm_forward_block(p, item->first + done, lanes, p->tapes ? p->tapes + block * size : memory,
                           D, H);
    }
}

INLINE void lstm_backward_sized(const Problem *p, const Item *item, float *memory, int D, int H) {
    const int W = p->W;
    const Scratch scratch = scratch_at(memory, W, D, H);
    const Sums sums = sums_at(scratch.block_sums, D, H);
    const size_t num_sums = (size_t)4 * H * (D + H) + 4 * H;
    zero_vectors(scratch.item_sums, num_sums);
    for (int done = 0; done < item->count; done += LANES) {
        const int left = item->count - done, lanes = left < LANES ? left : LANES;
        const int64_t first = item->first + done, block = item->block + done / LANES;
        const Outside outside = {p, first, lanes};
        load_state(scratch.dh, p->grad_hidden, first, lanes, H);
        load_state(scratch.dc, p->grad_cell, first, lanes, H);
        backward_block(p, tape_at(p->tapes + block * tape_floats(W, D, H), W, D, H), scratch, sums,
                       &outside, W, D, H);
        if (p->grad_hidden0.data) lanes_to_rows(p->grad_hidden0, scratch.dh, first, lanes, 1, H);
        if (p->grad_cell0.data) lanes_to_rows(p->grad_cell0, scratch.dc, first, lanes, 1, H);
        add_block_sums(scratch.item_sums, scratch.block_sums, lane_mask(lanes), num_sums);
    }
    write_lstm_gradient(item->result, sums_at(scratch.item_sums, D, H), D, H);
}

/* ---------------------------------------------------------------- sizes known to the compiler */

#define FOR_SIZES(name)                                                                 \
    static void name(const Problem *p, const Item *item, float *memory) {               \
        if (p->H == 5 && p->D == 1) name##_sized(p, item, memory, 1, 5);                 \
        else name##_sized(p, item, memory, p->D, p->H);                                 \
    }

FOR_SIZES(predictor_item)
FOR_SIZES(lstm_forward)
FOR_SIZES(lstm_backward)

const Kernel KERNEL = {KERNEL_NAME, scratch_floats, predictor_item, lstm_forward, lstm_backward};
