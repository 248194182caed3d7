"""Compute one step's gradient over all processes: "ordered" or "ddp".

Both leave in each parameter's `.grad` the gradient of the mean squared error over the *global*
batch, and return the global batch's totals. They differ in how the processes' parts are added.

- `OrderedGradient` gives the same bits on any number of processes. The batch is cut into pieces
  of sizes that the configuration alone decides; each piece's gradient is computed alone; the
  pieces' rows are added in a fixed order. Only the process that computes a piece changes.
- `DdpGradient` goes through Accelerate's data-parallel wrapper, whose sum depends on the number
  of processes in the last bits.

Source: Li et al.: EasyScale (arXiv 2208.14228), for pieces that are independent of processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from sinlstm_dist import lstm
from sinlstm_dist.data.sine import Batch
from sinlstm_dist.data.steps import pieces
from sinlstm_dist.metrics import NUM_TOTALS, Totals
from sinlstm_dist.plan import Plan
from sinlstm_dist.processes.world import World
from sinlstm_dist.reduction import (
    Peers,
    count,
    is_fused,
    light,
    new_reduction,
    some_pieces,
    to_totals,
)


@dataclass(frozen=True)
class StepResult:
    """The numbers that all processes know after a step's collective.

    Args:
        totals: over the global batch, with the weights before the step.
        stop: whether any process was asked to stop.
    """

    totals: Totals
    stop: bool


class Gradient(Protocol):
    """Computes a step's gradient."""

    def __call__(self, batch: Batch, *, step: int, stop: bool) -> StepResult:
        """Set every parameter's `.grad` from this process's share of a global batch.

        Args:
            batch: windows (B, W, D) and targets (B, 1) of the share, which may be empty.
            step: the number of the step in its epoch, from 0.
            stop: whether this process was asked to stop.

        Collective: yes.
        """
        ...


class OrderedGradient:
    """Adds the pieces' gradients in a fixed order.

    A piece's row is its gradient, then squared error, correct predictions, samples and the
    request to stop, so totals and requests need no collective of their own.

    Args:
        model: any module; its parameters' `.grad` become views of one vector.
        plan: cuts the batches into pieces; `plan.rank` is this process.
        peers: the processes that share the batch, such as a `World`.
        tolerance: a smaller absolute error counts as correct.
    """

    def __init__(self, model: nn.Module, *, plan: Plan, peers: Peers, tolerance: float) -> None:
        self._model, self._plan, self._peers, self._tolerance = model, plan, peers, tolerance
        self._parameters = list(model.parameters())
        sizes = [parameter.numel() for parameter in self._parameters]
        self._width = sum(sizes)
        self._gradient = torch.zeros(self._width, device=peers.device)
        for parameter, part in zip(self._parameters, self._gradient.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)
        self._mean = light(self._gradient)
        self._reduction = new_reduction(
            plan, peers, width=self._width + NUM_TOTALS + 1, one_by_one=not is_fused(model)
        )
        rows = self._reduction.rows
        self._numbers, self._stops = rows[:, :-1], light(rows)[:, -1]

    def __call__(self, batch: Batch, *, step: int, stop: bool) -> StepResult:
        """One step; see Gradient."""
        sizes = self._plan.piece_sizes(step)
        for some in self._reduction.groups():
            gradient_rows(
                self._model, self._parameters, some_pieces(batch, sizes, some),
                piece_sizes=sizes[some], tolerance=self._tolerance,
                num_threads=self._peers.num_threads, out=self._numbers,
            )  # fmt: skip
            self._stops[:] = stop
        total = self._reduction.total()  # the step's collectives
        # These are the parameters' .grad, as the constructor has laid them out.
        self._mean[:] = total[: self._width] / self._plan.num_samples(step)
        *totals, stops = total[self._width :].tolist()  # waits for a GPU
        return StepResult(to_totals(totals), stops > 0)


class DdpGradient:
    """Lets Accelerate's data-parallel wrapper take the mean of the processes' gradients."""

    def __init__(self, model: nn.Module, *, plan: Plan, peers: World, tolerance: float) -> None:
        self._model, self._plan, self._world, self._tolerance = model, plan, peers, tolerance

    def __call__(self, batch: Batch, *, step: int, stop: bool) -> StepResult:
        """One step; see Gradient."""
        windows, targets = batch
        totals = count(self._model(windows), targets, tolerance=self._tolerance)
        # The wrapper divides by the number of processes. The loss must be divided by samples
        # instead: then shares of different sizes, and empty ones, have their right weights.
        share = totals[0] * (self._world.size / self._plan.num_samples(step))
        self._model.zero_grad()
        self._world.accelerator.backward(share)  # collective
        sums = torch.cat((totals.detach(), totals.new_tensor([stop]))).double()
        *summed, stops = self._world.sum(sums).tolist()  # collective
        return StepResult(to_totals(summed), stops > 0)


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

    A row depends on the piece's samples and the weights, and on nothing else. Autograd computes it
    for any model; the fused kernel computes the rows of all pieces in one call.

    Args:
        parameters: all of the model's, in its order.
        batch: windows (B, W, D) and targets (B, 1) of all pieces, in order.
        piece_sizes: samples in each piece; their sum is B.
        tolerance: a smaller absolute error counts as correct.
        num_threads: threads that the fused recurrence may use.
        out: (pieces, G + 3) for G parameters; overwritten.
    """
    if not is_fused(model):
        for row, piece in zip(out, pieces(batch, piece_sizes), strict=True):
            if piece is None:
                row.zero_()
                continue
            windows, targets = piece
            totals = count(model(windows), targets, tolerance=tolerance)
            gradients = torch.autograd.grad(totals[0], parameters)
            torch.cat([*(g.flatten() for g in gradients), totals.detach()], out=row)
        return
    lstm.predictor_rows(
        windows=batch[0], targets=batch[1], piece_sizes=piece_sizes, tolerance=tolerance,
        parameters=parameters, num_threads=num_threads, out=out,
    )  # fmt: skip
