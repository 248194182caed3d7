"""Which samples make a step and whose they are: against shares written by hand, and as rules."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinlstm_dist.plan import Plan, bounds, epoch_order, in_order

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
    assert [plans[0].share(0, rank) for rank in range(world_size)] == shares


def test_shares_of_the_last_partial_batch_by_hand():
    plans = [Plan(103, 100, 8, 3, rank) for rank in range(3)]
    assert plans[0].num_steps == 2
    assert [plans[0].num_samples(step) for step in (0, 1)] == [100, 3]
    assert [plan.piece_sizes(1) for plan in plans] == [[1, 1, 1], [0, 0, 0], [0, 0]]
    assert [plans[0].share(1, rank) for rank in range(3)] == [(100, 103), (103, 103), (103, 103)]


def test_a_data_set_smaller_than_the_world_by_hand():
    plans = [Plan(1, 100, 8, 3, rank) for rank in range(3)]
    assert plans[0].num_steps == 1
    assert [sum(plan.piece_sizes(0)) for plan in plans] == [1, 0, 0]


@settings(deadline=None)
@given(SIZES, BATCHES, PIECES, st.data())
def test_every_sample_is_owned_once(size, batch, pieces, data):
    world_size = data.draw(st.integers(1, pieces))
    plan = Plan(size, batch, pieces, world_size)
    seen = []
    for step in range(plan.num_steps):
        for rank in range(world_size):
            start, stop = plan.share(step, rank)
            seen += range(start, stop)
            own = Plan(size, batch, pieces, world_size, rank).piece_sizes(step)
            assert sum(own) == stop - start
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
    "permutation": [8, 4, 7, 0, 1, 2, 5, 9, 6, 3],
    "replacement": [4, 5, 7, 9, 0, 1, 8, 9, 2, 3],
}


def test_test_windows_are_taken_as_they_lie():
    assert in_order(4).tolist() == [0, 1, 2, 3]
