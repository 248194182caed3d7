#include "call.h"

#include "float_mode.h"
#include "memory.h"
#include "pool.h"

#include <stdatomic.h>
#include <string.h>

/* ---------------------------------------------------------------- items on the pool */

typedef struct {
    const Problem *problem;
    const Item *items;
    ItemFunction function;
    size_t scratch_bytes;
    atomic_bool out_of_memory;
} Work;

static void run_item(void *context, int64_t index) {
    Work *work = context;
    if (!work->items[index].together) return;
    float *scratch = thread_memory(ITEM_MEMORY, work->scratch_bytes);
    if (!scratch) {
        atomic_store(&work->out_of_memory, true);
        return;
    }
    const FloatMode before = enter_float_mode();
    work->function(work->problem, &work->items[index], scratch);
    leave_float_mode(before);
}

/* Rough nanoseconds on one core, to keep small work on one thread. Fitted on an EPYC 7003 with
 * AVX2 (2025-11), where forward and backward of one block of 5 units and 50 steps take 15 us. */
static double estimated_ns(const Problem *p) {
    const double blocks = (double)p->num_samples / BLOCK_SAMPLES + 1;
    double ns_per_unit = 0; /* and step */
    for (int l = 0; l < p->L; l++) ns_per_unit += 25.0 + 5.0 * (p->layers[l].D + p->H);
    return blocks * p->W * p->H * ns_per_unit;
}

#define MIN_NS_FOR_THREADS 20000

/* Returns false if there is no memory. */
static bool run_items(const Kernel *kernel, ItemFunction function, const Problem *p,
                      const Item *items, int64_t num_items) {
    const size_t scratch_bytes = kernel->scratch_floats(p) * sizeof(float);
    Work work = {p, items, function, scratch_bytes, false};
    const int64_t num_threads = estimated_ns(p) < MIN_NS_FOR_THREADS ? 1 : p->num_threads;
    pool_run(run_item, &work, num_items, num_threads);
    return !atomic_load(&work.out_of_memory);
}

/* ---------------------------------------------------------------- memory of a call */

typedef struct {
    float *packed; /* weights */
    Item *items;
    float *results; /* of the items */
} CallMemory;

static size_t packed_floats(int D, int H) { return (size_t)4 * H * (1 + D + H); }

/* All NULL if there is no memory. */
static CallMemory call_memory(const Problem *p, int64_t num_items, size_t result_floats) {
    size_t packed = 0;
    for (int l = 0; l < p->L; l++) packed += packed_floats(p->layers[l].D, p->H);
    packed = (packed + 15) / 16 * 16; /* whole cache lines */
    const size_t items = num_items * sizeof(Item) / sizeof(float);
    const size_t floats = packed + items + num_items * result_floats;
    float *memory = thread_memory(CALL_MEMORY, floats * sizeof(float));
    if (!memory) return (CallMemory){NULL, NULL, NULL};
    return (CallMemory){memory, (Item *)(memory + packed), memory + packed + items};
}

/* Packs a layer's weights for the forward pass: a row [1 + D + H][i, f, g, o] per unit, bias first,
 * times -log2(e) (sigmoid) or 2 log2(e) (tanh), so that gates are powers of two. */
static void pack_layer(const Layer *layer, int H, float *out) {
    static const double scale[4] = {-LOG2E, -LOG2E, 2 * LOG2E, -LOG2E};
    const int D = layer->D;
    for (int j = 0; j < H; j++) {
        for (int gate = 0; gate < 4; gate++, out++) {
            const int r = gate * H + j;
            const double s = scale[gate];
            out[0] = (float)(s * ((double)layer->bias_ih[r] + layer->bias_hh[r]));
            for (int d = 0; d < D; d++)
                out[4 * (1 + d)] = (float)(s * layer->weight_ih[(size_t)r * D + d]);
            for (int k = 0; k < H; k++)
                out[4 * (1 + D + k)] = (float)(s * layer->weight_hh[(size_t)r * H + k]);
        }
        out += 4 * (D + H);
    }
}

static void pack_weights(Problem *p, float *out) {
    for (Layer *layer = p->layers; layer < p->layers + p->L; layer++) {
        pack_layer(layer, p->H, out);
        layer->packed = out;
        out += packed_floats(layer->D, p->H);
    }
}

/* Writes the items of a piece of `size` samples that starts at sample `first`; returns the end of
 * the items. Their results go to `result`, `result_floats` apart. */
static Item *cut_piece(Item *item, int64_t first, int64_t size, float *result,
                       size_t result_floats) {
    for (int64_t begin = 0; begin < size; begin += ITEM_SAMPLES) {
        const int64_t left = size - begin;
        const int count = (int)(left < ITEM_SAMPLES ? left : ITEM_SAMPLES);
        *item++ = (Item){first + begin, begin / BLOCK_SAMPLES, count, result, 1};
        result += result_floats;
    }
    return item;
}

/* out = the sum of the items' results, in the order of the items. */
static void add_results(float *out, const Item *items, int64_t num_items, size_t result_floats) {
    if (num_items == 0) memset(out, 0, result_floats * sizeof *out);
    else if (items[0].result != out) memcpy(out, items[0].result, result_floats * sizeof *out);
    for (int64_t i = 1; i < num_items; i++)
        for (size_t n = 0; n < result_floats; n++) out[n] += items[i].result[n];
}

/* ---------------------------------------------------------------- operations */

/* Packing weights and adding results are in the float mode too, not only the items. These functions
 * are not inlined, so that no operation moves out of the mode. */
#define IN_MODE __attribute__((noinline))

static void cut_pieces(const Pieces *pieces, const CallMemory *memory, size_t result_floats) {
    Item *item = memory->items;
    int64_t first = 0;
    for (int64_t v = 0; v < pieces->count; v++) {
        const int64_t size = pieces->sizes[v];
        /* The item of a piece that has only one writes the piece's row itself. */
        float *result = items_in(size) == 1
                            ? pieces->rows + v * pieces->row_stride
                            : memory->results + (item - memory->items) * result_floats;
        item = cut_piece(item, first, size, result, result_floats);
        first += size;
    }
}

/* Lets short items that follow each other share blocks, but leaves blocks for each thread. */
static void group_items(Item *items, int64_t num_items, const Problem *p) {
    const int64_t share = p->num_samples / (p->num_threads > 1 ? p->num_threads : 1) + 1;
    const int64_t most = share > BLOCK_SAMPLES ? share : BLOCK_SAMPLES;
    Item *head = NULL; /* of a group to which items may be added */
    int64_t samples = 0;
    for (Item *item = items; item < items + num_items; item++) {
        const bool is_short = item->count <= BLOCK_SAMPLES;
        if (head && is_short && samples + item->count <= most) {
            head->together++;
            item->together = 0;
        } else {
            head = is_short ? item : NULL;
            samples = 0;
        }
        samples += item->count;
    }
}

static size_t gradient_floats(const Problem *p) {
    size_t floats = p->H + 1; /* of the head */
    for (int l = 0; l < p->L; l++) floats += lstm_floats(p->layers[l].D, p->H);
    return floats;
}

IN_MODE static bool predictor(const Kernel *kernel, Problem *p, const Pieces *pieces) {
    const size_t result_floats = (p->with_gradient ? gradient_floats(p) : 0) + NUM_TOTALS;
    const CallMemory memory = call_memory(p, pieces->num_items, result_floats);
    if (!memory.packed) return false;
    pack_weights(p, memory.packed);
    cut_pieces(pieces, &memory, result_floats);
    group_items(memory.items, pieces->num_items, p);
    if (!run_items(kernel, kernel->predictor, p, memory.items, pieces->num_items)) return false;
    const Item *item = memory.items;
    for (int64_t v = 0; v < pieces->count; v++) {
        const int64_t num_items = items_in(pieces->sizes[v]);
        add_results(pieces->rows + v * pieces->row_stride, item, num_items, result_floats);
        item += num_items;
    }
    return true;
}

IN_MODE static bool lstm_forward(const Kernel *kernel, Problem *p) {
    const int64_t num_items = items_in(p->num_samples);
    const CallMemory memory = call_memory(p, num_items, 0);
    if (!memory.packed) return false;
    pack_weights(p, memory.packed);
    cut_piece(memory.items, 0, p->num_samples, NULL, 0);
    return run_items(kernel, kernel->lstm_forward, p, memory.items, num_items);
}

IN_MODE static bool lstm_backward(const Kernel *kernel, Problem *p, float *gradient) {
    const int64_t num_items = items_in(p->num_samples);
    const size_t result_floats = lstm_floats(p->layers[0].D, p->H);
    const CallMemory memory = call_memory(p, num_items, result_floats);
    if (!memory.packed) return false;
    cut_piece(memory.items, 0, p->num_samples, memory.results, result_floats);
    if (!run_items(kernel, kernel->lstm_backward, p, memory.items, num_items)) return false;
    add_results(gradient, memory.items, num_items, result_floats);
    return true;
}

bool run_predictor(const Kernel *kernel, Problem *p, const Pieces *pieces) {
    const FloatMode before = enter_float_mode();
    const bool enough_memory = predictor(kernel, p, pieces);
    leave_float_mode(before);
    return enough_memory;
}

bool run_lstm_forward(const Kernel *kernel, Problem *p) {
    const FloatMode before = enter_float_mode();
    const bool enough_memory = lstm_forward(kernel, p);
    leave_float_mode(before);
    return enough_memory;
}

bool run_lstm_backward(const Kernel *kernel, Problem *p, float *gradient) {
    const FloatMode before = enter_float_mode();
    const bool enough_memory = lstm_backward(kernel, p, gradient);
    leave_float_mode(before);
    return enough_memory;
}
