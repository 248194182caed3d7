"""One step's gradient over all processes: "ordered" or "ddp".

Both leave in each parameter's `.grad` the gradient of the mean squared error over the *global*
batch, and return the global batch's totals; they differ in how the processes' parts meet.

- `OrderedGradient` gives the same bits on any number of processes. The batch is cut into pieces
  of sizes that the configuration alone decides; each piece's gradient is computed alone; the
  pieces' rows are gathered once and added in a fixed order. Only who computes a piece changes.
- `DdpGradient` goes through Accelerate's data-parallel wrapper, whose sum depends on the number
  of processes in the last bits.

Source: Li et al.: EasyScale (arXiv 2208.14228), for pieces that are independent of processes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from sinlstm_dist import lstm, metrics
from sinlstm_dist.data.sine import Batch
from sinlstm_dist.data.steps import step_batches
from sinlstm_dist.metrics import Totals
from sinlstm_dist.model import Predictor
from sinlstm_dist.plan import Plan
from sinlstm_dist.processes.world import World

Rows = Any  # numpy's array on the CPU, torch's tensor on a GPU: for what both do alike


@dataclass(frozen=True)
class StepResult:
    """What all processes know after a step's collective.

    Args:
        totals: over the global batch, with the weights before the step.
        stop: whether any process was asked to stop.
    """

    totals: Totals
    stop: bool


class Gradient(Protocol):
    """A way to a step's gradient."""

    def __call__(self, batch: Batch, *, step: int, stop: bool) -> StepResult:
        """Set every parameter's `.grad` from this process's share of a global batch.

        Args:
            batch: windows (B, W, D) and targets (B, 1) of the share, which may be empty.
            step: which step of its epoch it belongs to.
            stop: whether this process was asked to stop.

        Collective: yes.
        """
        ...


class OrderedGradient:
    """Pieces' gradients, gathered once and added in a fixed order.

    A piece's row is its gradient, then squared error, correct predictions, samples and the
    request to stop: so one collective a step carries everything.
    """

    def __init__(self, model: nn.Module, *, plan: Plan, world: World, tolerance: float) -> None:
        self._model, self._plan, self._world, self._tolerance = model, plan, world, tolerance
        self._parameters = list(model.parameters())
        sizes = [parameter.numel() for parameter in self._parameters]
        self._width = sum(sizes)
        self._gradient = torch.zeros(self._width, device=world.device)
        for parameter, part in zip(self._parameters, self._gradient.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)
        most = len(plan.owned(0))  # rank 0 owns no fewer pieces than any other
        self._rows = torch.zeros(most, self._width + metrics.NUM_TOTALS + 1, device=world.device)
        self._own = self._rows[: len(plan.owned(plan.rank)), :-1]
        self._mean, self._stops = _light(self._gradient), _light(self._rows)[:, -1]
        self._pieces = _piece_rows(plan)

    def __call__(self, batch: Batch, *, step: int, stop: bool) -> StepResult:
        """One step; see Gradient."""
        gradient_rows(
            self._model, self._parameters, batch, piece_sizes=self._plan.piece_sizes(step),
            tolerance=self._tolerance, num_threads=self._world.num_threads, out=self._own,
        )  # fmt: skip
        self._stops[:] = stop
        gathered = _light(self._world.gather(self._rows))  # the step's one collective
        total = tree_sum(gathered[self._pieces])
        self._mean[:] = total[: self._width] / self._plan.num_samples(step)
        squared_error, correct, samples, stops = total[self._width :].tolist()  # waits for a GPU
        return StepResult(Totals(squared_error, int(correct), int(samples)), stops > 0)


class DdpGradient:
    """The mean of the processes' gradients as Accelerate's data-parallel wrapper takes it."""

    def __init__(self, model: nn.Module, *, plan: Plan, world: World, tolerance: float) -> None:
        self._model, self._plan, self._world, self._tolerance = model, plan, world, tolerance

    def __call__(self, batch: Batch, *, step: int, stop: bool) -> StepResult:
        """One step; see Gradient."""
        windows, targets = batch
        totals = metrics.count(self._model(windows), targets, tolerance=self._tolerance)
        # The wrapper divides by the number of processes; the loss divides by samples instead,
        # so shares of different sizes, an empty one included, weigh what they should.
        share = totals[0] * (self._world.size / self._plan.num_samples(step))
        self._model.zero_grad()
        self._world.accelerator.backward(share)  # collective
        sums = torch.cat((totals.detach(), totals.new_tensor([stop]))).double()
        squared_error, correct, samples, stops = self._world.sum(sums).tolist()  # collective
        return StepResult(Totals(squared_error, int(correct), int(samples)), stops > 0)


def gradient_rows(
    model: nn.Module,
    parameters: Sequence[torch.Tensor],
    batch: Batch,
    *,
    piece_sizes: Sequence[int],
    tolerance: float,
    num_threads: int,
    out: torch.Tensor,
) -> None:
    """Compute each piece's row: gradient of its squared error, then its three totals.

    A row is a function of the piece's samples and the weights, of nothing else.

    Args:
        parameters: all of the model's, in its order.
        batch: windows (B, W, D) and targets (B, 1) of all pieces, one behind the other.
        piece_sizes: samples in each piece; their sum is B.
        tolerance: a smaller absolute error counts as correct.
        num_threads: threads that the fused recurrence may use.
        out: (pieces, G + 3) for G parameters; overwritten.
    """
    if isinstance(model, Predictor) and model.fused:
        lstm.predictor_rows(
            windows=batch[0], targets=batch[1], piece_sizes=piece_sizes, tolerance=tolerance,
            parameters=parameters, num_threads=num_threads, out=out,
        )  # fmt: skip
        return
    for row, piece in zip(out, pieces(batch, piece_sizes), strict=True):
        if len(piece[0]) == 0:
            row.zero_()
            continue
        totals = metrics.count(model(piece[0]), piece[1], tolerance=tolerance)
        gradients = torch.autograd.grad(totals[0], parameters)
        torch.cat([*(g.flatten() for g in gradients), totals.detach()], out=row)


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: Iterable[Batch], *, plan: Plan, world: World, tolerance: float
) -> Totals:
    """Totals over a data set; the same bits on any number of processes.

    Args:
        loader: this process's share of each step of `plan`.

    Collective: yes, one.
    """
    sums = torch.zeros(len(plan.owned(0)), metrics.NUM_TOTALS, device=world.device).double()
    for step, batch in step_batches(loader, plan):
        sizes = plan.piece_sizes(step)
        sums[: len(sizes)] += totals_rows(
            model, batch, piece_sizes=sizes, tolerance=tolerance, num_threads=world.num_threads
        )
    squared_error, correct, samples = tree_sum(gather_pieces(sums, plan=plan, world=world)).tolist()
    return Totals(squared_error, int(correct), int(samples))


def gather_pieces(rows: torch.Tensor, *, plan: Plan, world: World) -> Rows:
    """The rows (pieces, ...) of all pieces, in their order.

    Args:
        rows: (as many as rank 0 owns pieces, ...), this process's own first.

    Collective: yes, one.
    """
    gathered = _light(world.gather(rows))
    return gathered[_piece_rows(plan)]


def totals_rows(
    model: nn.Module,
    batch: Batch,
    *,
    piece_sizes: Sequence[int],
    tolerance: float,
    num_threads: int,
) -> torch.Tensor:
    """Each piece's three totals; arguments as for `gradient_rows`. Returns (pieces, 3)."""
    if isinstance(model, Predictor) and model.fused:
        return lstm.predictor_totals(
            windows=batch[0], targets=batch[1], piece_sizes=piece_sizes, tolerance=tolerance,
            parameters=list(model.parameters()), num_threads=num_threads,
        )  # fmt: skip
    rows = []
    for windows, targets in pieces(batch, piece_sizes):
        predictions = model(windows) if len(windows) else targets
        rows.append(metrics.count(predictions, targets, tolerance=tolerance))
    return torch.stack(rows)


def tree_sum(rows: Rows) -> Rows:
    """The sum of `rows` (N, ...) over N, always added in the same order: neighbours first.

    Each pass adds rows 0 and 1, 2 and 3, ...; a last one without a neighbour waits for the next.
    """
    concatenate = np.concatenate if isinstance(rows, np.ndarray) else torch.cat
    while (count := len(rows)) > 1:
        pairs = rows[: count - 1 : 2] + rows[1::2]
        rows = concatenate((pairs, rows[-1:])) if count % 2 else pairs
    return rows[0]


def _light(tensor: torch.Tensor) -> Rows:
    """The same memory for arithmetic on a few numbers, which numpy starts ten times faster."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def pieces(batch: Batch, sizes: Sequence[int]) -> Iterable[Batch]:
    """The pieces of a batch of so many samples each, every one in memory of its own.

    A matrix library may choose its code by the alignment of its operands, and a view into the
    share lies where the number of processes puts it; a fresh copy is always aligned alike.
    """
    windows, targets = batch[0].split(list(sizes)), batch[1].split(list(sizes))
    return ((w.clone(), t.clone()) for w, t in zip(windows, targets, strict=True))


def _piece_rows(plan: Plan) -> np.ndarray:
    """Where each piece's row lies among the gathered: every process sends as many as rank 0."""
    most = len(plan.owned(0))
    owned = (len(plan.owned(rank)) for rank in range(plan.world_size))
    return np.concatenate([rank * most + np.arange(count) for rank, count in enumerate(owned)])
