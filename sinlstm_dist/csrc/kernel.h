/* Types that the parts of the kernel share: the tensors of one call, and the functions that each
 * instruction set provides.
 *
 * Letters as in model.py: B samples, W time steps, D features, H hidden size, L layers. A *block*
 * is 16 samples, one per lane of a vector. An *item* is up to 8 blocks of one piece. Blocks and
 * items are counted from the start of their piece, and each item writes to memory of its own. So an
 * item's result depends only on its samples and the weights. A thread computes an item at a time,
 * or several short ones that share blocks, so that few lanes are idle.
 */
#ifndef SINLSTM_KERNEL_H
#define SINLSTM_KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BLOCK_SAMPLES 16
#define ITEM_BLOCKS 8
#define ITEM_SAMPLES (BLOCK_SAMPLES * ITEM_BLOCKS)
#define MAX_HIDDEN 64
#define MAX_LAYERS 16            /* as sections.py allows */
#define MAX_STEPS (1 << 24)      /* so that offsets inside a block fit into an int */
#define MAX_FEATURES (1 << 24)   /* likewise */
#define LOG2E 1.4426950408889634 /* gates are computed as powers of 2 */
#define NUM_TOTALS 3             /* squared error, correct predictions, samples */

/* Strides in elements, as torch has them. data == NULL: no such tensor in this call. */
typedef struct {
    float *data;
    ptrdiff_t sample_stride, step_stride, feature_stride;
} Tensor;

/* One layer of the LSTM. Its inputs are those of the call, or the hidden states of the layer below
 * it. */
typedef struct {
    int D;                                                  /* features of its inputs */
    const float *weight_ih, *weight_hh, *bias_ih, *bias_hh; /* as nn.LSTM has them */
    const float *packed; /* the same weights as the forward pass reads them, see call.c */
} Layer;

/* The tensors and sizes of one call. */
typedef struct {
    int64_t num_samples;
    int W, H, L;
    int64_t num_threads;
    Tensor inputs;
    Layer layers[MAX_LAYERS]; /* the lowest first; lstm_forward and lstm_backward have one */

    /* predictor */
    Tensor targets;
    const float *head_weight, *head_bias; /* of the linear layer */
    float tolerance;
    bool with_gradient;

    /* lstm_forward; hidden0, cell0 and tapes may be NULL */
    Tensor hidden0, cell0, outputs, hidden, cell;
    float *tapes; /* one per block, kept for the backward pass */

    /* lstm_backward; each may be NULL */
    Tensor grad_outputs, grad_hidden, grad_cell;  /* given */
    Tensor grad_inputs, grad_hidden0, grad_cell0; /* computed */
} Problem;

/* Samples [first, first + count) of a call. The first of them begins block number `block`. */
typedef struct {
    int64_t first, block;
    int count;
    float *result; /* predictor: gradient and totals; lstm_backward: gradient */
    /* items that share blocks, from this one on; 0 if an earlier item counts it */
    int64_t together;
} Item;

typedef void (*ItemFunction)(const Problem *, const Item *, float *scratch);

/* Gaussian noise for the rows of a contiguous array; see data/noise.py. */
typedef struct {
    float *values; /* (num_rows, columns) */
    const int64_t *rows;
    int64_t num_rows, columns;
    uint32_t key[2];
    float deviation;
} Noise;

/* A random bijection of [0, size), at some positions; see plan.py. */
#define NUM_SHUFFLE_KEYS 16
typedef struct {
    const int64_t *positions;
    int64_t count;
    uint64_t size;
    uint32_t height, width; /* of the grid, height * width >= size */
    uint32_t keys[NUM_SHUFFLE_KEYS];
    int64_t *indices;
} Shuffle;

/* One instruction set's functions. */
typedef struct {
    const char *name;
    size_t (*scratch_floats)(const Problem *);
    ItemFunction predictor, lstm_forward, lstm_backward;
    void (*add_noise)(const Noise *);
    void (*shuffle)(const Shuffle *);
} Kernel;

extern const Kernel kernel_plain;
#if defined(__x86_64__)
extern const Kernel kernel_avx2, kernel_avx512;
#endif

/* Floats that hold one block's forward pass: inputs, hidden and cell states, gates, tanh(cell). */
static inline size_t tape_floats(size_t W, size_t D, size_t H) {
    return BLOCK_SAMPLES * (W * D + 2 * (W + 1) * H + 5 * W * H);
}

/* Number of parameters of a layer: both weights and both biases. */
static inline size_t lstm_floats(size_t D, size_t H) { return 4 * H * (D + H) + 8 * H; }

#endif
