/* The predictor's rows on a GPU, with the bits of the CPU kernel: gradient and totals of each
 * piece.
 *
 * `block_states` computes a block of 16 samples: a thread has one unit of one sample (y, x) over
 * all steps. The forward pass writes a tape, and the backward pass replaces the gates on it by
 * their gradients. `item_rows` then computes each sum over the steps, blocks and lanes of an item,
 * in the CPU kernel's order: 16 threads (x) have a task, which is some columns of a unit's four
 * gates, or one number of the head or the totals. `piece_rows` adds the items. There are no
 * atomics.
 *
 * NVRTC compiles this file for one INPUT_SIZE and HIDDEN_SIZE; see lstm/cuda.py, which allocates
 * tapes of TAPE_ROWS.
 */
#define ISA_CUDA
#include "activations.h"
#include "unit.h"

#define D INPUT_SIZE
#define H HIDDEN_SIZE
#define UNITS ((H + 1) / 2 * 2) /* even, so that warps are whole */
#define LOG2E 1.4426950408889634
#define GATES 4
#define COLUMNS (D + H + 1)  /* of a gate's row of weights: inputs, hidden state, bias */
#define TILE (H > 8 ? 4 : 2) /* columns of a task */
#define WEIGHT_TASKS ((H * ((COLUMNS + TILE - 1) / TILE) + 1) / 2 * 2) /* even: two in a warp */
#define WIDTH_GRADIENT (GATES * H * (D + H + 2) + H + 1)
#define NUM_TOTALS 3
#define END_NUMBERS (H + 1 + NUM_TOTALS)

/* A block's tape, in vectors of 16 samples: its errors, the last hidden state, and for each step
 * TAPE_ROWS rows of H units: the gates, or their gradients; tanh(c); the state before the step. */
enum { TANH_C = GATES, H_BEFORE, C_BEFORE, END_OF_ROWS };
static_assert(END_OF_ROWS == TAPE_ROWS, "lstm/cuda.py allocates other tapes");
#define TAPE_STEP (TAPE_ROWS * H * LANES)
#define TAPE_HEAD ((1 + H) * LANES)

typedef struct {
    int first, count;
} Range; /* a block's samples, or an item's blocks */

typedef struct {
    const float *windows; /* (B, W, D) */
    const Range *blocks;
    float *tapes;
    int W;
    bool with_gradient;
    const float *targets; /* (B, 1); from here on for block_states alone */
    const float *packed, *weight_hh, *head_weight, *head_bias;
} Problem;

/* The sample of this thread. An idle lane computes the last sample again. */
__device__ long long sample_of(Range block) {
    return block.first + ((int)threadIdx.x < block.count ? (int)threadIdx.x : block.count - 1);
}

__device__ float *tape_of(const Problem *p, int block) {
    const long long size = TAPE_HEAD + (p->with_gradient ? (long long)p->W * TAPE_STEP : 0);
    return p->tapes + block * size;
}

/* The gates i, f, g, o of a unit, after their nonlinearity. */
INLINE void gates_of(const float4 *w, const float *x, const float *h, float *gates) {
    float4 row = *w++;
    gates[0] = row.x, gates[1] = row.y, gates[2] = row.z, gates[3] = row.w;
    for (int d = 0; d < D; d++) {
        row = *w++;
        gates[0] = v_fma(row.x, x[d], gates[0]);
        gates[1] = v_fma(row.y, x[d], gates[1]);
        gates[2] = v_fma(row.z, x[d], gates[2]);
        gates[3] = v_fma(row.w, x[d], gates[3]);
    }
#pragma unroll 8
    for (int k = 0; k < H; k++) {
        const float column = v_load(h + k * LANES);
        row = *w++;
        gates[0] = v_fma(row.x, column, gates[0]);
        gates[1] = v_fma(row.y, column, gates[1]);
        gates[2] = v_fma(row.z, column, gates[2]);
        gates[3] = v_fma(row.w, column, gates[3]);
    }
    sigmoid_of(gates, 2);
    tanh_of(gates + 2, 1);
    sigmoid_of(gates + 3, 1);
}

/* The hidden state of this thread's unit after the last step. `states` has room for two times the
 * units' states: the units read one while the next is written. */
__device__ float forward(const Problem *p, const float *window, float *tape, float *states) {
    const int unit = threadIdx.y;
    const float4 *w = (const float4 *)p->packed + unit * (1 + D + H);
    float h = 0.0f, c = 0.0f;
    for (int t = 0; t < p->W; t++, window += D, tape += TAPE_STEP) {
        float *now = states + t % 2 * UNITS * LANES;
        v_store(now + unit * LANES, h);
        __syncthreads();
        if (unit >= H) continue;
        float gates[GATES];
        gates_of(w, window, now, gates);
        const float c_before = c;
        c = next_cell(gates[0], gates[1], gates[2], c_before);
        float tanh_c = v_mul(c, (float)(2 * LOG2E));
        tanh_of(&tanh_c, 1);
        if (p->with_gradient) {
            for (int gate = 0; gate < GATES; gate++)
                v_store(tape + (gate * H + unit) * LANES, gates[gate]);
            v_store(tape + (TANH_C * H + unit) * LANES, tanh_c);
            v_store(tape + (H_BEFORE * H + unit) * LANES, h);
            v_store(tape + (C_BEFORE * H + unit) * LANES, c_before);
        }
        h = v_mul(gates[3], tanh_c);
    }
    return h;
}

/* The error of this thread's sample. `last` has room for the units' last states. */
__device__ float error_of(const Problem *p, long long sample, float h, float *last) {
    v_store(last + threadIdx.y * LANES, h);
    __syncthreads();
    float prediction = p->head_bias[0];
    for (int j = 0; j < H; j++)
        prediction = v_fma(p->head_weight[j], v_load(last + j * LANES), prediction);
    return v_sub(prediction, p->targets[sample]);
}

/* From the gradient of the last hidden state back to those of the gates, which go to the tape.
 * `dgates` has room for two times the units' gates. */
__device__ void backward(const Problem *p, float *tape, float dh, float *dgates) {
    const int unit = threadIdx.y;
    float dc = 0.0f;
    tape += (long long)(p->W - 1) * TAPE_STEP;
    for (int t = p->W - 1; t >= 0; t--, tape -= TAPE_STEP) {
        float *now = dgates + t % 2 * GATES * H * LANES;
        if (unit < H) {
            float at[TAPE_ROWS];
            for (int row = 0; row < TAPE_ROWS; row++)
                at[row] = v_load(tape + (row * H + unit) * LANES);
            const UnitGradient gradient =
                unit_gradient(at[0], at[1], at[2], at[3], at[TANH_C], at[C_BEFORE], dh, dc);
            const float of_gates[GATES] = {gradient.i, gradient.f, gradient.g, gradient.o};
            for (int gate = 0; gate < GATES; gate++) {
                v_store(tape + (gate * H + unit) * LANES, of_gates[gate]);
                v_store(now + (gate * H + unit) * LANES, of_gates[gate]);
            }
            dc = gradient.c_before;
        }
        __syncthreads();
        if (unit >= H) continue;
        dh = 0.0f;
#pragma unroll 8
        for (int r = 0; r < GATES * H; r++)
            dh = v_fma(p->weight_hh[r * H + unit], v_load(now + r * LANES), dh);
    }
}

__device__ void compute_block(const Problem *p, float *memory) {
    const Range block = p->blocks[blockIdx.x];
    const int unit = threadIdx.y;
    const long long sample = sample_of(block);
    float *tape = tape_of(p, blockIdx.x), *steps = tape + TAPE_HEAD;
    float *dgates = memory + 2 * UNITS * LANES;
    const float h = forward(p, p->windows + sample * p->W * D, steps, memory);
    const float error = error_of(p, sample, h, memory + p->W % 2 * UNITS * LANES);
    if (unit == 0) v_store(tape, error);
    if (unit < H) v_store(tape + (1 + unit) * LANES, h);
    if (p->with_gradient) {
        const float slope = v_add(error, error);
        backward(p, steps, v_mul(slope, unit < H ? p->head_weight[unit] : 0.0f), dgates);
    }
}

__device__ const float ONE = 1.0f;

/* sums[gate][n] += the sum over a block's steps of dgates[gate] * column[n]. A column of the inputs
 * or of the hidden state has an address and a stride; that of the bias is 1. */
__device__ void add_block(const Problem *p, Range block, const float *steps, int unit, int column,
                          float sums[GATES][TILE]) {
    const float *at[TILE];
    int stride[TILE];
    float block_sums[GATES][TILE] = {};
#pragma unroll
    for (int n = 0; n < TILE; n++) {
        const int k = column + n - D;
        at[n] = &ONE, stride[n] = 0;
        if (k < 0) at[n] = p->windows + sample_of(block) * p->W * D + column + n, stride[n] = D;
        else if (k < H)
            at[n] = steps + (H_BEFORE * H + k) * LANES + threadIdx.x, stride[n] = TAPE_STEP;
    }
    for (int t = p->W - 1; t >= 0; t--) {
        float values[TILE];
#pragma unroll
        for (int n = 0; n < TILE; n++) values[n] = at[n][(long long)t * stride[n]];
#pragma unroll
        for (int gate = 0; gate < GATES; gate++) {
            const float d = v_load(steps + (long long)t * TAPE_STEP + (gate * H + unit) * LANES);
#pragma unroll
            for (int n = 0; n < TILE; n++)
                block_sums[gate][n] = v_fma(d, values[n], block_sums[gate][n]);
        }
    }
#pragma unroll
    for (int gate = 0; gate < GATES; gate++)
#pragma unroll
        for (int n = 0; n < TILE; n++)
            sums[gate][n] =
                v_add(sums[gate][n], (int)threadIdx.x < block.count ? block_sums[gate][n] : 0.0f);
}

/* Writes the sum of a column of a gate's row of weights where it belongs in the item's row. */
__device__ void write_weight(float *row, int gate_row, int n, float sum) {
    float *biases = row + GATES * H * (D + H);
    if (n < D) row[gate_row * D + n] = sum;
    else if (n < D + H) row[GATES * H * D + gate_row * H + n - D] = sum;
    else if (n == D + H) biases[gate_row] = biases[GATES * H + gate_row] = sum;
}

__device__ void weight_task(const Problem *p, Range item, int task, float *row) {
    const int unit = task % H, column = task / H * TILE;
    float sums[GATES][TILE] = {};
    for (int block = item.first; block < item.first + item.count; block++)
        add_block(p, p->blocks[block], tape_of(p, block) + TAPE_HEAD, unit, column, sums);
#pragma unroll
    for (int gate = 0; gate < GATES; gate++)
#pragma unroll
        for (int n = 0; n < TILE; n++) {
            const float sum = v_sum(sums[gate][n]);
            if (threadIdx.x == 0) write_weight(row, gate * H + unit, column + n, sum);
        }
}

/* What a sample adds to a number of the end of a row: the head's gradients, then the totals. */
__device__ float end_value(const float *tape, int number, float tolerance) {
    const float error = v_load(tape), slope = v_add(error, error);
    if (number < H) return v_mul(slope, v_load(tape + (1 + number) * LANES));
    if (number == H) return slope;
    if (number == H + 1) return v_mul(error, error);
    return number == H + 2 ? v_one_if_less(v_abs(error), tolerance) : 1.0f;
}

__device__ void end_task(const Problem *p, Range item, int number, float tolerance, float *end) {
    float sum = 0.0f;
    for (int block = item.first; block < item.first + item.count; block++) {
        const float value = end_value(tape_of(p, block), number, tolerance);
        sum = v_add(sum, (int)threadIdx.x < p->blocks[block].count ? value : 0.0f);
    }
    sum = v_sum(sum);
    if (threadIdx.x == 0 && number < END_NUMBERS) end[number] = sum;
}

extern "C" __global__ void __launch_bounds__(LANES *UNITS)
    block_states(const float *windows, const float *targets, const Range *blocks,
                 const float *packed, const float *weight_hh, const float *head_weight,
                 const float *head_bias, float *tapes, int W, int with_gradient) {
    extern __shared__ float memory[];
    const Problem p = {windows, blocks, tapes,     W,           with_gradient != 0,
                       targets, packed, weight_hh, head_weight, head_bias};
    compute_block(&p, memory);
}

/* A row of sums per item. A block of threads has blockDim.y tasks. */
extern "C" __global__ void item_rows(const float *windows, const Range *blocks, const Range *items,
                                     float *tapes, float *rows, int W, float tolerance,
                                     int with_gradient) {
    const Problem p = {windows, blocks, tapes, W, with_gradient != 0};
    const Range item = items[blockIdx.x];
    const int task = blockIdx.y * blockDim.y + threadIdx.y;
    const int width = with_gradient ? WIDTH_GRADIENT : 0;
    const int end_task_0 = with_gradient ? WEIGHT_TASKS : -(H + 1); /* without the head */
    float *row = rows + (long long)blockIdx.x * (width + NUM_TOTALS);
    if (task < end_task_0) weight_task(&p, item, task, row);
    else end_task(&p, item, task - end_task_0, tolerance, row + width - (H + 1));
}

/* A row [1 + D + H][i, f, g, o] per unit, bias first, times -log2(e) (sigmoid) or 2 log2(e)
 * (tanh), so that gates are powers of two; as in call.c. */
extern "C" __global__ void pack_weights(const float *weight_ih, const float *weight_hh,
                                        const float *bias_ih, const float *bias_hh, float *packed) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= H * (1 + D + H) * GATES) return;
    const int gate = index % GATES, n = index / GATES % (1 + D + H) - 1;
    const int r = gate * H + index / GATES / (1 + D + H);
    double value;
    if (n < 0) value = (double)bias_ih[r] + bias_hh[r];
    else value = n < D ? weight_ih[r * D + n] : weight_hh[r * H + n - D];
    packed[index] = (float)((gate == 2 ? 2 * LOG2E : -LOG2E) * value);
}

/* Each piece's row: its items' rows, added in their order. */
extern "C" __global__ void piece_rows(const float *rows, const int *piece_items, float *out,
                                      int out_stride, int width) {
    const int column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const int begin = piece_items[blockIdx.x], end = piece_items[blockIdx.x + 1];
    float sum = begin < end ? rows[(long long)begin * width + column] : 0.0f;
    for (int item = begin + 1; item < end; item++)
        sum = v_add(sum, rows[(long long)item * width + column]);
    out[(long long)blockIdx.x * out_stride + column] = sum;
}
