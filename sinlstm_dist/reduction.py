"""Sums over pieces that have the same bits on any number of processes.

A process computes one row per piece that it owns. The rows of all pieces are gathered, and added
along a fixed binary tree. Which process computed a row changes nothing.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from sinlstm_dist import lstm
from sinlstm_dist.data.sine import Batch
from sinlstm_dist.data.steps import Split, pieces
from sinlstm_dist.metrics import NUM_TOTALS, Totals
from sinlstm_dist.model import Predictor
from sinlstm_dist.plan import Plan
from sinlstm_dist.tree import Rows, TreeSum, subtrees, tree_sum

GATHERED_BYTES = 2**20  # rows up to this size are gathered: sharing them out takes more messages


class Peers(Protocol):
    """The processes that share a sum, as a reduction sees them: a `World`, or one process alone."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        ...

    @property
    def num_threads(self) -> int:
        """Threads that the fused recurrence may use."""
        ...

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (N, ...) of every process, in order of rank. Collective: yes."""
        ...

    def exchange(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """This process's part of every process's rows; see `World.exchange`. Collective: yes."""
        ...


def count(predictions: torch.Tensor, targets: torch.Tensor, *, tolerance: float) -> torch.Tensor:
    """Totals as a tensor of three: squared error, correct predictions, samples.

    The one definition of loss and accuracy. Differentiable in its first element.

    Args:
        predictions: (B, 1).
        targets: (B, 1).
        tolerance: a smaller absolute error counts as correct.

    Examples:
        >>> predictions = torch.tensor([[0.5], [0.75]])
        >>> targets = torch.tensor([[0.5], [0.25]])
        >>> count(predictions, targets, tolerance=0.1).tolist()
        [0.25, 1.0, 2.0]
    """
    error = predictions - targets  # (B, 1)
    correct = (error.detach().abs() < tolerance).sum()
    samples = error.new_tensor(len(error))
    return torch.stack((error.square().sum(), correct.to(error.dtype), samples))


def is_fused(model: nn.Module) -> bool:
    """Whether one call computes the rows of all pieces."""
    return isinstance(model, Predictor) and model.fused


def some_pieces(batch: Batch, sizes: Sequence[int], some: slice) -> Batch:
    """The samples of some pieces of a batch that is cut into pieces of these sizes."""
    if len(sizes[some]) == len(sizes):
        return batch
    first = sum(sizes[: some.start])
    windows, targets = (tensor[first : first + sum(sizes[some])] for tensor in batch)
    return windows, targets


def totals_rows(
    model: nn.Module,
    batch: Batch,
    *,
    piece_sizes: Sequence[int],
    tolerance: float,
    num_threads: int,
) -> torch.Tensor:
    """Count each piece: (pieces, 3); arguments as for `gradient.gradient_rows`."""
    if is_fused(model):
        return lstm.predictor_totals(
            windows=batch[0], targets=batch[1], piece_sizes=piece_sizes, tolerance=tolerance,
            parameters=list(model.parameters()), num_threads=num_threads,
        )  # fmt: skip
    rows = []
    for piece in pieces(batch, piece_sizes):
        if piece is None:
            rows.append(batch[0].new_zeros(NUM_TOTALS))
            continue
        windows, targets = piece
        rows.append(count(model(windows), targets, tolerance=tolerance))
    return torch.stack(rows)


def totals_over(model: nn.Module, split: Split, *, peers: Peers, tolerance: float) -> Totals:
    """Count a model's predictions over a split; the same bits on any number of processes.

    Collective: yes, one.
    """

    def rows(batch: Batch, sizes: Sequence[int]) -> torch.Tensor:
        return totals_rows(
            model, batch, piece_sizes=sizes, tolerance=tolerance, num_threads=peers.num_threads
        )

    return to_totals(sum_over(split, rows, width=NUM_TOTALS, peers=peers).tolist())


@torch.no_grad()
def sum_over(
    split: Split,
    rows: Callable[[Any, Sequence[int]], torch.Tensor],
    *,
    width: int,
    peers: Peers,
) -> Rows:
    """Add the rows of all pieces of all steps; the same bits on any number of processes.

    Args:
        rows: computes (pieces, width) numbers from a batch and the sizes of its pieces.

    Returns:
        (width,) float64.

    Collective: yes, one.
    """
    plan = split.plan
    sums = torch.zeros(len(plan.owned(0)), width, device=peers.device).double()
    for step, batch in split.batches():
        sizes = plan.piece_sizes(step)
        sums[: len(sizes)] += rows(batch, sizes)
    return tree_sum(light(peers.gather(sums))[places(plan)])


def to_totals(numbers: Sequence[float]) -> Totals:
    """The Totals whose three numbers these are."""
    squared_error, correct, samples = numbers
    return Totals(squared_error, int(correct), int(samples))


def places(plan: Plan) -> np.ndarray:
    """The row of each piece among the gathered ones: (pieces,)

    Each process sends as many rows as rank 0, which owns the most pieces.
    """
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
        one_by_one: whether pieces are computed one after the other, in the memory of one row.
    """

    def __init__(self, plan: Plan, peers: Peers, *, width: int, one_by_one: bool) -> None:
        self._peers, self._width, self._size = peers, width, plan.world_size
        self._own = plan.owned(plan.rank)
        self._subtrees = [subtrees(plan.owned(rank), plan.num_pieces) for rank in range(self._size)]
        self._tree = TreeSum(plan.num_pieces)
        self._part = -(-width // self._size)  # numbers of a row that one process finishes
        num_rows = 1 if one_by_one else len(self._own)
        self._padded = torch.zeros(num_rows, self._part * self._size, device=peers.device)
        self.rows = self._padded[:, :width]

    def groups(self) -> Iterable[slice]:
        """See Reduction."""
        num_rows = len(self.rows)
        for first in range(0, len(self._own), num_rows):
            some = slice(first, first + num_rows)
            yield some
            for piece, row in zip(self._own[some], self._padded, strict=True):
                self._tree.add(range(piece, piece + 1), row)

    def total(self) -> Rows:
        """See Reduction; two collectives, except in a world of one."""
        counts = [len(some) for some in self._subtrees]
        sums = torch.stack(self._tree.take()).view(-1, self._size, self._part)
        parts = self._peers.exchange(sums, counts)  # (all subtrees, part)
        for some, part in zip(itertools.chain(*self._subtrees), parts, strict=True):
            self._tree.add(some, part)
        (total,) = self._tree.take()
        return light(self._peers.gather(total)[: self._width])


def new_reduction(plan: Plan, peers: Peers, *, width: int, one_by_one: bool) -> Reduction:
    """The way that sends less; it follows from sizes alone, and no bit depends on it.

    Args:
        width: numbers in a row.
        one_by_one: whether pieces are computed one after the other.
    """
    most = len(plan.owned(0))
    most_sums = max(len(subtrees(plan.owned(r), plan.num_pieces)) for r in range(plan.world_size))
    # Numbers that a process sends, in rows: to each of P - 1 others the rows of its pieces, or
    # 1/P of its sums, and then 1/P of the total.
    gather_sends_less = most * plan.world_size <= most_sums + 1
    if gather_sends_less or plan.num_pieces * width * 4 <= GATHERED_BYTES:
        return Gathered(plan, peers, width=width)
    return SharedOut(plan, peers, width=width, one_by_one=one_by_one)
