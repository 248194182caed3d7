/* The Python module sinlstm_dist._kernel: addresses in, arithmetic out.
 *
 * The callers check tensors and keep them alive. The interpreter's lock is released while items
 * run. Written against the limited API of Python 3.10, so that one wheel works with every later
 * version.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "arguments.h"
#include "call.h"
#include "gather_calls.h"
#include "memory.h"
#include "pool.h"
#include "steps.h"
#include "tuples.h"

/* ---------------------------------------------------------------- instruction sets */

static const Kernel *kernels[3]; /* those that this machine has, best first */
static int num_kernels;
static const Kernel *chosen; /* read and written under the interpreter's lock */

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

static PyObject *instruction_sets(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(unused)) {
    PyObject *names = PyTuple_New(num_kernels);
    for (int i = 0; names && i < num_kernels; i++)
        PyTuple_SetItem(names, i, PyUnicode_FromString(kernels[i]->name));
    return names;
}

static PyObject *instruction_set(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(unused)) {
    return PyUnicode_FromString(chosen->name);
}

static PyObject *set_instruction_set(PyObject *Py_UNUSED(self), PyObject *name) {
    for (int i = 0; i < num_kernels; i++)
        if (PyUnicode_CompareWithASCIIString(name, kernels[i]->name) == 0) {
            chosen = kernels[i];
            Py_RETURN_NONE;
        }
    PyErr_Format(PyExc_ValueError, "unknown instruction set %R", name);
    return NULL;
}

/* ---------------------------------------------------------------- arguments */

DEFINE_ARGUMENTS(PredictorArguments, PREDICTOR_ARGUMENTS)
DEFINE_ARGUMENTS(StepsArguments, STEPS_ARGUMENTS)
DEFINE_ARGUMENTS(ForwardArguments, FORWARD_ARGUMENTS)
DEFINE_ARGUMENTS(BackwardArguments, BACKWARD_ARGUMENTS)
DEFINE_ARGUMENTS(TapeArguments, TAPE_ARGUMENTS)
DEFINE_ARGUMENTS(NoiseArguments, NOISE_ARGUMENTS)
DEFINE_ARGUMENTS(ShuffleArguments, SHUFFLE_ARGUMENTS)

/* Sets ValueError if the kernel cannot compute these sizes. Checked before they become ints. */
static bool shape_is_possible(Size window, Size input_size, Size hidden_size) {
    if (window >= 1 && window <= MAX_STEPS && input_size >= 1 && input_size <= MAX_FEATURES &&
        hidden_size >= 1 && hidden_size <= MAX_HIDDEN)
        return true;
    PyErr_Format(PyExc_ValueError,
                 "window %zd, input size %zd, hidden size %zd: the compiled kernel needs at least "
                 "1 of each, a window of at most %d, an input size of at most %d and a hidden size "
                 "of at most %d",
                 window, input_size, hidden_size, MAX_STEPS, MAX_FEATURES, MAX_HIDDEN);
    return false;
}

/* A contiguous tensor (B, steps, features). */
static Tensor contiguous(Address data, Size steps, Size features) {
    return (Tensor){data, steps * features, features, 1};
}

static PyObject *none_if(bool enough_memory) {
    if (!enough_memory) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* ---------------------------------------------------------------- predictor */

static PyObject *predictor(PyObject *Py_UNUSED(self), PyObject *const *values,
                           Py_ssize_t num_positional, PyObject *names) {
    PredictorArguments a;
    if (!read_PredictorArguments(&a, (Arguments){values, num_positional, names})) return NULL;
    if (!shape_is_possible(a.window, a.input_size, a.hidden_size)) return NULL;
    Pieces pieces = {.rows = a.out, .row_stride = a.out_row_stride};
    if (!read_sizes(a.piece_sizes, &pieces, a.num_samples)) return NULL;
    Problem p = PREDICTOR_PROBLEM(a, a.with_gradient != 0);
    if (!read_parameters(a.parameters, (int)a.input_size, &p)) return NULL;
    const Kernel *kernel = chosen;
    bool enough_memory;
    Py_BEGIN_ALLOW_THREADS
    enough_memory = run_predictor(kernel, &p, &pieces);
    Py_END_ALLOW_THREADS
    return none_if(enough_memory);
}

/* Makes training steps; returns whether they ended before the time was up. */
static PyObject *steps(PyObject *Py_UNUSED(self), PyObject *const *values,
                       Py_ssize_t num_positional, PyObject *names) {
    StepsArguments a;
    if (!read_StepsArguments(&a, (Arguments){values, num_positional, names})) return NULL;
    if (!shape_is_possible(a.window, a.input_size, a.hidden_size)) return NULL;
    Steps s = {
        .problem = PREDICTOR_PROBLEM(a, true),
        .pieces = {.rows = a.rows, .row_stride = a.row_floats},
        .num_steps = a.num_steps,
        .values = a.values,
        .velocity = a.velocity,
        .lr = (float)a.lr,
        .momentum = (float)a.momentum,
        .stop = a.stop != 0,
        .num_rows = a.num_rows,
        .gathered = a.gathered,
        .places = a.places,
        .num_pieces = a.num_pieces,
        .memory = {(char *)a.memory, (size_t)a.num_processes, (size_t)a.slot_bytes},
        .rank = (size_t)a.rank,
        .spin_ns = a.spin_ns,
        .patience_ns = a.patience_ns,
    };
    if (!read_sizes(a.piece_sizes, &s.pieces, a.num_samples)) return NULL;
    if (!read_parameters(a.parameters, (int)a.input_size, &s.problem)) return NULL;
    if (a.num_steps < 1 || s.pieces.count % a.num_steps ||
        s.pieces.count / a.num_steps > a.num_rows)
        return PyErr_Format(PyExc_ValueError, "%zd steps of up to %zd pieces cannot have %zd sizes",
                            a.num_steps, a.num_rows, (Py_ssize_t)s.pieces.count);
    s.pieces.count /= a.num_steps; /* of one step */
    if (a.memory && a.num_rows * a.row_floats * (Size)sizeof(float) > a.slot_bytes)
        return PyErr_Format(PyExc_ValueError, "%zd rows do not fit into slots", a.num_rows);
    const Kernel *kernel = chosen;
    StepsResult result;
    Py_BEGIN_ALLOW_THREADS
    result = run_steps(kernel, &s, (StepsState *)a.state, (StepsTotals *)a.totals);
    Py_END_ALLOW_THREADS
    if (result == STEPS_NO_MEMORY) return PyErr_NoMemory();
    return PyBool_FromLong(result == STEPS_ENDED);
}

/* ---------------------------------------------------------------- lstm */

static PyObject *lstm_forward(PyObject *Py_UNUSED(self), PyObject *const *values,
                              Py_ssize_t num_positional, PyObject *names) {
    ForwardArguments a;
    if (!read_ForwardArguments(&a, (Arguments){values, num_positional, names})) return NULL;
    if (!shape_is_possible(a.window, a.input_size, a.hidden_size)) return NULL;
    Problem p = {
        .num_samples = a.num_samples,
        .W = (int)a.window,
        .H = (int)a.hidden_size,
        .L = 1,
        .num_threads = a.num_threads,
        .inputs = {a.inputs, a.inputs_sample_stride, a.inputs_step_stride, a.inputs_feature_stride},
        .layers = {{(int)a.input_size, a.weight_ih, a.weight_hh, a.bias_ih, a.bias_hh, NULL}},
        .hidden0 = contiguous(a.hidden0, 1, a.hidden_size),
        .cell0 = contiguous(a.cell0, 1, a.hidden_size),
        .outputs = contiguous(a.outputs, a.window, a.hidden_size),
        .hidden = contiguous(a.hidden, 1, a.hidden_size),
        .cell = contiguous(a.cell, 1, a.hidden_size),
        .tapes = a.tapes,
    };
    const Kernel *kernel = chosen;
    bool enough_memory;
    Py_BEGIN_ALLOW_THREADS
    enough_memory = run_lstm_forward(kernel, &p);
    Py_END_ALLOW_THREADS
    return none_if(enough_memory);
}

static PyObject *lstm_backward(PyObject *Py_UNUSED(self), PyObject *const *values,
                               Py_ssize_t num_positional, PyObject *names) {
    BackwardArguments a;
    if (!read_BackwardArguments(&a, (Arguments){values, num_positional, names})) return NULL;
    if (!shape_is_possible(a.window, a.input_size, a.hidden_size)) return NULL;
    Problem p = {
        .num_samples = a.num_samples,
        .W = (int)a.window,
        .H = (int)a.hidden_size,
        .L = 1,
        .num_threads = a.num_threads,
        .tapes = a.tapes,
        .layers = {{(int)a.input_size, a.weight_ih, a.weight_hh, NULL, NULL, NULL}},
        .grad_outputs = {a.grad_outputs, a.grad_outputs_sample_stride, a.grad_outputs_step_stride,
                         a.grad_outputs_feature_stride},
        .grad_hidden = contiguous(a.grad_hidden, 1, a.hidden_size),
        .grad_cell = contiguous(a.grad_cell, 1, a.hidden_size),
        .grad_inputs = contiguous(a.grad_inputs, a.window, a.input_size),
        .grad_hidden0 = contiguous(a.grad_hidden0, 1, a.hidden_size),
        .grad_cell0 = contiguous(a.grad_cell0, 1, a.hidden_size),
    };
    const Kernel *kernel = chosen;
    bool enough_memory;
    Py_BEGIN_ALLOW_THREADS
    enough_memory = run_lstm_backward(kernel, &p, a.gradient);
    Py_END_ALLOW_THREADS
    return none_if(enough_memory);
}

/* The number of floats that the forward pass of one block of samples keeps. */
static PyObject *tape_size(PyObject *Py_UNUSED(self), PyObject *const *values,
                           Py_ssize_t num_positional, PyObject *names) {
    TapeArguments a;
    if (!read_TapeArguments(&a, (Arguments){values, num_positional, names})) return NULL;
    if (!shape_is_possible(a.window, a.input_size, a.hidden_size)) return NULL;
    return PyLong_FromSize_t(tape_floats(a.window, a.input_size, a.hidden_size));
}

/* ---------------------------------------------------------------- random numbers */

static PyObject *add_noise(PyObject *Py_UNUSED(self), PyObject *const *values,
                           Py_ssize_t num_positional, PyObject *names) {
    NoiseArguments a;
    if (!read_NoiseArguments(&a, (Arguments){values, num_positional, names})) return NULL;
    const Noise noise = {.values = a.values,
                         .rows = a.rows,
                         .num_rows = a.num_rows,
                         .columns = a.columns,
                         .key = {(uint32_t)a.seed, (uint32_t)a.stream},
                         .deviation = (float)a.deviation};
    const Kernel *kernel = chosen;
    Py_BEGIN_ALLOW_THREADS
    kernel->add_noise(&noise);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *shuffle(PyObject *Py_UNUSED(self), PyObject *const *values,
                         Py_ssize_t num_positional, PyObject *names) {
    ShuffleArguments a;
    if (!read_ShuffleArguments(&a, (Arguments){values, num_positional, names})) return NULL;
    Shuffle order = {.positions = a.positions,
                     .count = a.count,
                     .size = (uint64_t)a.size,
                     .height = (uint32_t)a.height,
                     .width = (uint32_t)a.width,
                     .indices = a.indices};
    for (int i = 0; i < NUM_SHUFFLE_KEYS; i++) order.keys[i] = (uint32_t)a.keys[i];
    const Kernel *kernel = chosen;
    Py_BEGIN_ALLOW_THREADS
    kernel->shuffle(&order);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* ---------------------------------------------------------------- the module */

static PyObject *num_workers(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(unused)) {
    return PyLong_FromLong(pool_num_workers());
}

#define NAMED_ARGUMENTS(function)                                          \
    (PyCFunction)(void (*)(void))(function), METH_FASTCALL | METH_KEYWORDS

static PyMethodDef methods[] = {
    {"predictor", NAMED_ARGUMENTS(predictor), NULL},
    {"steps", NAMED_ARGUMENTS(steps), NULL},
    {"lstm_forward", NAMED_ARGUMENTS(lstm_forward), NULL},
    {"lstm_backward", NAMED_ARGUMENTS(lstm_backward), NULL},
    {"tape_size", NAMED_ARGUMENTS(tape_size), NULL},
    {"add_noise", NAMED_ARGUMENTS(add_noise), NULL},
    {"shuffle", NAMED_ARGUMENTS(shuffle), NULL},
    {"gather_size", NAMED_ARGUMENTS(gather_size), NULL},
    {"gather_put", NAMED_ARGUMENTS(gather_put_), NULL},
    {"gather_take", NAMED_ARGUMENTS(gather_take_), NULL},
    {"num_workers", num_workers, METH_NOARGS, NULL},
    {"instruction_sets", instruction_sets, METH_NOARGS, NULL},
    {"instruction_set", instruction_set, METH_NOARGS, NULL},
    {"set_instruction_set", set_instruction_set, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_kernel",
    .m_size = -1,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__kernel(void) {
    if (!thread_memory_init()) return PyErr_NoMemory();
    find_kernels();
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddIntConstant(module, "BLOCK_SAMPLES", BLOCK_SAMPLES) == 0)
        return module;
    Py_XDECREF(module);
    return NULL;
}
