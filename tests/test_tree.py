"""Sums along the fixed tree: whole, in subtrees, and shared out among processes."""

import threading

import numpy as np
import pytest
import torch

from sinlstm_dist.plan import Plan
from sinlstm_dist.reduction import Gathered, SharedOut, new_reduction
from sinlstm_dist.tree import TreeSum, subtrees, tree_sum


def rows_of(num_rows: int, width: int = 7) -> torch.Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(num_rows))


class Threads:
    """Processes that are threads of this one: what each sends, the others read."""

    def __init__(self, size: int) -> None:
        self.size, self._sent = size, [torch.empty(0)] * size
        self._barrier = threading.Barrier(size, timeout=60)
        self.collectives = 0

    def _share(self, rank: int, rows: torch.Tensor) -> list[torch.Tensor]:
        self._sent[rank] = rows
        self._barrier.wait()
        everyones = [sent.clone() for sent in self._sent]
        self._barrier.wait()
        self.collectives += rank == 0
        return everyones

    def peer(self, rank: int) -> "Thread":
        return Thread(self, rank)


class Thread:
    device, num_threads = torch.device("cpu"), 1

    def __init__(self, threads: Threads, rank: int) -> None:
        self._threads, self._rank = threads, rank

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._threads._share(self._rank, rows))

    def exchange(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        assert len(rows) == counts[self._rank]
        return torch.cat([sent[:, self._rank] for sent in self._threads._share(self._rank, rows)])


def shared_sums(rows: torch.Tensor, size: int, *, make=SharedOut, **keywords) -> tuple[list, int]:
    """The total that each of `size` processes finds, and the number of collectives."""
    threads, found = Threads(size), {}

    def work(rank: int) -> None:
        plan = Plan(len(rows), len(rows), len(rows), size, rank)
        reduction = make(plan, threads.peer(rank), width=rows.shape[1], **keywords)
        for _ in range(2):  # the second step must not see the first
            own = rows[plan.owned(rank).start : plan.owned(rank).stop]
            for some, out in reduction.groups():
                out[:] = own[some]
            found[rank] = np.array(reduction.total())

    workers = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [found[rank] for rank in range(size)], threads.collectives // 2


@pytest.mark.parametrize("num_rows", range(1, 34))
def test_the_shared_out_tree_is_the_plain_tree(num_rows):
    rows = rows_of(num_rows)
    expected = tree_sum(rows.numpy())
    for size in range(1, num_rows + 1):
        for one_by_one in (False, True):
            totals, _ = shared_sums(rows, size, one_by_one=one_by_one)
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
    keywords = {"one_by_one": True} if make is SharedOut else {}
    assert shared_sums(rows_of(8), size, make=make, **keywords)[1] == collectives


@pytest.mark.parametrize(
    ("num_pieces", "size", "width", "expected"),
    [
        (8, 2, 170, Gathered),  # the built-in model: one small message
        (8, 1, 1_000_000, SharedOut),
        (8, 2, 1_000_000, SharedOut),
        (8, 3, 1_000_000, SharedOut),
        (8, 8, 1_000_000, SharedOut),
        (2, 2, 1_000_000, Gathered),  # each sends one row either way
    ],
)
def test_the_way_that_sends_less_is_taken(num_pieces, size, width, expected):
    plan = Plan(num_pieces, num_pieces, num_pieces, size, 0)
    peer = Thread(Threads(size), 0)
    assert type(new_reduction(plan, peer, width=width, one_by_one=True)) is expected


@pytest.mark.parametrize("num_pieces", [1, 8, 33, 1024])
def test_few_sums_wait_at_a_time(num_pieces):
    tree, most = TreeSum(num_pieces), 0
    for piece, row in enumerate(rows_of(num_pieces)):
        tree.add(range(piece, piece + 1), row)
        most = max(most, len(tree._sums))
    assert most <= max(1, num_pieces.bit_length())
    assert len(tree.take()) == 1
