/* From the predictor's arguments to a Problem and its Pieces. Each function returns false, with an
 * exception set, if a tuple is wrong. */
#ifndef SINLSTM_TUPLES_H
#define SINLSTM_TUPLES_H

#include <Python.h>

#include "call.h"
#include "memory.h"

/* The Problem of arguments for `predictor` or `steps`, but for the parameters. */
#define PREDICTOR_PROBLEM(a, is_training)                                  \
    {.num_samples = a.num_samples,                                         \
     .W = (int)a.window,                                                   \
     .H = (int)a.hidden_size,                                              \
     .num_threads = a.num_threads,                                         \
     .inputs = {a.windows, a.windows_sample_stride, a.windows_step_stride, \
                a.windows_feature_stride},                                 \
     .targets = {a.targets, a.targets_sample_stride, 0, 0},                \
     .tolerance = (float)a.tolerance,                                      \
     .with_gradient = is_training}

/* Fills p's layers and head from the addresses of their parameters. */
static bool read_parameters(PyObject *tuple, int input_size, Problem *p) {
    float *addresses[4 * MAX_LAYERS + 2];
    const Py_ssize_t count = PyTuple_Size(tuple);
    if (count < 0) return false;
    if (count < 4 + 2 || count > 4 * MAX_LAYERS + 2 || count % 4 != 2) {
        PyErr_Format(PyExc_ValueError,
                     "%zd parameters: the compiled kernel needs 4 of each layer, of at most %d "
                     "layers, and 2 of the head",
                     count, MAX_LAYERS);
        return false;
    }
    for (Py_ssize_t i = 0; i < count; i++)
        addresses[i] = PyLong_AsVoidPtr(PyTuple_GetItem(tuple, i));
    float **next = addresses;
    p->L = (int)(count / 4);
    for (int l = 0; l < p->L; l++, next += 4)
        p->layers[l] =
            (Layer){l == 0 ? input_size : p->H, next[0], next[1], next[2], next[3], NULL};
    p->head_weight = next[0];
    p->head_bias = next[1];
    return !PyErr_Occurred();
}

/* Reads the sizes of the pieces into memory of this thread. */
static bool read_sizes(PyObject *tuple, Pieces *pieces, Size num_samples) {
    const Py_ssize_t count = PyTuple_Size(tuple);
    if (count < 0) return false;
    int64_t *sizes = thread_memory(PIECES_MEMORY, ((size_t)count + 1) * sizeof *sizes);
    if (!sizes) {
        PyErr_NoMemory();
        return false;
    }
    Size total = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        const Size size = PyLong_AsSsize_t(PyTuple_GetItem(tuple, i));
        if (PyErr_Occurred()) return false;
        if (size < 0) {
            PyErr_Format(PyExc_ValueError, "piece %zd has size %zd: sizes are 0 or more", i, size);
            return false;
        }
        sizes[i] = size;
        total = size > PY_SSIZE_T_MAX - total ? PY_SSIZE_T_MAX : total + size;
        pieces->num_items += items_in(size);
    }
    pieces->count = count;
    pieces->sizes = sizes;
    if (total == num_samples) return true;
    PyErr_Format(PyExc_ValueError, "piece_sizes add up to %zd, but there are %zd samples", total,
                 num_samples);
    return false;
}

#endif
