"""Sums over pieces that have the same bits on any number of processes.

A process computes one row per piece that it owns. The rows of all pieces are gathered, and added
along a fixed binary tree. Which process computed a row changes nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from sinlstm_dist import lstm
from sinlstm_dist.data.sine import Batch
from sinlstm_dist.data.steps import Split
from sinlstm_dist.metrics import NUM_TOTALS, Totals
from sinlstm_dist.model import Predictor
from sinlstm_dist.plan import Plan

Rows = Any  # a numpy array on the CPU, a torch tensor on a GPU: only what both can do is used


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


def pieces(batch: Batch, sizes: Sequence[int]) -> Iterable[Batch]:
    """Cut a batch into pieces of these sizes, each in memory of its own.

    A matrix library may choose its code by the alignment of its operands. The alignment of a view
    depends on the number of processes; a fresh copy is always aligned the same way.
    """
    windows, targets = batch[0].split(list(sizes)), batch[1].split(list(sizes))
    return ((w.clone(), t.clone()) for w, t in zip(windows, targets, strict=True))


def totals_rows(
    model: nn.Module,
    batch: Batch,
    *,
    piece_sizes: Sequence[int],
    tolerance: float,
    num_threads: int,
) -> torch.Tensor:
    """Count each piece: (pieces, 3); arguments as for `gradient.gradient_rows`."""
    if isinstance(model, Predictor) and model.fused:
        return lstm.predictor_totals(
            windows=batch[0], targets=batch[1], piece_sizes=piece_sizes, tolerance=tolerance,
            parameters=list(model.parameters()), num_threads=num_threads,
        )  # fmt: skip
    rows = []
    for windows, targets in pieces(batch, piece_sizes):
        predictions = model(windows) if len(windows) else targets
        rows.append(count(predictions, targets, tolerance=tolerance))
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


@np.errstate(over="ignore", invalid="ignore")  # the caller looks for values that are not finite
def tree_sum(rows: Rows) -> Rows:
    """Add `rows` (N, ...) over N, always in the same order: neighbours first.

    Each pass adds rows 0 and 1, 2 and 3, ...; a last one without a neighbour waits for the next.

    Args:
        rows: an array or a tensor.

    Returns:
        the sum, of shape (...).

    Examples:
        The sum of the same numbers depends on their order, so the order must be fixed:

        >>> rows = np.array([1e8, 1, -1e8, 1], dtype=np.float32)
        >>> float(tree_sum(rows))  # (1e8 + 1) + (-1e8 + 1)
        0.0
        >>> float(tree_sum(rows[[0, 2, 1, 3]]))  # (1e8 - 1e8) + (1 + 1)
        2.0
    """
    concatenate = np.concatenate if isinstance(rows, np.ndarray) else torch.cat
    while (number := len(rows)) > 1:
        pairs = rows[: number - 1 : 2] + rows[1::2]
        rows = concatenate((pairs, rows[-1:])) if number % 2 else pairs
    return rows[0]


def light(tensor: torch.Tensor) -> Rows:
    """The same memory as a numpy array if it is on the CPU: small sums start ten times faster."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor
