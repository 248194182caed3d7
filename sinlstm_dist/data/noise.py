"""Gaussian noise that has the same bits on any CPU, in any batch, on any process.

A number is a pure function of a key, its row and its column. Only operations are used that round
once, in an order that is written down here: numpy's own `log`, `sin` and `cos` follow the CPU. The
compiled kernel computes the same bits (csrc/noise.h).
"""

import numpy as np

from sinlstm_dist import compiled
from sinlstm_dist.philox import philox

_ONE = np.uint64(1)
_SQRT_HALF = 0x3F3504F3  # the bits of sqrt(1/2) as a float32
_LN_2 = 0.693147180559945
# Minimax fits made for this function (Lawson's iteration on 4001 Chebyshev points, 2026-11), from
# the highest power to the lowest. Errors are relative; with rounding, they are at most 1.3 units in
# the last place for the logarithm and the cosine, and 1.7 for the sine.
# log(1 + x) = x - x**2 / 2 + x**3 P(x), sqrt(1/2) <= 1 + x <= sqrt(2): 3.1e-8
_LOG = (
    float.fromhex("0x1.645eb4p-4"), float.fromhex("-0x1.2432bap-3"),
    float.fromhex("0x1.317456p-3"), float.fromhex("-0x1.53824ap-3"),
    float.fromhex("0x1.98d7f2p-3"), float.fromhex("-0x1.000382p-2"),
    float.fromhex("0x1.5556d8p-2"),
)  # fmt: skip
# sin(2 pi x) = x P(x**2), |x| <= 1/8: 3.2e-9
_SINE = (
    float.fromhex("-0x1.2d9302p+6"), float.fromhex("0x1.465e92p+6"),
    float.fromhex("-0x1.4abbbap+5"), float.fromhex("0x1.921fb6p+2"),
)  # fmt: skip
# cos(2 pi x) = 1 + x**2 P(x**2), |x| <= 1/8: 6.4e-11
_COSINE = (
    float.fromhex("0x1.d9d57ep+5"), float.fromhex("-0x1.55c5e0p+6"),
    float.fromhex("0x1.03c1dep+6"), float.fromhex("-0x1.3bd3ccp+4"),
)  # fmt: skip


def add_noise(
    values: np.ndarray, *, key: tuple[int, int], rows: np.ndarray, deviation: float
) -> None:
    """Add Gaussian noise to values, in place.

    Args:
        values: (..., W) float32, contiguous.
        key: two numbers, 0 to 2**32 - 1.
        rows: (...) int64, not negative: a number for each row of values.
        deviation: standard deviation.
    """
    columns = values.shape[-1]
    if compiled.missing():
        values += np.float32(deviation) * gaussian(key=key, rows=rows, columns=columns)
        return
    if values.dtype != np.float32 or not values.flags.c_contiguous:
        raise ValueError(
            f"values are {values.dtype} of strides {values.strides}: contiguous float32 needed"
        )
    rows = np.ascontiguousarray(np.broadcast_to(rows, values.shape[:-1]), dtype=np.int64)
    compiled.kernel().add_noise(
        values=values.ctypes.data,
        rows=rows.ctypes.data,
        num_rows=rows.size,
        columns=columns,
        seed=key[0],
        stream=key[1],
        deviation=deviation,
    )


def gaussian(*, key: tuple[int, int], rows: np.ndarray, columns: int) -> np.ndarray:
    """Standard normal numbers that depend only on (key, row, column).

    Args:
        key: two numbers, 0 to 2**32 - 1.
        rows: any shape of int64, not negative.
        columns: numbers in each row.

    Returns:
        float32 of shape (*rows.shape, columns), -6.6 to 6.6.

    Source: Box and Muller 1958, on the counter-based generator Philox4x32-10.
    """
    blocks = np.arange(-(-columns // 4))  # one block of the generator makes four numbers
    rows = np.asarray(rows)[..., None]
    words = philox(rows, blocks, key=key)
    pairs = np.stack((*_pair(*words[:2]), *_pair(*words[2:])), -1)  # (..., blocks, 4)
    return pairs.reshape(*pairs.shape[:-2], 4 * len(blocks))[..., :columns]


def _pair(radius: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two normal numbers from two words of 32 bits.

    The upper 31 bits of the first word are a uniform number that is not 0. The lowest bits of the
    other word choose a quarter of the circle, its upper 30 bits the angle in that quarter.
    """
    uniform = ((radius >> _ONE) | _ONE).astype(np.float32)  # times 2**-31
    length = np.sqrt(_log_of_square(uniform))
    quarter = angle.astype(np.uint32).view(np.int32)
    cosine, sine = _circle((quarter >> 2).astype(np.float32) * np.float32(2.0**-32))
    length = np.where(quarter & 2, -length, length)
    first, second = length * cosine, length * sine
    return np.where(quarter & 1, second, first), np.where(quarter & 1, first, second)


def _log_of_square(numbers: np.ndarray) -> np.ndarray:
    """-2 log(n / 2**31) for float32 n, 1 to 2**31."""
    bits = numbers.view(np.int32)
    exponent = (bits - _SQRT_HALF) >> 23
    x = (bits - (exponent << 23)).view(np.float32) - 1  # sqrt(1/2) - 1 to sqrt(2) - 1, exact
    log = (_polynomial(_LOG, x) * x - 0.5) * (x * x) + x
    return ((exponent - 31).astype(np.float32) * _LN_2 + log) * -2


def _circle(turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of angles from -1/8 to 1/8 turn, float32."""
    square = turns * turns
    return _polynomial(_COSINE, square) * square + 1, _polynomial(_SINE, square) * turns


def _polynomial(coefficients: tuple[float, ...], x: np.ndarray) -> np.ndarray:
    """The value at x, float32, by Horner's rule; each operation rounds once."""
    value = coefficients[0] * x + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * x + coefficient
    return value
