"""Totals: exact, and never a mean of means."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sinlstm_dist.metrics import NUM_TOTALS, Totals
from sinlstm_dist.reduction import count


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None]


def test_count_by_hand():
    totals = count(column(1.0, 2.0, 3.0), column(1.0, 2.5, 5.0), tolerance=0.6)
    assert totals.tolist() == [4.25, 2.0, 3.0]
    assert len(totals) == NUM_TOTALS


def test_an_error_of_just_the_tolerance_is_not_correct():
    below, at = math.nextafter(0.5, 0), 0.5
    assert count(column(0.5), column(0.0), tolerance=at)[1] == 0
    assert count(column(-0.5), column(0.0), tolerance=at)[1] == 0
    assert count(column(-0.25), column(0.0), tolerance=below)[1] == 1


def test_nan_is_not_correct():
    totals = count(column(math.nan, 0.0), column(0.0, 0.0), tolerance=0.1)
    assert totals[1:].tolist() == [1.0, 2.0]
    assert not Totals(totals[0].item(), 1, 2).is_finite


def test_no_samples_count_nothing():
    assert count(torch.empty(0, 1), torch.empty(0, 1), tolerance=0.1).tolist() == [0, 0, 0]
    assert math.isnan(Totals().loss)
    assert math.isnan(Totals().accuracy)


def test_squared_error_is_differentiable():
    predictions = column(1.0, 3.0).requires_grad_()
    count(predictions, column(0.0, 1.0), tolerance=0.1)[0].backward()
    assert predictions.grad.tolist() == [[2.0], [4.0]]


def test_the_mean_of_parts_is_not_the_mean_of_their_means():
    """The trap: parts of 3 and 1 samples, with means 1 and 5."""
    parts = [
        count(column(1.0, 1.0, 1.0), column(0.0, 0.0, 0.0), tolerance=2.0),
        count(column(math.sqrt(5)), column(0.0), tolerance=2.0),
    ]
    total = sum(
        (Totals(s, int(c), int(n)) for s, c, n in map(torch.Tensor.tolist, parts)), Totals()
    )
    assert total.loss == pytest.approx(2.0)  # (3 * 1 + 5) / 4; the mean of means is 3
    assert total.accuracy == 0.75  # and not (1 + 0) / 2


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 50)), min_size=1, max_size=20))
def test_totals_of_any_cut_are_the_totals_of_the_whole(parts):
    totals = sum((Totals(float(error), n // 2, n) for error, n in parts), Totals())
    samples = sum(n for _, n in parts)
    assert totals.samples == samples
    assert totals.loss == float(Fraction(sum(error for error, _ in parts), samples))
    assert totals.accuracy == float(Fraction(sum(n // 2 for _, n in parts), samples))


def test_infinite_and_nan_losses_are_seen():
    assert Totals(1e300, 0, 1).is_finite
    assert not (Totals(1e300, 0, 1) + Totals(math.inf, 0, 1)).is_finite
    assert not (Totals(0.0, 0, 1) + Totals(math.nan, 0, 1)).is_finite


def test_a_divisor_takes_the_place_of_the_samples():
    """Two batches of sentences: their loss is per token, and padding counts for nothing."""
    total = Totals() + Totals(6.0, 1, 2, divisor=4.0) + Totals(2.0, 5, 2, divisor=12.0)
    assert total == Totals(8.0, 6, 4, divisor=16.0)
    assert (total.loss, total.accuracy) == (0.5, 0.375)
    assert not Totals(0.0, 0, 2, divisor=0.0).is_finite  # nothing but padding


def test_what_counts_no_correct_predictions_has_no_accuracy():
    total = Totals() + Totals(3.0, None, 2) + Totals(1.0, None, 2)
    assert total == Totals(4.0, None, 4)
    assert (total.loss, total.accuracy) == (1.0, None)
    assert (Totals(1.0, None, 1) + Totals(1.0, 1, 1)).accuracy is None
