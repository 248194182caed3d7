"""Differences of a series, and the values back from them."""

import numpy as np
import pytest

from sinlstm_dist.differences import differences, integrate


@pytest.mark.parametrize(
    ("lag", "expected"), [(0, [1, 4, 9, 16, 25]), (1, [3, 5, 7, 9]), (2, [8, 12, 16]), (4, [24])]
)
def test_differences_are_those_of_the_hand(lag, expected):
    assert differences(np.array([1.0, 4, 9, 16, 25]), lag).tolist() == expected


def test_values_are_those_of_the_hand():
    before = np.array([[10.0, 20], [-1, 1]])
    steps = np.array([[1.0, 2, 3, 4, 5], [0, 1, 0, 1, 0]])
    assert integrate(before, steps).tolist() == [[11, 22, 14, 26, 19], [-1, 2, -1, 3, -1]]


@pytest.mark.parametrize("n", [0, 1, 2, 5, 12, 30])
@pytest.mark.parametrize("length", [1, 4, 12, 25])
def test_the_values_of_differences_are_the_values(n, length):
    """Whole numbers, so that no rounding can hide a step too far."""
    values = np.random.default_rng(n).integers(-1000, 1000, (3, n + length)).astype(np.float64)
    found = integrate(values[:, :n], differences(values, n))
    assert found.tolist() == values[:, n:].tolist()
    assert integrate(values[0, :n], differences(values[0], n)).tolist() == values[0, n:].tolist()


def test_each_value_is_one_rounded_sum():
    """The same sums as a loop that forecasts value after value."""
    random = np.random.default_rng(0)
    before, steps = random.normal(size=7), random.normal(size=50)
    values = [*before]
    for step in steps:
        values.append(values[-7] + step)
    assert integrate(before, steps).tolist() == values[7:]
