/* The arguments of the module's functions, each in one list X(kind, name). A list yields the struct
 * that holds the arguments, their number, and the names that a call must use, in this order.
 *
 * Python passes each argument by its name: addresses (tensor.data_ptr(), 0 for no tensor; those of
 * int64 arrays are Integers, of float64 ones Numbers), sizes, and strides in elements. Another
 * name, order or number of arguments is a TypeError.
 */
#ifndef SINLSTM_ARGUMENTS_H
#define SINLSTM_ARGUMENTS_H

#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

/* Parts that several lists share. */
#define STRIDED_TENSOR(X, name)    \
    X(Address, name)               \
    X(Size, name##_sample_stride)  \
    X(Size, name##_step_stride)    \
    X(Size, name##_feature_stride)

#define LSTM_WEIGHTS(X)   \
    X(Address, weight_ih) \
    X(Address, weight_hh) \
    X(Address, bias_ih)   \
    X(Address, bias_hh)

#define SHAPE(X)         \
    X(Size, window)      \
    X(Size, input_size)  \
    X(Size, hidden_size)

#define PROBLEM(X)                                  \
    STRIDED_TENSOR(X, windows)                      \
    X(Address, targets)                             \
    X(Size, targets_sample_stride)                  \
    X(Object, piece_sizes) /* tuple of int */       \
    X(Object, parameters)  /* tuple of addresses */ \
    X(Size, num_samples)                            \
    SHAPE(X)                                        \
    X(Size, num_threads)                            \
    X(Real, tolerance)

#define PREDICTOR_ARGUMENTS(X)          \
    PROBLEM(X)                          \
    X(Size, with_gradient) /* 0 or 1 */ \
    X(Address, out)                     \
    X(Size, out_row_stride)

#define STEPS_ARGUMENTS(X)                         \
    PROBLEM(X) /* of all steps */                  \
    X(Size, num_steps)                             \
    X(Address, values)                             \
    X(Address, velocity)                           \
    X(Real, lr)                                    \
    X(Real, momentum)                              \
    X(Size, stop) /* 0 or 1 */                     \
    X(Address, rows)                               \
    X(Size, num_rows)                              \
    X(Size, row_floats)                            \
    X(Address, gathered)                           \
    X(Integers, places)                            \
    X(Size, num_pieces)                            \
    X(Address, memory) /* 0: this process alone */ \
    GATHER_SIZE_ARGUMENTS(X)                       \
    X(Size, rank)                                  \
    X(Size, spin_ns)                               \
    X(Size, patience_ns)                           \
    X(Integers, state)                             \
    X(Numbers, totals)

#define FORWARD_ARGUMENTS(X)  \
    STRIDED_TENSOR(X, inputs) \
    X(Address, hidden0)       \
    X(Address, cell0)         \
    LSTM_WEIGHTS(X)           \
    X(Size, num_samples)      \
    SHAPE(X)                  \
    X(Size, num_threads)      \
    X(Address, outputs)       \
    X(Address, hidden)        \
    X(Address, cell)          \
    X(Address, tapes)

#define BACKWARD_ARGUMENTS(X)       \
    X(Address, tapes)               \
    X(Address, weight_ih)           \
    X(Address, weight_hh)           \
    STRIDED_TENSOR(X, grad_outputs) \
    X(Address, grad_hidden)         \
    X(Address, grad_cell)           \
    X(Size, num_samples)            \
    SHAPE(X)                        \
    X(Size, num_threads)            \
    X(Address, grad_inputs)         \
    X(Address, grad_hidden0)        \
    X(Address, grad_cell0)          \
    X(Address, gradient)

#define TAPE_ARGUMENTS(X) SHAPE(X)

#define NOISE_ARGUMENTS(X) \
    X(Address, values)     \
    X(Integers, rows)      \
    X(Size, num_rows)      \
    X(Size, columns)       \
    X(Size, seed)          \
    X(Size, stream)        \
    X(Real, deviation)

#define SHUFFLE_ARGUMENTS(X)           \
    X(Integers, positions)             \
    X(Size, count)                     \
    X(Integers, keys) /* 16 of them */ \
    X(Size, size)                      \
    X(Size, height)                    \
    X(Size, width)                     \
    X(Integers, indices)

#define GATHER_SIZE_ARGUMENTS(X) \
    X(Size, num_processes)       \
    X(Size, slot_bytes)

#define GATHER_PUT_ARGUMENTS(X) \
    X(Address, memory)          \
    GATHER_SIZE_ARGUMENTS(X)    \
    X(Size, number)             \
    X(Size, rank)               \
    X(Address, bytes)           \
    X(Size, num_bytes)

#define GATHER_TAKE_ARGUMENTS(X) \
    X(Address, memory)           \
    GATHER_SIZE_ARGUMENTS(X)     \
    X(Size, number)              \
    X(Address, out)              \
    X(Size, num_bytes)           \
    X(Size, spin_ns)             \
    X(Size, patience_ns)

/* The kinds of arguments. A value of another type sets an exception. */
typedef float *Address;
typedef int64_t *Integers;
typedef double *Numbers;
typedef Py_ssize_t Size;
typedef double Real;
typedef PyObject *Object;

static Address read_Address(PyObject *value) { return PyLong_AsVoidPtr(value); }
static Integers read_Integers(PyObject *value) { return PyLong_AsVoidPtr(value); }
static Numbers read_Numbers(PyObject *value) { return PyLong_AsVoidPtr(value); }
static Size read_Size(PyObject *value) { return PyLong_AsSsize_t(value); }
static Real read_Real(PyObject *value) { return PyFloat_AsDouble(value); }
static Object read_Object(PyObject *value) { return value; }

/* A call of a module function: its values, those without a name first, and the others' names. */
typedef struct {
    PyObject *const *values;
    Py_ssize_t num_positional;
    PyObject *names; /* a tuple; NULL if no argument has a name */
} Arguments;

/* Whether a call passes exactly the arguments `wanted`, by name and in order; sets TypeError if
 * not. `last` keeps the tuple of names that was right last time. Usually that tuple is a constant
 * of the calling line, so in a training loop the check is one comparison of pointers. */
static bool names_are_right(Arguments given, const char *const *wanted, Py_ssize_t count,
                            PyObject **last) {
    if (given.num_positional == 0 && given.names && given.names == *last) return true;
    const Py_ssize_t num_named = given.names ? PyTuple_Size(given.names) : 0;
    if (given.num_positional != 0 || num_named != count) {
        PyErr_Format(PyExc_TypeError, "%zd named and %zd unnamed arguments given: %zd named needed",
                     num_named, given.num_positional, count);
        return false;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *name = PyTuple_GetItem(given.names, i);
        if (PyUnicode_CompareWithASCIIString(name, wanted[i]) != 0) {
            PyErr_Format(PyExc_TypeError, "argument %zd is %R: %s needed", i, name, wanted[i]);
            return false;
        }
    }
    PyObject *before = *last;
    Py_INCREF(given.names);
    *last = given.names;
    Py_XDECREF(before);
    return true;
}

/* Defines the struct Type with a field per argument of LIST, and read_Type, which fills it from a
 * call. It returns false, with an exception set, if the arguments are wrong. */
#define FIELD(kind, name) kind name;
#define NAME(kind, name) #name,
#define READ(kind, name) arguments->name = read_##kind(*value++);
#define DEFINE_ARGUMENTS(Type, LIST)                                                           \
    typedef struct {                                                                           \
        LIST(FIELD)                                                                            \
    } Type;                                                                                    \
    static bool read_##Type(Type *arguments, Arguments given) {                                \
        static const char *const names[] = {LIST(NAME)};                                       \
        static PyObject *last;                                                                 \
        PyObject *const *value = given.values;                                                 \
        if (!names_are_right(given, names, sizeof names / sizeof *names, &last)) return false; \
        LIST(READ)                                                                             \
        return !PyErr_Occurred();                                                              \
    }

#endif
