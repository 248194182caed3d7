/* The Python module sinlstm_dist.lstm._kernel: addresses in, arithmetic out.
 *
 * Arguments are plain integers (tensor.data_ptr(), sizes, strides in elements); the callers in
 * recurrence.py and predictor.py check tensors and keep them alive. Address 0 means absent. The
 * interpreter's lock is released while items run. Written against the limited API of Python 3.10,
 * so that one wheel serves every later version.
 */
#define _POSIX_C_SOURCE 200809L
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernel.h"
#include "pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define MAX_HIDDEN 64

/* ---------------------------------------------------------------- instruction sets */

static const Kernel *kernels[3]; /* those that this machine has, best first */
static int num_kernels;
static const Kernel *chosen;

static void find_kernels(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) kernels[num_kernels++] = &kernel_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        kernels[num_kernels++] = &kernel_avx2;
#endif
    kernels[num_kernels++] = &kernel_plain;
    chosen = kernels[0];
}

static PyObject *instruction_sets(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    PyObject *names = PyTuple_New(num_kernels);
    for (int i = 0; names && i < num_kernels; i++)
        PyTuple_SetItem(names, i, PyUnicode_FromString(kernels[i]->name));
    return names;
}

static PyObject *instruction_set(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    return PyUnicode_FromString(chosen->name);
}

static PyObject *set_instruction_set(PyObject *self, PyObject *name) {
    (void)self;
    for (int i = 0; i < num_kernels; i++)
        if (PyUnicode_CompareWithASCIIString(name, kernels[i]->name) == 0) {
            chosen = kernels[i];
            Py_RETURN_NONE;
        }
    PyErr_Format(PyExc_ValueError, "unknown instruction set %R", name);
    return NULL;
}

/* ---------------------------------------------------------------- memory of threads */

/* Grows and is kept, so that a training loop allocates nothing; freed when the thread ends. */
typedef struct {
    float *memory;
    size_t size;
} Workspace;

enum { SCRATCH, CALL, NUM_WORKSPACES }; /* items' memory, and the call's (packed weights) */

static pthread_key_t workspace_key;

static void free_workspaces(void *pointer) {
    Workspace *workspaces = pointer;
    for (int i = 0; i < NUM_WORKSPACES; i++) free(workspaces[i].memory);
    free(workspaces);
}

/* At least `size` floats, aligned to a cache line; NULL when there is no memory. */
static float *workspace(int which, size_t size) {
    Workspace *workspaces = pthread_getspecific(workspace_key);
    if (!workspaces) {
        workspaces = calloc(NUM_WORKSPACES, sizeof *workspaces);
        if (!workspaces) return NULL;
        pthread_setspecific(workspace_key, workspaces);
    }
    Workspace *w = &workspaces[which];
    if (w->size < size) {
        free(w->memory);
        w->size = 0;
        const size_t bytes = (size * sizeof(float) + 63) / 64 * 64;
        if (posix_memalign((void **)&w->memory, 64, bytes) != 0) w->memory = NULL;
        if (w->memory) w->size = size;
    }
    return w->memory;
}

/* ---------------------------------------------------------------- one call */

typedef void (*ItemFunction)(const Problem *, const Item *, float *scratch);

typedef struct {
    const Problem *problem;
    const Item *items;
    ItemFunction function;
    size_t scratch_size;
    atomic_bool out_of_memory;
} Call;

/* Rounding to nearest, and subnormal numbers as zeros: gradients vanish over long windows, and
 * some CPUs take a hundred times longer for subnormals. Set here, because a result must not depend
 * on what the calling thread had set (torch.set_flush_denormal) nor on which thread does an item. */
#if defined(__x86_64__)
#define FLOAT_MODE 0x9fc0u
static unsigned enter_float_mode(void) {
    const unsigned before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(FLOAT_MODE);
    return before;
}
static void leave_float_mode(unsigned before) { __builtin_ia32_ldmxcsr(before); }
#else
static unsigned enter_float_mode(void) { return 0; }
static void leave_float_mode(unsigned before) { (void)before; }
#endif

static void run_item(void *context, int64_t index) {
    Call *call = context;
    float *scratch = workspace(SCRATCH, call->scratch_size);
    if (!scratch) {
        atomic_store(&call->out_of_memory, true);
        return;
    }
    const unsigned before = enter_float_mode();
    call->function(call->problem, &call->items[index], scratch);
    leave_float_mode(before);
}

/* Rough nanoseconds of one core, to leave small work to one thread. Fitted on an EPYC 7003 with
 * AVX2 (2025-11); forward and backward of one block of 5 units and 50 steps takes 15 us. */
static double estimated_ns(const Problem *p, int64_t num_samples) {
    const double blocks = (double)num_samples / BLOCK_SAMPLES + 1;
    return blocks * p->W * p->H * (25.0 + 5.0 * (p->D + p->H));
}

#define SPREAD_FROM_NS 20000

/* False: out of memory. */
static bool run_items(const Kernel *kernel, ItemFunction function, const Problem *problem,
                      const Item *items, int64_t num_items, int64_t num_samples, int num_threads) {
    Call call = {problem, items, function, kernel->scratch_floats(problem), false};
    if (estimated_ns(problem, num_samples) < SPREAD_FROM_NS) num_threads = 1;
    pool_run(run_item, &call, num_items, num_threads);
    return !atomic_load(&call.out_of_memory);
}

/* Weights as the forward pass reads them: a row per unit, [1 + D + H][i, f, g, o], bias first, and
 * times -log2(e) (sigmoid) or 2 log2(e) (tanh), so that gates come out as powers of two. */
static void pack_weights(const Problem *p, float *out) {
    static const double scale[4] = {-LOG2E, -LOG2E, 2 * LOG2E, -LOG2E};
    const int D = p->D, H = p->H;
    for (int j = 0; j < H; j++) {
        for (int gate = 0; gate < 4; gate++, out++) {
            const int r = gate * H + j;
            const double s = scale[gate];
            out[0] = (float)(s * ((double)p->bias_ih[r] + p->bias_hh[r]));
            for (int d = 0; d < D; d++)
                out[4 * (1 + d)] = (float)(s * p->weight_ih[(size_t)r * D + d]);
            for (int k = 0; k < H; k++)
                out[4 * (1 + D + k)] = (float)(s * p->weight_hh[(size_t)r * H + k]);
        }
        out += 4 * (D + H);
    }
}

static size_t packed_floats(const Problem *p) {
    return (size_t)4 * p->H * (1 + p->D + p->H);
}

static int64_t items_in(int64_t samples) { return (samples + ITEM_SAMPLES - 1) / ITEM_SAMPLES; }

/* The items of one piece whose first sample is `first`. Results lie `width` apart from `result`. */
static Item *cut_piece(Item *item, int64_t first, int64_t size, float *result, size_t width) {
    for (int64_t begin = 0; begin < size; begin += ITEM_SAMPLES, item++, result += width) {
        const int64_t left = size - begin;
        const int count = (int)(left < ITEM_SAMPLES ? left : ITEM_SAMPLES);
        *item = (Item){first + begin, begin / BLOCK_SAMPLES, count, result};
    }
    return item;
}

/* out = results of the items in their order. */
static void add_results(float *out, const Item *items, int64_t num_items, size_t width) {
    if (num_items == 0) memset(out, 0, width * sizeof *out);
    else if (items[0].result != out) memcpy(out, items[0].result, width * sizeof *out);
    for (int64_t i = 1; i < num_items; i++)
        for (size_t n = 0; n < width; n++) out[n] += items[i].result[n];
}

/* A call's own memory: packed weights, then items, then results of items. */
typedef struct {
    float *packed;
    Item *items;
    float *results;
} CallMemory;

static CallMemory call_memory(const Problem *p, int64_t num_items, size_t width) {
    const size_t packed = (packed_floats(p) + 15) / 16 * 16;
    const size_t items = num_items * sizeof(Item) / sizeof(float);
    float *memory = workspace(CALL, packed + items + num_items * width);
    if (!memory) return (CallMemory){NULL, NULL, NULL};
    return (CallMemory){memory, (Item *)(memory + packed), memory + packed + items};
}

/* ---------------------------------------------------------------- arguments */

static bool failed(void) { return PyErr_Occurred() != NULL; }

/* The next argument of a call. An argument that is not an integer sets an exception, which the
 * caller looks for once, after the last. */
typedef struct { PyObject *const *next; } Arguments;

static Py_ssize_t take_size(Arguments *a) { return PyLong_AsSsize_t(*a->next++); }
static void *take_address(Arguments *a) { return PyLong_AsVoidPtr(*a->next++); }

static Rows take_rows(Arguments *a) {
    Rows rows;
    rows.data = take_address(a);
    rows.row = take_size(a);
    rows.step = take_size(a);
    rows.unit = take_size(a);
    return rows;
}

/* A contiguous (B, W, units) tensor's address. */
static Rows take_contiguous(Arguments *a, int W, int units) {
    return (Rows){take_address(a), (ptrdiff_t)W * units, units, 1};
}

static void take_weights(Arguments *a, Problem *p) {
    p->weight_ih = take_address(a);
    p->weight_hh = take_address(a);
    p->bias_ih = take_address(a);
    p->bias_hh = take_address(a);
}

static void take_shape(Arguments *a, Problem *p) {
    p->W = (int)take_size(a);
    p->D = (int)take_size(a);
    p->H = (int)take_size(a);
}

static bool expect(Py_ssize_t given, Py_ssize_t wanted) {
    if (given == wanted) return true;
    PyErr_Format(PyExc_TypeError, "%zd arguments given, %zd needed", given, wanted);
    return false;
}

static bool shape_is_possible(const Problem *p) {
    if (p->W >= 1 && p->D >= 1 && p->H >= 1 && p->H <= MAX_HIDDEN) return true;
    PyErr_Format(PyExc_ValueError, "window %d, input size %d, hidden size %d: the compiled kernel "
                 "needs at least 1 of each and a hidden size of at most %d", p->W, p->D, p->H,
                 MAX_HIDDEN);
    return false;
}

static PyObject *done(bool enough_memory) {
    if (!enough_memory) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* ---------------------------------------------------------------- predictor */

typedef struct {
    int64_t num_pieces, num_samples, num_items;
    int64_t *sizes;
} Pieces;

/* Returns false with an exception set. The sizes are in memory to be freed. */
static bool take_pieces(PyObject *tuple, int64_t num_samples, Pieces *pieces) {
    const Py_ssize_t n = PyTuple_Size(tuple);
    if (n < 0) return false;
    *pieces = (Pieces){n, 0, 0, malloc((n + 1) * sizeof(int64_t))};
    if (!pieces->sizes) return PyErr_NoMemory(), false;
    for (Py_ssize_t i = 0; i < n; i++) {
        const int64_t size = PyLong_AsSsize_t(PyTuple_GetItem(tuple, i));
        if (size < 0 && !failed())
            PyErr_Format(PyExc_ValueError, "piece %zd has size %zd: sizes are 0 or more", i,
                         (Py_ssize_t)size);
        if (failed()) return free(pieces->sizes), false;
        pieces->sizes[i] = size;
        pieces->num_samples += size;
        pieces->num_items += items_in(size);
    }
    if (pieces->num_samples == num_samples) return true;
    PyErr_Format(PyExc_ValueError, "piece_sizes add up to %zd, but there are %zd samples",
                 (Py_ssize_t)pieces->num_samples, (Py_ssize_t)num_samples);
    free(pieces->sizes);
    return false;
}

static bool run_predictor(Problem *p, Pieces pieces, float *out, ptrdiff_t out_row, size_t width,
                          int num_threads) {
    const Kernel *kernel = chosen;
    const CallMemory memory = call_memory(p, pieces.num_items, width);
    if (!memory.packed) return false;
    pack_weights(p, memory.packed);
    p->packed = memory.packed;
    Item *item = memory.items;
    int64_t first = 0;
    for (int64_t v = 0; v < pieces.num_pieces; first += pieces.sizes[v], v++) {
        /* A piece of one item writes its row itself. */
        float *result = items_in(pieces.sizes[v]) == 1
                            ? out + v * out_row
                            : memory.results + (item - memory.items) * width;
        item = cut_piece(item, first, pieces.sizes[v], result, width);
    }
    const bool enough = run_items(kernel, kernel->predictor, p, memory.items, pieces.num_items,
                                  pieces.num_samples, num_threads);
    item = memory.items;
    for (int64_t v = 0; v < pieces.num_pieces; v++) {
        add_results(out + v * out_row, item, items_in(pieces.sizes[v]), width);
        item += items_in(pieces.sizes[v]);
    }
    return enough;
}

static bool indices_are_inside(const int64_t *indices, int64_t count, int64_t num_rows) {
    for (int64_t i = 0; i < count; i++)
        if (indices[i] < 0 || indices[i] >= num_rows) {
            PyErr_Format(PyExc_IndexError, "indices[%zd] is %zd, but there are %zd windows",
                         (Py_ssize_t)i, (Py_ssize_t)indices[i], (Py_ssize_t)num_rows);
            return false;
        }
    return true;
}

/* predictor(windows, row, step, unit, num_rows, targets, target_row, indices, num_samples,
 *           piece_sizes, weight_ih, weight_hh, bias_ih, bias_hh, head_weight, head_bias,
 *           W, D, H, tolerance, num_threads, with_gradient, out, out_row) */
static PyObject *predictor(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (!expect(count, 24)) return NULL;
    Arguments a = {args};
    Problem p = {0};
    p.inputs = take_rows(&a);
    const Py_ssize_t num_rows = take_size(&a);
    p.targets = (Rows){take_address(&a), 0, 0, 0};
    p.targets.row = take_size(&a);
    p.indices = take_address(&a);
    const Py_ssize_t num_samples = take_size(&a);
    PyObject *piece_sizes = *a.next++;
    take_weights(&a, &p);
    p.head_weight = take_address(&a);
    p.head_bias = take_address(&a);
    take_shape(&a, &p);
    p.tolerance = (float)PyFloat_AsDouble(*a.next++);
    const int num_threads = (int)take_size(&a);
    p.with_gradient = (int)take_size(&a);
    float *out = take_address(&a);
    const Py_ssize_t out_row = take_size(&a);
    if (failed() || !shape_is_possible(&p)) return NULL;
    if (p.indices && !indices_are_inside(p.indices, num_samples, num_rows)) return NULL;
    Pieces pieces;
    if (!take_pieces(piece_sizes, num_samples, &pieces)) return NULL;
    const size_t gradient = p.with_gradient ? lstm_floats(p.D, p.H) + p.H + 1 : 0;
    bool enough;
    Py_BEGIN_ALLOW_THREADS
    enough = run_predictor(&p, pieces, out, out_row, gradient + NUM_TOTALS, num_threads);
    Py_END_ALLOW_THREADS
    free(pieces.sizes);
    return done(enough);
}

/* ---------------------------------------------------------------- lstm */

static bool run_lstm_forward(Problem *p, int64_t num_samples, int num_threads) {
    const Kernel *kernel = chosen;
    const CallMemory memory = call_memory(p, items_in(num_samples), 0);
    if (!memory.packed) return false;
    pack_weights(p, memory.packed);
    p->packed = memory.packed;
    cut_piece(memory.items, 0, num_samples, NULL, 0);
    return run_items(kernel, kernel->lstm_forward, p, memory.items, items_in(num_samples),
                     num_samples, num_threads);
}

/* lstm_forward(inputs, row, step, unit, hidden0, cell0, weight_ih, weight_hh, bias_ih, bias_hh,
 *              B, W, D, H, num_threads, outputs, hidden, cell, tapes) */
static PyObject *lstm_forward(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (!expect(count, 19)) return NULL;
    Arguments a = {args};
    Problem p = {0};
    p.inputs = take_rows(&a);
    float *hidden0 = take_address(&a), *cell0 = take_address(&a);
    take_weights(&a, &p);
    const Py_ssize_t num_samples = take_size(&a);
    take_shape(&a, &p);
    const int num_threads = (int)take_size(&a);
    p.hidden0 = (Rows){hidden0, p.H, 0, 1};
    p.cell0 = (Rows){cell0, p.H, 0, 1};
    p.outputs = take_contiguous(&a, p.W, p.H);
    p.hidden = take_contiguous(&a, 1, p.H);
    p.cell = take_contiguous(&a, 1, p.H);
    p.tapes = take_address(&a);
    if (failed() || !shape_is_possible(&p)) return NULL;
    bool enough;
    Py_BEGIN_ALLOW_THREADS
    enough = run_lstm_forward(&p, num_samples, num_threads);
    Py_END_ALLOW_THREADS
    return done(enough);
}

static bool run_lstm_backward(Problem *p, int64_t num_samples, float *out, int num_threads) {
    const Kernel *kernel = chosen;
    const size_t width = lstm_floats(p->D, p->H);
    const int64_t num_items = items_in(num_samples);
    const CallMemory memory = call_memory(p, num_items, width);
    if (!memory.packed) return false;
    cut_piece(memory.items, 0, num_samples, memory.results, width);
    const bool enough = run_items(kernel, kernel->lstm_backward, p, memory.items, num_items,
                                  num_samples, num_threads);
    add_results(out, memory.items, num_items, width);
    return enough;
}

/* lstm_backward(tapes, weight_ih, weight_hh, grad_outputs, row, step, unit, grad_hidden, grad_cell,
 *               B, W, D, H, num_threads, grad_inputs, grad_hidden0, grad_cell0, gradient) */
static PyObject *lstm_backward(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (!expect(count, 18)) return NULL;
    Arguments a = {args};
    Problem p = {0};
    p.tapes = take_address(&a);
    p.weight_ih = take_address(&a);
    p.weight_hh = take_address(&a);
    p.grad_outputs = take_rows(&a);
    float *grad_hidden = take_address(&a), *grad_cell = take_address(&a);
    const Py_ssize_t num_samples = take_size(&a);
    take_shape(&a, &p);
    const int num_threads = (int)take_size(&a);
    p.grad_hidden = (Rows){grad_hidden, p.H, 0, 1};
    p.grad_cell = (Rows){grad_cell, p.H, 0, 1};
    p.grad_inputs = take_contiguous(&a, p.W, p.D);
    p.grad_hidden0 = take_contiguous(&a, 1, p.H);
    p.grad_cell0 = take_contiguous(&a, 1, p.H);
    float *gradient = take_address(&a);
    if (failed() || !shape_is_possible(&p)) return NULL;
    bool enough;
    Py_BEGIN_ALLOW_THREADS
    enough = run_lstm_backward(&p, num_samples, gradient, num_threads);
    Py_END_ALLOW_THREADS
    return done(enough);
}

/* tape_size(W, D, H) -> floats that the forward pass of one block of 16 samples keeps */
static PyObject *tape_size(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (!expect(count, 3)) return NULL;
    Arguments a = {args};
    Problem p = {0};
    take_shape(&a, &p);
    if (failed() || !shape_is_possible(&p)) return NULL;
    return PyLong_FromSize_t(tape_floats(p.W, p.D, p.H));
}

static PyObject *num_workers(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    return PyLong_FromLong(pool_num_workers());
}

/* ---------------------------------------------------------------- the module */

#define FAST(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef methods[] = {
    {"predictor", FAST(predictor), METH_FASTCALL, NULL},
    {"lstm_forward", FAST(lstm_forward), METH_FASTCALL, NULL},
    {"lstm_backward", FAST(lstm_backward), METH_FASTCALL, NULL},
    {"tape_size", FAST(tape_size), METH_FASTCALL, NULL},
    {"num_workers", num_workers, METH_NOARGS, NULL},
    {"instruction_sets", instruction_sets, METH_NOARGS, NULL},
    {"instruction_set", instruction_set, METH_NOARGS, NULL},
    {"set_instruction_set", set_instruction_set, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_kernel", .m_size = -1, .m_methods = methods,
};

PyMODINIT_FUNC PyInit__kernel(void) {
    if (pthread_key_create(&workspace_key, free_workspaces) != 0) return PyErr_NoMemory();
    find_kernels();
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddIntConstant(module, "BLOCK_SAMPLES", BLOCK_SAMPLES) == 0 &&
        PyModule_AddIntConstant(module, "MAX_HIDDEN", MAX_HIDDEN) == 0)
        return module;
    Py_XDECREF(module);
    return NULL;
}
