/* The three operations on plain memory, without Python: they cut a call into items, let the pool
 * compute them, and add the items' results in a fixed order. Each returns false if there is no
 * memory. */
#ifndef SINLSTM_CALL_H
#define SINLSTM_CALL_H

#include "kernel.h"

/* The pieces of a batch, and where each piece's row of results goes. */
typedef struct {
    int64_t count, num_items;
    const int64_t *sizes;
    float *rows;
    ptrdiff_t row_stride;
} Pieces;

/* Number of items that a piece of this many samples is cut into. */
static inline int64_t items_in(int64_t num_samples) {
    return num_samples / ITEM_SAMPLES + (num_samples % ITEM_SAMPLES != 0);
}

bool run_predictor(const Kernel *kernel, Problem *problem, const Pieces *pieces);
bool run_lstm_forward(const Kernel *kernel, Problem *problem);
bool run_lstm_backward(const Kernel *kernel, Problem *problem, float *gradient);

#endif
