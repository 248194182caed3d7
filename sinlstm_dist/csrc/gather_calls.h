/* The module's functions that gather between the processes of one machine. */
#ifndef SINLSTM_GATHER_CALLS_H
#define SINLSTM_GATHER_CALLS_H

#include <Python.h>

#include "arguments.h"
#include "gather.h"

DEFINE_ARGUMENTS(GatherSizeArguments, GATHER_SIZE_ARGUMENTS)
DEFINE_ARGUMENTS(GatherPutArguments, GATHER_PUT_ARGUMENTS)
DEFINE_ARGUMENTS(GatherTakeArguments, GATHER_TAKE_ARGUMENTS)

static PyObject *gather_size(PyObject *Py_UNUSED(self), PyObject *const *values,
                             Py_ssize_t num_positional, PyObject *names) {
    GatherSizeArguments a;
    if (!read_GatherSizeArguments(&a, (Arguments){values, num_positional, names})) return NULL;
    const GatherMemory memory = {NULL, (size_t)a.num_processes, (size_t)a.slot_bytes};
    return PyLong_FromSize_t(gather_memory_bytes(&memory));
}

static PyObject *gather_put_(PyObject *Py_UNUSED(self), PyObject *const *values,
                             Py_ssize_t num_positional, PyObject *names) {
    GatherPutArguments a;
    if (!read_GatherPutArguments(&a, (Arguments){values, num_positional, names})) return NULL;
    const GatherMemory memory = {(char *)a.memory, (size_t)a.num_processes, (size_t)a.slot_bytes};
    gather_put(&memory, (size_t)a.rank, (uint32_t)a.number, a.bytes, (size_t)a.num_bytes);
    Py_RETURN_NONE;
}

static PyObject *gather_take_(PyObject *Py_UNUSED(self), PyObject *const *values,
                              Py_ssize_t num_positional, PyObject *names) {
    GatherTakeArguments a;
    if (!read_GatherTakeArguments(&a, (Arguments){values, num_positional, names})) return NULL;
    const GatherMemory memory = {(char *)a.memory, (size_t)a.num_processes, (size_t)a.slot_bytes};
    bool all_came;
    Py_BEGIN_ALLOW_THREADS
    all_came = gather_take(&memory, (uint32_t)a.number, a.out, (size_t)a.num_bytes, a.spin_ns,
                           a.patience_ns);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(all_came);
}

#endif
