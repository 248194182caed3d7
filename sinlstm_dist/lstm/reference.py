"""The arithmetic of the predictor, written down in numpy: the same bits as the compiled kernel.

Read this file to learn what the kernel computes, and in which order. `model.lstm = "reference"`
trains with it, slowly, where there is no compiled kernel.

Numbers are float32, held as float64: products are exact there, and `_rounded` rounds each result.
Only operations are used whose last bit IEEE 754 fixes.

Shapes: B samples, W window (time steps), D features of a time step, H hidden size, G parameters,
L lanes: 16 for each block of samples, of which a piece's last block may leave some idle.
"""

from collections.abc import Sequence

import numpy as np
from numpy import ndarray

Tape = list[tuple[ndarray, ...]]  # of each step, what the backward pass of a layer needs

BLOCK_SAMPLES, ITEM_BLOCKS = 16, 8
_TINY = 2.0**-126 - 2.0**-151  # smaller numbers become zero: float32 has no full precision there
_EXTRA_BITS, _HALFWAY = 2**29 - 1, 2**28  # of a float64; theirs halfway between two float32 numbers
_ROUND = 1.5 * 2**23  # in float32, x + _ROUND - _ROUND is the integer nearest to x
_LOG2_E = 1.4426950408889634
# (2^x - 1) / x for |x| <= 1/2, from the highest power to the lowest: the fits of activations.h.
_SIGMOID = (
    float.fromhex("0x1.5bba14p-10"), float.fromhex("0x1.3cea88p-7"),
    float.fromhex("0x1.c6b752p-5"), float.fromhex("0x1.ebf9bcp-3"), float.fromhex("0x1.62e42ap-1"),
)  # fmt: skip
_TANH = (
    float.fromhex("0x1.4308fap-13"), float.fromhex("0x1.5f07b4p-10"),
    float.fromhex("0x1.3b2ba0p-7"), float.fromhex("0x1.c6af6ep-5"),
    float.fromhex("0x1.ebfbdep-3"), float.fromhex("0x1.62e430p-1"),
)  # fmt: skip


@np.errstate(all="ignore")
def predictor_rows(
    *,
    windows: ndarray,
    targets: ndarray,
    piece_sizes: Sequence[int],
    parameters: Sequence[ndarray],
    tolerance: float,
    with_gradient: bool,
) -> ndarray:
    """Gradient and totals of each piece of a batch.

    Args:
        windows: (B, W, D) float32.
        targets: (B, 1) float32.
        piece_sizes: samples in each piece, 0 allowed; their sum is B.
        parameters: as for `lstm.predictor_rows`, float32.
        tolerance: a prediction is correct if |prediction - target| is below it in float32.
        with_gradient: whether to compute the gradient's columns.

    Returns:
        (len(piece_sizes), G + 3 or 3) float32: `lstm.predictor_rows` or `predictor_totals`.
    """
    sizes = np.array(piece_sizes, np.int64)
    num_blocks = -(-sizes // BLOCK_SAMPLES)
    samples, is_used = _lanes(sizes, num_blocks * BLOCK_SAMPLES)
    *recurrence, head_weight, head_bias = [_rounded(p) for p in parameters]
    layers = [recurrence[n : n + 4] for n in range(0, len(recurrence), 4)]
    outputs, tapes = _rounded(windows[samples].transpose(1, 2, 0)), []  # (W, D, L)
    for layer in layers:
        outputs, tape = _forward(_packed(*layer), outputs)
        tapes.append(tape)
    h = outputs[-1]
    error = _add(
        _weighted(head_weight, h, first=head_bias), -_rounded(targets[samples].T)
    )  # (1, L)
    sums = [_mul(error, error), np.abs(error) < _rounded(np.float32(tolerance))]
    if with_gradient:
        slope = _add(error, error)
        gradient = _backward_layers(tapes, layers, dh=_mul(slope, head_weight.T))
        sums = [*gradient, _mul(slope, h), slope, *sums]
    blocks = np.where(is_used, np.concatenate(sums), 0.0)  # (columns, L)
    blocks = blocks.reshape(len(blocks), sum(num_blocks), BLOCK_SAMPLES)
    pieces = np.split(blocks, np.cumsum(num_blocks), axis=1)[:-1]
    rows = [[*_piece_sum(piece), size] for piece, size in zip(pieces, sizes, strict=True)]
    return np.array(rows, np.float32).reshape(len(sizes), len(blocks) + 1)


def _lanes(sizes: ndarray, num_lanes: ndarray) -> tuple[ndarray, ndarray]:
    """The sample in each lane, and whether the lane is used; an idle one repeats some sample."""
    piece = np.repeat(np.arange(len(sizes)), num_lanes)
    place = np.arange(len(piece)) - (np.cumsum(num_lanes) - num_lanes)[piece]  # in its piece
    is_used = place < sizes[piece]
    return np.where(is_used, (np.cumsum(sizes) - sizes)[piece] + place, 0), is_used


def _packed(weight_ih: ndarray, weight_hh: ndarray, bias_ih: ndarray, bias_hh: ndarray) -> ndarray:
    """Bias and weights, scaled so that gates are exponents of 2: (4H, 1 + D + H)"""
    scale = np.array([-_LOG2_E, -_LOG2_E, 2 * _LOG2_E, -_LOG2_E])  # gates i, f, g, o
    weights = np.column_stack([bias_ih + bias_hh, weight_ih, weight_hh])
    return _rounded(np.repeat(scale, len(weights) // 4)[:, None] * weights)


def _forward(packed: ndarray, x: ndarray) -> tuple[ndarray, Tape]:
    """One layer: its hidden states (W, H, L), and of each step what `_backward` needs."""
    h = c = np.zeros((len(packed) // 4, x.shape[2]))
    outputs: list[ndarray] = []
    tape: Tape = []
    for inputs in x:
        columns = np.concatenate([inputs, h])  # (D + H, L)
        gates = _weighted(packed[:, 1:], columns, first=packed[:, :1]).reshape(4, *h.shape)
        (i, f, o), g = _sigmoid(gates[[0, 1, 3]]), _tanh(gates[2])
        before, c = c, _fma(f, c, _mul(i, g))
        tanh_c = _tanh(_mul(c, np.float32(2 * _LOG2_E)))
        h = _mul(o, tanh_c)
        outputs.append(h)
        tape.append((columns, before, i, f, g, o, tanh_c))
    return np.stack(outputs), tape


def _backward_layers(tapes: list[Tape], layers: list[list[ndarray]], dh: ndarray) -> list[ndarray]:
    """Each lane's gradients of all layers' parameters.

    Args:
        dh: gradient of the highest layer's last hidden state (H, L).
    """
    gradient: list[ndarray] = []
    doutputs = None
    for tape, (weight_ih, weight_hh, *_) in zip(reversed(tapes), reversed(layers), strict=True):
        of_layer, dgates = _backward(tape, weight_hh, dh, doutputs)
        gradient = [*of_layer, *gradient]
        if tape is not tapes[0]:  # for the layer below
            dh, doutputs = np.zeros_like(dh), [_weighted(weight_ih.T, d, first=0.0) for d in dgates]
    return gradient


def _backward(
    tape: Tape, weight_hh: ndarray, dh: ndarray, doutputs: list[ndarray] | None
) -> tuple[list[ndarray], list[ndarray]]:
    """One layer: each lane's gradients of weight_ih (4HD, L), weight_hh (4HH, L) and both biases
    (4H, L); and of each step's gates (4H, L).

    Args:
        tape: from `_forward`.
        dh: gradient of the last hidden state (H, L).
        doutputs: of each step's hidden state (H, L), through the layer above; None if this one is
            the highest.
    """
    H, L = dh.shape
    D = len(tape[0][0]) - H
    dc, bias, weights = np.zeros((H, L)), np.zeros((4 * H, L)), np.zeros((4 * H, D + H, L))
    of_gates: list[ndarray] = []  # from the last step to the first
    for t in reversed(range(len(tape))):
        columns, before, i, f, g, o, tanh_c = tape[t]
        if doutputs is not None:
            dh = _add(dh, doutputs[t])
        dh_o = _mul(dh, o)
        dh_o_t = _mul(dh_o, tanh_c)
        dc = _fma(-dh_o_t, tanh_c, _add(dc, dh_o))  # w - (w t) t for w (1 - t^2): as exact
        dc_i = _mul(dc, i)
        dc_i_g = _mul(dc_i, g)
        dc = _mul(dc, f)
        dgates = np.concatenate([
            _mul(dc_i_g, _add(1, -i)), _mul(_mul(dc, before), _add(1, -f)),
            _fma(-dc_i_g, g, dc_i), _mul(dh_o_t, _add(1, -o)),
        ])  # fmt: skip
        dh = _weighted(weight_hh.T, dgates, first=0.0)
        of_gates.append(dgates)
        weights = _fma(dgates[:, None], columns, weights)
        bias = _add(bias, dgates)
    inputs, hidden = weights[:, :D].reshape(4 * H * D, L), weights[:, D:].reshape(4 * H * H, L)
    return [inputs, hidden, bias, bias], of_gates[::-1]


def _piece_sum(blocks: ndarray) -> ndarray:
    """(columns, blocks, 16) to (columns,): items of 8 blocks; in each the blocks, then a tree."""
    total = np.zeros(len(blocks))
    for first in range(0, blocks.shape[1], ITEM_BLOCKS):
        lanes = np.zeros((len(blocks), BLOCK_SAMPLES))
        for block in range(first, min(first + ITEM_BLOCKS, blocks.shape[1])):
            lanes = _add(lanes, blocks[:, block])
        while lanes.shape[1] > 1:
            lanes = _add(*np.split(lanes, 2, axis=1))
        total = _add(total, lanes[:, 0]) if first else lanes[:, 0]
    return total


def _weighted(weights: ndarray, columns: ndarray, first: ndarray | float) -> ndarray:
    """weights (M, N) times columns (N, L), added to `first` in the order of N: (M, L)"""
    total = first
    for weight, column in zip(weights.T, columns, strict=True):
        total = _fma(weight[:, None], column, total)
    return np.asarray(total)


def _sigmoid(y: ndarray) -> ndarray:
    """1 / (1 + 2^y)"""
    scale, rest = _power_of_2(y, _SIGMOID)
    return _rounded(1 / _fma(scale, rest, _add(1, scale)))


def _tanh(y: ndarray) -> ndarray:
    """(2^y - 1) / (2^y + 1)"""
    scale, rest = _power_of_2(y, _TANH)
    return _rounded(_fma(scale, rest, _add(scale, -1)) / _fma(scale, rest, _add(scale, 1)))


def _power_of_2(y: ndarray, coefficients: Sequence[float]) -> tuple[ndarray, ndarray]:
    """2^y as scale, a power of 2, and rest: scale + scale * rest. The sum would lose a small y."""
    y = np.clip(y, -126.0, np.float32(127.49))
    exponent = _add(_add(y, _ROUND), -_ROUND)
    x = _add(y, -exponent)
    rest = _fma(coefficients[0], x, coefficients[1])
    for coefficient in coefficients[2:]:
        rest = _fma(rest, x, coefficient)
    return np.ldexp(1.0, exponent.astype(np.int32)), _mul(rest, x)


def _add(a: ndarray | float, b: ndarray | float) -> ndarray:
    return _rounded(np.add(a, b))


def _mul(a: ndarray, b: ndarray | np.float32) -> ndarray:
    return _rounded(a * b)


def _fma(a: ndarray | float, b: ndarray, c: ndarray | float) -> ndarray:
    """a * b + c, rounded once.

    The float64 sum is rounded too. That matters only where it lies halfway between two float32
    numbers and is not the exact sum: there it moves by one bit towards the exact sum.
    """
    product = a * b
    total = np.asarray(product + c)
    is_halfway = (total.view(np.int64) & _EXTRA_BITS) == _HALFWAY
    if is_halfway.any():
        added = total - product
        error = (product - (total - added)) + (c - added)  # exact sum - total, without error
        moved = np.nextafter(total, np.copysign(np.inf, error))
        total = np.where(is_halfway & (error != 0), moved, total)
    return _rounded(total)


def _rounded(x: ndarray | np.float32) -> ndarray:
    """The nearest float32; zero, with the sign of x, for what would be subnormal."""
    x = np.asarray(x, np.float64)
    return (x * (np.abs(x) >= _TINY)).astype(np.float32).astype(np.float64)
