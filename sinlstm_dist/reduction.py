"""Sums over pieces that have the same bits on any number of processes.

A process computes one row per piece that it owns. The rows of all pieces are gathered, and added
along a fixed binary tree. Which process computed a row changes nothing.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from sinlstm_dist.data.steps import Split
from sinlstm_dist.metrics import Totals
from sinlstm_dist.piece_rows import TESTING, PieceRows, Place
from sinlstm_dist.plan import Plan
from sinlstm_dist.tree import Rows, TreeSum, subtrees, tree_sum

GATHERED_BYTES = 2**20  # rows up to this size are gathered: sharing them out takes more messages


class Peers(Protocol):
    """The processes that share a sum, as a reduction sees them: a `World`, or one process alone."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        ...

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (N, ...) of every process, in order of rank. Collective: yes."""
        ...

    def exchange(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """This process's part of every process's rows; see `World.exchange`. Collective: yes."""
        ...


def some_pieces(batch: Any, sizes: Sequence[int], some: slice) -> Any:
    """Some pieces of a batch that is cut into pieces of these sizes.

    Args:
        batch: a list of pieces, or tensors (B, ...) of all of them.
    """
    if isinstance(batch, list):
        return batch[some]
    if len(sizes[some]) == len(sizes):
        return batch
    first = sum(sizes[: some.start])
    return tuple(tensor[first : first + sum(sizes[some])] for tensor in batch)


def totals_over(rows: PieceRows, split: Split, *, peers: Peers) -> Totals:
    """Count a model's predictions over a split; the same bits on any number of processes.

    If testing calls the model, it is in evaluation mode meanwhile, without gradients, and in
    training mode afterwards.

    Raises:
        RunError: there is nothing to divide by, or the correct predictions are no number.

    Collective: yes, one.
    """
    first = split.plan.owned(split.plan.rank).start

    def of_pieces(step: int, batch: Any, sizes: Sequence[int]) -> torch.Tensor:
        return rows.totals(batch, sizes=sizes, place=Place(TESTING, step, first))

    with rows.testing():
        sums = sum_over(split, of_pieces, width=rows.counts.width, peers=peers, whole=rows.is_whole)
    totals = rows.counts.to_totals(sums.tolist())
    totals.check("test samples")
    return totals


def sum_over(
    split: Split,
    rows: Callable[[int, Any, Sequence[int]], torch.Tensor],
    *,
    width: int,
    peers: Peers,
    whole: bool,
) -> Rows:
    """Add the rows of all pieces of all steps; the same bits on any number of processes.

    Args:
        rows: computes (pieces, width) numbers, without a gradient, from a step, its batch and its
            pieces' sizes.
        whole: whether `rows` takes all pieces in one, not a list of them.

    Returns:
        (width,) float64.

    Collective: yes, one.
    """
    plan = split.plan
    sums = torch.zeros(len(plan.owned(0)), width, dtype=torch.float64, device=peers.device)
    for step, batch in split.batches(whole=whole):
        sizes = plan.piece_sizes(step)
        light(sums)[: len(sizes)] += light(rows(step, batch, sizes))
    return tree_sum(light(peers.gather(sums))[places(plan)])


def places(plan: Plan) -> np.ndarray | slice:
    """The row of each piece among the gathered ones: (pieces,), or a slice of all.

    Each process sends as many rows as rank 0, which owns the most pieces.
    """
    if plan.num_pieces % plan.world_size == 0:
        return slice(None)  # copies no row
    most = len(plan.owned(0))
    owned = (len(plan.owned(rank)) for rank in range(plan.world_size))
    return np.concatenate([rank * most + np.arange(number) for rank, number in enumerate(owned)])


def light(tensor: torch.Tensor) -> Rows:
    """The same memory as a numpy array if it is on the CPU: small sums start ten times faster."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


class Reduction(Protocol):
    """Adds one row per piece over all processes, along the tree.

    Args:
        rows: (pieces, G) of one group, to be overwritten before the next group is asked for.
    """

    rows: torch.Tensor

    def groups(self) -> Iterable[slice]:
        """The pieces that this process owns, as many at a time as there are rows."""
        ...

    def total(self) -> Rows:
        """The sum of all pieces' rows: (G,). Collective: yes."""
        ...


class Gathered:
    """Every process receives the rows of all pieces, and adds them: one collective.

    Args:
        plan: which process owns which pieces.
        peers: the processes.
        width: numbers in a row.
    """

    def __init__(self, plan: Plan, peers: Peers, *, width: int) -> None:
        self._peers, self._places = peers, places(plan)
        most = len(plan.owned(0))  # rank 0 owns no fewer pieces than any other
        self._sent = torch.zeros(most, width, device=peers.device)
        self.rows = self._sent[: len(plan.owned(plan.rank))]

    def groups(self) -> Iterable[slice]:
        """All pieces at once; see Reduction."""
        return (slice(0, len(self.rows)),)

    def total(self) -> Rows:
        """See Reduction; one collective."""
        return tree_sum(light(self._peers.gather(self._sent))[self._places])


class SharedOut:
    """Each process adds its own pieces, then every process a part of all sums: two collectives.

    A process adds the pieces that it owns to the largest whole subtrees. Then it receives its part
    of every subtree's sum, finishes the tree for this part, and the parts are gathered. The
    additions are those of `Gathered`, so the bits are too.

    Args:
        plan: which process owns which pieces.
        peers: the processes.
        width: numbers in a row.
        at_once: pieces that are computed at the same time, each in a row of memory; None for all.
    """

    def __init__(self, plan: Plan, peers: Peers, *, width: int, at_once: int | None) -> None:
        self._peers, self._width, self._size = peers, width, plan.world_size
        self._own = plan.owned(plan.rank)
        self._subtrees = [subtrees(plan.owned(rank), plan.num_pieces) for rank in range(self._size)]
        self._tree = TreeSum(plan.num_pieces)
        self._part = -(-width // self._size)  # numbers of a row that one process finishes
        num_rows = min(at_once or len(self._own), len(self._own))
        self._padded = torch.zeros(num_rows, self._part * self._size, device=peers.device)
        self.rows = self._padded[:, :width]

    def groups(self) -> Iterable[slice]:
        """See Reduction."""
        num_rows = len(self.rows)
        for first in range(0, len(self._own), num_rows):
            some = slice(first, first + num_rows)
            yield some
            # The last group may have fewer pieces.
            for piece, row in zip(self._own[some], self._padded, strict=False):
                is_reused = num_rows < len(self._own)
                self._tree.add(range(piece, piece + 1), row, copy=is_reused)

    def total(self) -> Rows:
        """See Reduction; two collectives, except in a world of one."""
        counts = [len(some) for some in self._subtrees]
        taken = self._tree.take()
        sums = taken[0][None] if len(taken) == 1 else torch.stack(taken)
        sums = sums.view(-1, self._size, self._part)
        parts = self._peers.exchange(sums, counts)  # (all subtrees, part)
        for pieces, part in zip(itertools.chain(*self._subtrees), parts, strict=True):
            self._tree.add(pieces, part, copy=False)
        (total,) = self._tree.take()
        return light(self._peers.gather(total)[: self._width])


def is_gathered(plan: Plan, *, width: int) -> bool:
    """Whether every process adds the rows of all pieces, which have `width` numbers each."""
    return plan.num_pieces * width * 4 <= GATHERED_BYTES


def new_reduction(plan: Plan, peers: Peers, *, width: int, at_once: int | None) -> Reduction:
    """The faster way; it follows from sizes alone, and no bit depends on it.

    Args:
        width: numbers in a row.
        at_once: pieces that are computed at the same time; None for all.
    """
    if is_gathered(plan, width=width):
        return Gathered(plan, peers, width=width)
    return SharedOut(plan, peers, width=width, at_once=at_once)
