"""Totals: exact, and never a mean of means."""

import math
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from sinlstm_dist.metrics import Totals


def test_no_samples_have_no_loss():
    assert math.isnan(Totals().loss)
    assert math.isnan(Totals().accuracy)


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
