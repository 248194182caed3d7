/* How an item computes its blocks, for each of the three operations; and the instruction set's
 * Kernel, whose names isa_*.c define, with noise and shuffle. */
#include "backward.h"
#include "forward.h"
#include "noise.h"
#include "shuffle.h"

/* Idle lanes are dropped here, whatever they hold: their inputs are zeros, but an infinite weight
 * times zero is NaN. */
INLINE void add_block_sums(float *item_sums, const float *block_sums, vec mask, size_t count) {
    for (size_t n = 0; n < count; n++, item_sums += LANES, block_sums += LANES)
        v_store(item_sums, v_add(v_load(item_sums), v_keep(mask, v_load(block_sums))));
}

INLINE float *write_sums(float *out, const float *sums, size_t count) {
    for (size_t n = 0; n < count; n++) *out++ = v_sum(v_load(sums + n * LANES));
    return out;
}

/* Returns the address for the head's gradients. */
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
    float target[LANES];
    const Tape tape = tape_at(scratch.tape, W, D, H);
    const Sums sums = sums_at(scratch.block_sums, D, H);
    load_samples(tape.x, p->inputs, first, lanes, W, D);
    load_samples(target, p->targets, first, lanes, 1, 1);
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
    load_samples(tape.x, p->inputs, first, lanes, W, p->D);
    load_state(tape.h, p->hidden0, first, lanes, H);
    load_state(tape.c, p->cell0, first, lanes, H);
    forward_block(p, tape);
    store_samples(p->outputs, tape.h + (size_t)LANES * H, first, lanes, W, H);
    store_samples(p->hidden, h_last, first, lanes, 1, H);
    store_samples(p->cell, c_last, first, lanes, 1, H);
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
    if (p->grad_hidden0.data) store_samples(p->grad_hidden0, scratch.dh, first, lanes, 1, H);
    if (p->grad_cell0.data) store_samples(p->grad_cell0, scratch.dc, first, lanes, 1, H);
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

const Kernel ISA_KERNEL = {ISA_NAME,      scratch_floats, predictor_item, lstm_forward,
                           lstm_backward, add_noise,      shuffle};
