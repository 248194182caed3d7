/* How an item computes its blocks, for each of the three operations; and the instruction set's
 * Kernel, whose names isa_*.c define, with noise and shuffle. */
#include "backward.h"
#include "forward.h"
#include "noise.h"
#include "shuffle.h"

/* Adds lanes [from, from + num) of the block to lanes [to, to + num) of the item. The others are
 * dropped here, whatever they hold: the inputs of an idle lane are zeros, but an infinite weight
 * times zero is NaN. Loads reach into the memory before and after the block's sums. */
INLINE void add_block_sums(float *item_sums, const float *block_sums, int from, int to, int num,
                           size_t count) {
    const vec mask = lane_mask(to, to + num);
    block_sums += from - to;
    for (size_t n = 0; n < count; n++, item_sums += LANES, block_sums += LANES)
        v_store(item_sums, v_add(v_load(item_sums), v_keep(mask, v_load(block_sums))));
}

INLINE float *write_sums(float *out, const float *sums, size_t count) {
    for (size_t n = 0; n < count; n++) *out++ = v_sum(v_load(sums + n * LANES));
    return out;
}

/* Returns the address after the layer's gradients. */
INLINE float *write_layer_gradient(float *out, LayerSums sums, int D, int H) {
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
INLINE void head_backward(const Problem *p, const float *h, vec error, float *dh, HeadSums sums) {
    const vec slope = v_add(error, error);
    v_store(sums.bias, slope);
    for (int j = 0; j < p->H; j++) {
        v_store(sums.weight + j * LANES, v_mul(slope, v_load(h + j * LANES)));
        v_store(dh + j * LANES, v_mul(slope, v_set1(p->head_weight[j])));
    }
}

/* Computes the tapes of all layers from the inputs in the lowest one, with first states of zeros.
 */
static void layers_forward(const Problem *p, Tape *tapes) {
    const int W = p->W, H = p->H;
    for (int l = 0; l < p->L; l++) {
        if (l > 0) tapes[l] = tape_above(tapes[l - 1], W, H);
        zero_vectors(tapes[l].h, H);
        zero_vectors(tapes[l].c, H);
        forward_block(&p->layers[l], tapes[l], W, H);
    }
}

/* From the gradient dh of the highest layer's last hidden state down to the sums of all layers. */
static void layers_backward(const Problem *p, const Tape *tapes, Scratch scratch) {
    const int H = p->H, top = p->L - 1;
    for (int l = top; l >= 0; l--) {
        const Through through = {l < top ? scratch.doutputs : NULL,
                                 l > 0 ? scratch.doutputs : NULL};
        if (l < top) zero_vectors(scratch.dh, H);
        zero_vectors(scratch.dc, H);
        backward_block(&p->layers[l], p->W, tapes[l], scratch, layer_sums(scratch.block_sums, p, l),
                       through, H);
    }
}

static void predictor_block(const Problem *p, int64_t first, int lanes, Scratch scratch) {
    const int W = p->W, D = p->layers[0].D, H = p->H;
    const HeadSums sums = head_sums(scratch.block_sums, p);
    float target[LANES];
    Tape tapes[MAX_LAYERS];
    tapes[0] = tape_at(scratch.tapes, W, D, H);
    load_samples(tapes[0].x, p->inputs, first, lanes, W, D);
    load_samples(target, p->targets, first, lanes, 1, 1);
    layers_forward(p, tapes);
    const float *h_last = tapes[p->L - 1].h + (size_t)LANES * W * H;
    const vec error = v_sub(head_prediction(p, h_last, H), v_load(target));
    v_store(sums.totals, v_mul(error, error));
    v_store(sums.totals + LANES, v_one_if_less(v_abs(error), v_set1(p->tolerance)));
    if (p->with_gradient) {
        head_backward(p, h_last, error, scratch.dh, sums);
        layers_backward(p, tapes, scratch);
    }
}

/* Adds the samples of an item that are in the block which begins at sample `at`. */
static void add_samples(const Problem *p, const Item *item, int64_t at, Scratch scratch) {
    const int64_t begin = item->first > at ? item->first : at;
    const int64_t item_end = item->first + item->count;
    const int num = (int)((item_end < at + LANES ? item_end : at + LANES) - begin);
    const int from = (int)(begin - at), to = (int)((begin - item->first) % LANES);
    const bool all = p->with_gradient;
    const size_t skipped = all ? 0 : sums_vectors(p) - 2, count = all ? sums_vectors(p) : 2;
    add_block_sums(scratch.item_sums + skipped * LANES, scratch.block_sums + skipped * LANES, from,
                   to, num, count);
}

static void write_item(const Problem *p, const Item *item, Scratch scratch) {
    const HeadSums sums = head_sums(scratch.item_sums, p);
    float *out = item->result;
    if (p->with_gradient) {
        for (int l = 0; l < p->L; l++)
            out = write_layer_gradient(out, layer_sums(scratch.item_sums, p, l), p->layers[l].D,
                                       p->H);
        out = write_sums(out, sums.weight, p->H + 1); /* the bias follows the weight */
    }
    write_sums(out, sums.totals, 2);
    out[2] = (float)item->count;
}

/* Computes the items that are together as if all their samples were one item's. A sample keeps its
 * lane within its own item, so the item's sums have the same bits as if it were alone. */
static void predictor_items(const Problem *p, const Item *item, float *memory) {
    const Scratch scratch = scratch_at(memory, p);
    const Item *const end = item + item->together;
    const int64_t last = end[-1].first + end[-1].count;
    zero_vectors(scratch.item_sums, sums_vectors(p));
    for (int64_t at = item->first; at < last; at += LANES) {
        predictor_block(p, at, last - at < LANES ? (int)(last - at) : LANES, scratch);
        for (; item < end && item->first < at + LANES; item++) {
            add_samples(p, item, at, scratch);
            if (item->first + item->count > at + LANES) break; /* it goes on in the next block */
            write_item(p, item, scratch);
            zero_vectors(scratch.item_sums, sums_vectors(p));
        }
    }
}

static int lanes_left(const Item *item, int done) {
    return item->count - done < LANES ? item->count - done : LANES;
}

static void lstm_forward_block(const Problem *p, int64_t first, int lanes, float *tape_memory) {
    const int W = p->W, D = p->layers[0].D, H = p->H;
    const Tape tape = tape_at(tape_memory, W, D, H);
    const float *h_last = tape.h + (size_t)LANES * W * H, *c_last = tape.c + (size_t)LANES * W * H;
    load_samples(tape.x, p->inputs, first, lanes, W, D);
    load_state(tape.h, p->hidden0, first, lanes, H);
    load_state(tape.c, p->cell0, first, lanes, H);
    forward_block(&p->layers[0], tape, W, H);
    store_samples(p->outputs, tape.h + (size_t)LANES * H, first, lanes, W, H);
    store_samples(p->hidden, h_last, first, lanes, 1, H);
    store_samples(p->cell, c_last, first, lanes, 1, H);
}

static void lstm_forward(const Problem *p, const Item *item, float *memory) {
    const size_t size = tapes_floats(p);
    for (int done = 0; done < item->count; done += LANES) {
        const int64_t block = item->block + done / LANES;
        lstm_forward_block(p, item->first + done, lanes_left(item, done),
                           p->tapes ? p->tapes + block * size : memory);
    }
}

static void lstm_backward_block(const Problem *p, int64_t first, int lanes, float *tape_memory,
                                Scratch scratch) {
    const int W = p->W, D = p->layers[0].D, H = p->H;
    const Through through = {p->grad_outputs.data ? scratch.doutputs : NULL,
                             p->grad_inputs.data ? scratch.dinputs : NULL};
    load_state(scratch.dh, p->grad_hidden, first, lanes, H);
    load_state(scratch.dc, p->grad_cell, first, lanes, H);
    if (through.outputs) load_samples(scratch.doutputs, p->grad_outputs, first, lanes, W, H);
    backward_block(&p->layers[0], W, tape_at(tape_memory, W, D, H), scratch,
                   layer_sums(scratch.block_sums, p, 0), through, H);
    if (through.inputs) store_samples(p->grad_inputs, scratch.dinputs, first, lanes, W, D);
    if (p->grad_hidden0.data) store_samples(p->grad_hidden0, scratch.dh, first, lanes, 1, H);
    if (p->grad_cell0.data) store_samples(p->grad_cell0, scratch.dc, first, lanes, 1, H);
}

static void lstm_backward(const Problem *p, const Item *item, float *memory) {
    const Scratch scratch = scratch_at(memory, p);
    const size_t num_sums = vectors_below(p, 1);
    zero_vectors(scratch.item_sums, num_sums);
    for (int done = 0; done < item->count; done += LANES) {
        const int lanes = lanes_left(item, done);
        float *tape = p->tapes + (item->block + done / LANES) * tapes_floats(p);
        lstm_backward_block(p, item->first + done, lanes, tape, scratch);
        add_block_sums(scratch.item_sums, scratch.block_sums, 0, 0, lanes, num_sums);
    }
    write_layer_gradient(item->result, layer_sums(scratch.item_sums, p, 0), p->layers[0].D, p->H);
}

const Kernel ISA_KERNEL = {ISA_NAME,      scratch_floats, predictor_items, lstm_forward,
                           lstm_backward, add_noise,      shuffle};
