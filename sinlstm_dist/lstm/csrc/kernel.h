/* What the parts of the kernel tell each other: the problem of one call, and the functions that
 * each instruction set provides for one item of it.
 *
 * Letters as in model.py: B samples, W time steps, D features, H hidden size. A *block* is 16
 * samples, one a lane. An *item* is up to 8 blocks of one piece and the unit of work of a thread.
 * Blocks and items are counted from the start of their piece, and each item writes results of its
 * own, so what an item computes depends on nothing but its samples and the weights.
 */
#ifndef SINLSTM_KERNEL_H
#define SINLSTM_KERNEL_H

#include <stddef.h>
#include <stdint.h>

#define BLOCK_SAMPLES 16
#define ITEM_BLOCKS 8
#define ITEM_SAMPLES (BLOCK_SAMPLES * ITEM_BLOCKS)
#define LOG2E 1.4426950408889634 /* gates are computed as exponents of 2 */
#define NUM_TOTALS 3 /* squared error, correct predictions, samples */

/* A tensor's memory as seen by its rows: element (b, t, d) at data[b * row + t * step + d * unit];
 * data == NULL: absent. */
typedef struct {
    float *data;
    ptrdiff_t row, step, unit;
} Rows;

typedef struct {
    int W, D, H;
    const int64_t *indices; /* sample i is row indices[i] of inputs and targets; NULL: row i */
    Rows inputs, targets;
    const float *weight_ih, *weight_hh, *bias_ih, *bias_hh; /* as nn.LSTM has them */
    const float *packed;                                    /* pack_weights' */

    const float *head_weight, *head_bias; /* the predictor's last layer, or NULL */
    float tolerance;
    int with_gradient;

    Rows hidden0, cell0; /* lstm: state before the first step, or absent */
    Rows outputs, hidden, cell;
    float *tapes; /* one tape a block, kept for the backward pass; NULL: none */

    Rows grad_outputs, grad_hidden, grad_cell; /* given; each may be absent */
    Rows grad_inputs, grad_hidden0, grad_cell0; /* wanted; each may be absent */
} Problem;

/* Samples [first, first + count) of a call, whose first block is block number `block`. */
typedef struct {
    int64_t first, block;
    int count;
    float *result; /* predictor: gradient and totals; lstm_backward: gradient */
} Item;

typedef struct {
    const char *name;
    size_t (*scratch_floats)(const Problem *);
    void (*predictor)(const Problem *, const Item *, float *scratch);
    void (*lstm_forward)(const Problem *, const Item *, float *scratch);
    void (*lstm_backward)(const Problem *, const Item *, float *scratch);
} Kernel;

extern const Kernel kernel_plain;
#if defined(__x86_64__)
extern const Kernel kernel_avx2, kernel_avx512;
#endif

/* Floats that hold one block's forward pass: inputs, hidden and cell states, gates, tanh(cell). */
static inline size_t tape_floats(size_t W, size_t D, size_t H) {
    return BLOCK_SAMPLES * (W * D + 2 * (W + 1) * H + 5 * W * H);
}

/* Number of parameters of the recurrence: both weights and both biases. */
static inline size_t lstm_floats(size_t D, size_t H) { return 4 * H * (D + H) + 8 * H; }

#endif
