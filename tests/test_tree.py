"""Sums along the fixed tree: whole, in subtrees, and shared out among processes."""

import numpy as np
import pytest
import torch
from peers import Peer, Threads

from sinlstm_dist.plan import Plan
from sinlstm_dist.reduction import Gathered, SharedOut, new_reduction
from sinlstm_dist.tree import TreeSum, subtrees, tree_sum


def rows_of(num_rows: int, width: int = 7) -> torch.Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(num_rows))


def shared_sums(rows: torch.Tensor, size: int, *, make=SharedOut, **keywords) -> tuple[list, int]:
    """The total that each of `size` processes finds, and the number of collectives."""
    threads = Threads(size)

    def work(peer: Peer) -> np.ndarray:
        plan = Plan(len(rows), len(rows), len(rows), size, peer.rank)
        reduction = make(plan, peer, width=rows.shape[1], **keywords)
        own = rows[plan.owned(peer.rank).start : plan.owned(peer.rank).stop]
        for _ in range(2):  # the second step must not see the first
            for some in reduction.groups():
                reduction.rows[: len(own[some])] = own[some]
            total = np.array(reduction.total())
        return total

    return threads.run(work), threads.collectives // 2


@pytest.mark.parametrize(
    ("num_rows", "order"),
    [
        (1, 0),
        (2, (0, 1)),
        (3, ((0, 1), 2)),
        (4, ((0, 1), (2, 3))),
        (5, (((0, 1), (2, 3)), 4)),
        (6, (((0, 1), (2, 3)), (4, 5))),
        (7, (((0, 1), (2, 3)), ((4, 5), 6))),
    ],
)
def test_tree_sum_adds_neighbours_first(num_rows, order):
    rows = torch.randn(num_rows, 1000, generator=torch.Generator().manual_seed(0))

    def add(order):
        return rows[order] if isinstance(order, int) else add(order[0]) + add(order[1])

    assert torch.equal(tree_sum(rows), add(order))
    assert tree_sum(rows.numpy()).tolist() == add(order).tolist()
    if num_rows > 3:  # this many float32 numbers tell one order of adding from another
        assert not torch.equal(add(order), sum(rows))


@pytest.mark.parametrize("num_rows", range(1, 34))
def test_the_shared_out_tree_is_the_plain_tree(num_rows):
    rows = rows_of(num_rows)
    expected = tree_sum(rows.numpy())
    for size in range(1, num_rows + 1):
        for at_once in (1, 2, 3, None):
            totals, _ = shared_sums(rows, size, at_once=at_once)
            assert all(total.tobytes() == expected.tobytes() for total in totals), size
        totals, _ = shared_sums(rows, size, make=Gathered)
        assert all(total.tobytes() == expected.tobytes() for total in totals), size


def holds(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one != other and one[0] <= other[0] and other[1] <= one[1]


@pytest.mark.parametrize("num_pieces", range(1, 34))
def test_subtrees_are_whole_and_largest(num_pieces):
    nodes, width = set(), 1
    while width < 2 * num_pieces:
        nodes |= {(f, min(f + width, num_pieces)) for f in range(0, num_pieces, width)}
        width *= 2
    for first in range(num_pieces):
        for stop in range(first + 1, num_pieces + 1):
            found = [(part.start, part.stop) for part in subtrees(range(first, stop), num_pieces)]
            inside = [node for node in nodes if first <= node[0] and node[1] <= stop]
            largest = [node for node in inside if not any(holds(other, node) for other in inside)]
            assert found == sorted(largest)


def test_another_order_gives_other_bits():
    """The comparison of bits above would see it."""
    rows = rows_of(8, width=1000).numpy()
    one_after_the_other = rows[0].copy()
    for row in rows[1:]:
        one_after_the_other += row
    assert one_after_the_other.tobytes() != tree_sum(rows).tobytes()


@pytest.mark.parametrize(("make", "size", "collectives"), [(SharedOut, 3, 2), (Gathered, 3, 1)])
def test_collectives_per_step(make, size, collectives):
    keywords = {"at_once": 1} if make is SharedOut else {}
    assert shared_sums(rows_of(8), size, make=make, **keywords)[1] == collectives


@pytest.mark.parametrize(
    ("num_pieces", "size", "width", "expected"),
    [
        (8, 2, 170, Gathered),  # the built-in model: one small message
        (8, 1, 1_000_000, SharedOut),
        (8, 2, 1_000_000, SharedOut),
        (8, 3, 1_000_000, SharedOut),
        (8, 8, 1_000_000, SharedOut),
        (2, 2, 1_000_000, SharedOut),
    ],
)
def test_small_rows_are_gathered_and_large_ones_shared_out(num_pieces, size, width, expected):
    plan = Plan(num_pieces, num_pieces, num_pieces, size, 0)
    peer = Peer(Threads(size), 0)
    assert type(new_reduction(plan, peer, width=width, at_once=1)) is expected


@pytest.mark.parametrize("num_pieces", [1, 8, 33, 1024])
def test_few_sums_wait_at_a_time(num_pieces):
    tree, most = TreeSum(num_pieces), 0
    for piece, row in enumerate(rows_of(num_pieces)):
        tree.add(range(piece, piece + 1), row)
        most = max(most, len(tree._sums))
    assert most <= max(1, num_pieces.bit_length())
    assert len(tree.take()) == 1
