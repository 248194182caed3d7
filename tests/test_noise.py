"""The noise: its generator, its functions, its distribution, and the same bits from the kernel."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lstm_cases import instruction_sets, run_python, using

from sinlstm_dist.data.noise import _circle, _log_of_square, add_noise, gaussian
from sinlstm_dist.philox import philox

KEYS = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
ROWS = st.lists(st.integers(0, 2**62), min_size=0, max_size=40)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0,) * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_against_the_published_vectors(counter, key, expected):
    """Source: the known-answer tests of Random123, for philox4x32-10."""
    low, high = (np.uint64(counter[n] + (counter[n + 1] << 32)) for n in (0, 2))
    words = philox(low, high, key=key)
    assert " ".join(f"{int(word):08x}" for word in words) == expected


def box_and_muller(radius: int, angle: int) -> list[float]:
    """The two numbers of two words, in float64."""
    length = math.sqrt(-2 * math.log(float(np.float32(radius >> 1 | 1)) / 2**31))
    quarter = angle - 2**32 * (angle >> 31)
    turns = (quarter >> 2) / 2**32  # -1/8 to 1/8
    numbers = [length * math.cos(2 * math.pi * turns), length * math.sin(2 * math.pi * turns)]
    if quarter & 2:
        numbers = [-number for number in numbers]
    return numbers[::-1] if quarter & 1 else numbers


def test_gaussian_is_box_and_muller_of_the_generators_words():
    row, key = 2**33 + 5, (3, 1)
    for block in range(50):
        words = [int(word) for word in philox(row, block, key=key)]
        expected = box_and_muller(*words[:2]) + box_and_muller(*words[2:])
        numbers = gaussian(key=key, rows=np.array(row), columns=4 * block + 4)
        assert numbers[-4:].tolist() == pytest.approx(expected, rel=4e-7)


# Accuracy


def units(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest error in units of float32's last place; `expected` is exact."""
    assert (found.dtype, expected.dtype) == (np.float32, np.float64)
    place = np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    return float((np.abs(found - expected) / place).max())


def test_the_logarithm_is_accurate():
    near_the_end = 2.0**31 - 128 * np.arange(200_000)  # where it is close to 0
    anywhere = np.random.default_rng(0).integers(1, 2**31, 200_000)
    powers = np.array([2.0**n + k for n in range(8, 32) for k in (-1, 0, 1)])
    numbers = np.concatenate((near_the_end, anywhere, powers)).astype(np.float32)
    numbers = numbers[numbers < 2**31]
    expected = -2 * np.log1p((numbers.astype(np.float64) - 2**31) / 2**31)
    assert units(_log_of_square(numbers), expected) < 1.5
    assert _log_of_square(np.array([2**31], np.float32)) == 0


def test_sine_and_cosine_are_accurate():
    turns = (np.arange(-(2**29), 2**29, 2999) * 2.0**-32).astype(np.float32)
    small = np.float32(2.0**-32) * np.arange(-5000, 5001, dtype=np.float32)
    turns = np.concatenate((turns, small))
    angles = 2 * math.pi * turns.astype(np.float64)
    cosine, sine = _circle(turns)
    assert units(cosine, np.cos(angles)) < 1.5
    assert units(sine[turns != 0], np.sin(angles[turns != 0])) < 2
    assert (sine[turns == 0] == 0).all()


# The same bits from the kernel


@pytest.mark.kernel
@instruction_sets
@settings(deadline=None, max_examples=100)
@given(
    key=KEYS,
    rows=ROWS,
    columns=st.integers(1, 70),
    deviation=st.floats(0, 2.0**100, width=32),
    seed=st.integers(0, 100),
)
@example(key=(3, 1), rows=list(range(2000)), columns=50, deviation=0.02, seed=0)
@example(key=(3, 1), rows=[7], columns=50, deviation=1e-40, seed=0)  # subnormal numbers
def test_the_kernels_noise_is_its_definition(instruction_set, key, rows, columns, deviation, seed):
    values = np.random.default_rng(seed).standard_normal((len(rows), columns), np.float32)
    rows = np.array(rows, np.int64)
    expected = values + np.float32(deviation) * gaussian(key=key, rows=rows, columns=columns)
    with using(instruction_set):
        add_noise(values, key=key, rows=rows, deviation=deviation)
    assert np.array_equal(values.view(np.uint32), expected.view(np.uint32))


@pytest.mark.kernel
@instruction_sets
def test_the_kernels_noise_of_millions_is_its_definition(instruction_set):
    """Among so many are the rare ones: both ends of the logarithm, and every quarter's ends."""
    rows = np.arange(80_000) * 2**43
    numbers = np.zeros((len(rows), 40), np.float32)
    with using(instruction_set):
        add_noise(numbers, key=(0, 1), rows=rows, deviation=1.0)
    assert np.array_equal(numbers, gaussian(key=(0, 1), rows=rows, columns=40))
    assert abs(numbers).max() > 5


@pytest.mark.kernel
def test_noise_of_other_shapes():
    one, many = np.zeros(7, np.float32), np.zeros((2, 3, 7), np.float32)
    add_noise(one, key=(1, 2), rows=np.int64(4), deviation=1.0)
    add_noise(many, key=(1, 2), rows=np.arange(6).reshape(2, 3), deviation=1.0)
    assert np.array_equal(many[1, 1], one)
    with pytest.raises(ValueError, match="contiguous float32 needed"):
        add_noise(many[..., ::2], key=(1, 2), rows=np.arange(6).reshape(2, 3), deviation=1.0)
    with pytest.raises(ValueError, match="contiguous float32 needed"):
        add_noise(one.astype(np.float64), key=(1, 2), rows=np.int64(4), deviation=1.0)
    with pytest.raises(ValueError, match="broadcast"):
        add_noise(many, key=(1, 2), rows=np.arange(5), deviation=1.0)


@pytest.mark.kernel
def test_noise_and_order_are_the_same_without_the_kernel():
    script = """
import hashlib, sys
if sys.argv[1:]:
    sys.modules["sinlstm_dist._kernel"] = None  # its import fails
import numpy as np
from sinlstm_dist import compiled
from sinlstm_dist.data.sine import SineDataset
from sinlstm_dist.plan import epoch_order
assert bool(sys.argv[1:]) == bool(compiled.missing())
order = epoch_order(seed=3, epoch=1, size=3000)
windows, _ = SineDataset(size=3000, noise=0.02)[order]
print(hashlib.sha256(windows.numpy().tobytes() + order.tobytes()).hexdigest())
"""
    kernel = run_python(script)
    without = run_python(f"import sys; sys.argv = ['', 'without']{script}")
    assert (kernel.returncode, without.returncode) == (0, 0), kernel.stderr + without.stderr
    assert kernel.stdout == without.stdout


# Distribution and independence


@settings(deadline=None, max_examples=50)
@given(key=KEYS, rows=ROWS, columns=st.integers(1, 13))
def test_noise_of_a_row_is_the_same_in_any_company(key, rows, columns):
    together = gaussian(key=key, rows=np.array(rows, np.int64), columns=columns)
    assert together.shape == (len(rows), columns)
    for row, values in zip(rows, together, strict=True):
        assert np.array_equal(gaussian(key=key, rows=np.array(row), columns=columns), values)
    longer = gaussian(key=key, rows=np.array(rows, np.int64), columns=columns + 5)
    assert np.array_equal(longer[:, :columns], together)  # whatever its row's end is


def test_noise_is_standard_normal():
    numbers = gaussian(key=(0, 0), rows=np.arange(20_000), columns=50).astype(np.float64)
    n = numbers.size  # a million; the bounds are five standard errors
    assert abs(numbers.mean()) < 5 / math.sqrt(n)
    assert abs(numbers.std() - 1) < 5 / math.sqrt(2 * n)
    assert abs((numbers**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((numbers**4).mean() - 3) < 5 * math.sqrt(96 / n)
    ordered = np.sort(numbers.ravel())
    normal = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in ordered[::1000]])
    distance = np.abs(normal - np.arange(0, n, 1000) / n).max()
    assert distance < 2.2 / math.sqrt(n)  # Kolmogorov and Smirnov, p < 1e-4


def test_noise_is_uncorrelated_between_columns_rows_seeds_and_streams():
    def draw(seed: int, stream: int) -> np.ndarray:
        return gaussian(key=(seed, stream), rows=np.arange(4000), columns=10)

    numbers = draw(0, 0)
    pairs = {
        "neighbouring columns": (numbers[:, :-1], numbers[:, 1:]),
        "the two of a pair": (numbers[:, 0:8:2], numbers[:, 1:8:2]),
        "neighbouring rows": (numbers[:-1], numbers[1:]),
        "streams": (numbers, draw(0, 1)),
        "seeds": (numbers, draw(1, 0)),
        "seed and stream exchanged": (draw(0, 1), draw(1, 0)),
    }
    for name, (some, others) in pairs.items():
        for power in (1, 2):  # squares too: numbers of one radius are uncorrelated, not independent
            correlation = np.corrcoef(some.ravel() ** power, others.ravel() ** power)[0, 1]
            assert abs(correlation) < 5 / math.sqrt(some.size), name
