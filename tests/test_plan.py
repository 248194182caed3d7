"""Which samples make a step and whose they are: against shares written by hand, and as rules."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lstm_cases import instruction_sets, using

from sinlstm_dist.plan import (
    Plan,
    _shuffle,
    _shuffle_by_numpy,
    bounds,
    epoch_order,
    in_order,
    indices_at,
)

SIZES, BATCHES, PIECES = st.integers(1, 300), st.integers(1, 120), st.integers(1, 12)


@pytest.mark.parametrize(
    ("total", "parts", "expected"),
    [
        (10, 4, [0, 3, 6, 8, 10]),
        (8, 4, [0, 2, 4, 6, 8]),
        (2, 3, [0, 1, 2, 2]),
        (0, 2, [0, 0, 0]),
        (7, 1, [0, 7]),
    ],
)
def test_bounds_by_hand(total, parts, expected):
    assert bounds(total, parts) == tuple(expected)


@pytest.mark.parametrize(
    ("world_size", "owned", "sizes", "shares"),
    [
        (1, [range(8)], [[13, 13, 13, 13, 12, 12, 12, 12]], [(0, 100)]),
        (2, [range(4), range(4, 8)], [[13, 13, 13, 13], [12, 12, 12, 12]], [(0, 52), (52, 100)]),
        (
            3,
            [range(3), range(3, 6), range(6, 8)],
            [[13, 13, 13], [13, 12, 12], [12, 12]],
            [(0, 39), (39, 76), (76, 100)],
        ),
    ],
)
def test_shares_of_a_full_batch_by_hand(world_size, owned, sizes, shares):
    plans = [Plan(250, 100, 8, world_size, rank) for rank in range(world_size)]
    assert [plan.owned(rank) for rank, plan in enumerate(plans)] == owned
    assert [plan.piece_sizes(0) for plan in plans] == sizes
    assert [plan.piece_sizes(1) for plan in plans] == sizes
    assert [plan.span(0) for plan in plans] == shares


def test_shares_of_the_last_partial_batch_by_hand():
    plans = [Plan(103, 100, 8, 3, rank) for rank in range(3)]
    assert plans[0].num_steps == 2
    assert [plans[0].num_samples(step) for step in (0, 1)] == [100, 3]
    assert [plan.piece_sizes(1) for plan in plans] == [[1, 1, 1], [0, 0, 0], [0, 0]]
    assert [plan.span(1) for plan in plans] == [(100, 103), (103, 103), (103, 103)]


def test_a_data_set_smaller_than_the_world_by_hand():
    plans = [Plan(1, 100, 8, 3, rank) for rank in range(3)]
    assert plans[0].num_steps == 1
    assert [sum(plan.piece_sizes(0)) for plan in plans] == [1, 0, 0]


@settings(deadline=None)
@given(SIZES, BATCHES, PIECES, st.data())
def test_every_sample_is_owned_once(size, batch, pieces, data):
    world_size = data.draw(st.integers(1, pieces))
    plans = [Plan(size, batch, pieces, world_size, rank) for rank in range(world_size)]
    seen = []
    for step in range(plans[0].num_steps):
        for plan in plans:
            start, stop = plan.span(step)
            seen += range(start, stop)
            assert sum(plan.piece_sizes(step)) == stop - start
    assert seen == list(range(size))


@settings(deadline=None)
@given(SIZES, BATCHES, PIECES, st.data())
def test_pieces_do_not_depend_on_the_number_of_processes(size, batch, pieces, data):
    alone = Plan(size, batch, pieces)
    world_size = data.draw(st.integers(1, pieces))
    for step in range(alone.num_steps):
        shared = [
            piece
            for rank in range(world_size)
            for piece in Plan(size, batch, pieces, world_size, rank).piece_sizes(step)
        ]
        assert shared == alone.piece_sizes(step)
        assert max(shared) - min(shared) <= 1


ORDERS = {"seed": st.integers(0, 2**32 - 1), "epoch": st.integers(0, 10**6)}


@given(size=st.integers(1, 500), **ORDERS)
def test_permutation_has_each_sample_once(seed, epoch, size):
    order = epoch_order(seed=seed, epoch=epoch, size=size)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(size))


# The shuffle


def keys_of_many(count: int) -> np.ndarray:
    """(count, 16) keys of 32 bits."""
    return np.random.default_rng(0).integers(0, 2**32, (count, 16), dtype=np.uint64)


@pytest.mark.kernel
@instruction_sets
@settings(deadline=None, max_examples=200)
@given(size=st.one_of(st.integers(1, 200), st.integers(1, 2**40)), seed=st.integers(0, 2**32))
@example(size=2**62, seed=0)
def test_the_kernels_shuffle_is_its_definition(instruction_set, size, seed):
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 2**32, 16, dtype=np.uint64)
    positions = rng.integers(0, size, rng.integers(0, 100))
    with using(instruction_set):
        assert np.array_equal(
            _shuffle(positions, keys=keys, size=size),
            _shuffle_by_numpy(positions, keys=keys, size=size),
        )
        if size <= 200:
            everything = np.arange(size)
            order = _shuffle(everything, keys=keys, size=size)
            assert np.array_equal(order, _shuffle_by_numpy(everything, keys=keys, size=size))
            assert sorted(order) == list(range(size))


@given(size=st.integers(1, 10**9), **ORDERS)
def test_indices_at_some_positions_are_those_of_the_whole_order(size, seed, epoch):
    size = size % 3000 + 1
    positions = np.random.default_rng(seed).integers(0, size, 10)
    for sampling in ("permutation", "replacement"):
        numbers = {"seed": seed, "epoch": epoch, "size": size, "sampling": sampling}
        found = indices_at(positions, **numbers)
        assert np.array_equal(found, epoch_order(**numbers)[positions])


def sigmas(orders: np.ndarray, *, outcomes: int) -> float:
    """How far the counts of equally likely outcomes are from equal, as chi2's deviations."""
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    expected = len(orders) / outcomes
    missing = outcomes - len(counts)
    chi2 = (((counts - expected) ** 2).sum() + missing * expected**2) / expected
    return float((chi2 - (outcomes - 1)) / math.sqrt(2 * (outcomes - 1)))


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_all_orders_of_few_samples_are_equally_frequent(size):
    outcomes = math.factorial(size)
    keys = keys_of_many(100 * outcomes)
    orders = np.array([_shuffle(np.arange(size), keys=k, size=size) for k in keys])
    assert sigmas(orders, outcomes=outcomes) < 5


@pytest.mark.parametrize("size", [5, 6])
def test_a_quarter_of_the_rounds_would_be_too_few(size):
    """So the test above sees a shuffle that is not random enough."""
    outcomes = math.factorial(size)
    keys = keys_of_many(10 * outcomes)[:, :4]
    orders = np.array([_shuffle_by_numpy(np.arange(size), keys=k, size=size) for k in keys])
    assert sigmas(orders, outcomes=outcomes) > 20


@pytest.mark.parametrize("positions", [[0, 1], [0, 10], [5, 96], [48, 57]])
def test_any_two_samples_of_many_go_to_any_two_places(positions):
    """In the grid of 10 by 10 the pairs are neighbours in a row, in a column, or in neither."""
    keys = keys_of_many(50_000)
    pairs = np.array([_shuffle(np.array(positions), keys=k, size=97) for k in keys])
    assert sigmas(pairs, outcomes=97 * 96) < 5


@pytest.mark.parametrize("position", [0, 999, 123_456, 999_999])
def test_a_sample_of_a_million_goes_anywhere(position):
    keys = keys_of_many(20_000)
    indices = np.array([_shuffle(np.array([position]), keys=k, size=10**6)[0] for k in keys])
    assert sigmas(indices // 1000, outcomes=1000) < 5  # rows of the grid
    assert sigmas(indices % 1000, outcomes=1000) < 5  # columns


@given(size=st.integers(1, 500), **ORDERS)
def test_replacement_draws_as_many_from_the_whole_data_set(seed, epoch, size):
    order = epoch_order(seed=seed, epoch=epoch, size=size, sampling="replacement")
    assert (order.dtype, order.shape) == (np.int64, (size,))
    assert 0 <= order.min() <= order.max() < size


def test_replacement_draws_with_replacement_and_evenly():
    orders = [epoch_order(seed=1, epoch=e, size=100, sampling="replacement") for e in range(400)]
    # 1 - 1/e = 63.2 % of the samples are drawn at least once; 37 would be 19 sigma away.
    assert np.mean([len(np.unique(order)) for order in orders]) == pytest.approx(63.4, abs=1)
    counts = np.bincount(np.concatenate(orders), minlength=100)  # 400 each, the last one included
    chi2 = ((counts - 400) ** 2 / 400).sum()
    assert chi2 < 99 + 5 * np.sqrt(2 * 99)  # mean and five sigma of chi2 with 99 degrees


@pytest.mark.parametrize("sampling", ["permutation", "replacement"])
def test_order_is_a_pure_function_and_epochs_and_seeds_differ(sampling):
    def order(seed, epoch):
        return epoch_order(seed=seed, epoch=epoch, size=1000, sampling=sampling).tolist()

    first = order(3, 5)
    np.random.seed(1)  # the order must not come from the global generator
    np.random.random(7)
    assert order(3, 5) == first
    others = [order(3, 6), order(4, 5), order(5, 3), order(0, 0), list(range(1000))]
    assert all(other != first for other in others)
    # Independent permutations share one place on average; half of them would be a shifted copy.
    assert np.mean(np.array(order(3, 6)) == np.array(first)) < 0.02


def test_order_stays_what_it_was():
    """A changed order would silently make every saved run another run."""
    assert epoch_order(seed=0, epoch=0, size=10).tolist() == EXPECTED["permutation"]
    assert (
        epoch_order(seed=0, epoch=0, size=10, sampling="replacement").tolist()
        == EXPECTED["replacement"]
    )


EXPECTED = {
    "permutation": [2, 7, 4, 8, 3, 6, 5, 1, 0, 9],
    "replacement": [1, 7, 1, 7, 2, 4, 5, 5, 4, 9],
}


def test_test_windows_are_taken_as_they_lie():
    assert in_order(np.arange(4), epoch=1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("wrong", [{"size": -3}, {"seed": -1}, {"seed": 2**32}, {"epoch": -1}])
@pytest.mark.parametrize("sampling", ["permutation", "replacement"])
def test_an_order_of_impossible_numbers_is_refused(wrong, sampling):
    """A negative size gave an empty order, and seed 2**32 is epoch 1 of seed 0."""
    with pytest.raises(ValueError, match="are needed"):
        epoch_order(**{"seed": 0, "epoch": 0, "size": 5, "sampling": sampling, **wrong})


def test_an_order_takes_numbers_of_numpy():
    found = epoch_order(seed=np.int64(3), epoch=np.int32(1), size=np.int64(9))
    assert found.tolist() == epoch_order(seed=3, epoch=1, size=9).tolist()
