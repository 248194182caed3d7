"""Compute one step's gradient over all processes: "ordered" or "ddp".

Both leave in each parameter's `.grad` the gradient of the mean loss over the *global* batch, and
return the global batch's totals. They differ in how the processes' parts are added.

- `OrderedGradient` gives the same bits on any number of processes. The batch is cut into pieces
  of sizes that the configuration alone decides; each piece's gradient is computed alone; the
  pieces' rows are added in a fixed order. Only the process that computes a piece changes.
- `DdpGradient` goes through Accelerate's data-parallel wrapper, whose sum depends on the number
  of processes in the last bits.

Source: Li et al.: EasyScale (arXiv 2208.14228), for pieces that are independent of processes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from sinlstm_dist.errors import ConfigError
from sinlstm_dist.metrics import Totals
from sinlstm_dist.piece_rows import PieceRows, Place
from sinlstm_dist.plan import Plan
from sinlstm_dist.processes.world import World
from sinlstm_dist.reduction import Peers, light, new_reduction, some_pieces
from sinlstm_dist.tree import Rows


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

    is_whole: bool  # whether a batch is all pieces in one, not a list of them

    def __call__(self, batch: Any, *, epoch: int, step: int, stop: bool) -> StepResult:
        """Set every parameter's `.grad` from this process's share of a global batch.

        A parameter on which the loss does not depend gets no gradient.

        Args:
            batch: the pieces of the share, as `Split.batches` gives them.
            epoch: from 0.
            step: the number of the step in its epoch, from 0.
            stop: whether this process was asked to stop.

        Collective: yes.
        """
        ...

    def settle(self) -> None:
        """Make the model's buffers the same on all processes. Collective: yes."""
        ...


class OrderedGradient:
    """Adds the pieces' gradients in a fixed order.

    A piece's row ends with the request to stop, so totals and requests need no collective of their
    own.

    Args:
        rows: computes the pieces' rows; the parameters' `.grad` become views of one vector.
        plan: cuts the batches into pieces; `plan.rank` is this process.
        peers: the processes that share the batch, such as a `World`.
    """

    def __init__(self, rows: PieceRows, *, plan: Plan, peers: Peers) -> None:
        self._rows, self._plan, self.is_whole = rows, plan, rows.is_whole
        sizes = [parameter.numel() for parameter in rows.parameters]
        self._width = sum(sizes)
        gradient = torch.zeros(self._width, device=peers.device)
        parts = zip(gradient.split(sizes), rows.parameters, strict=True)
        self._parts = [part.view_as(parameter) for part, parameter in parts]
        self._mean = light(gradient)
        self._set_grads([True] * len(sizes))
        self._num_flags = rows.num_flags
        self._reduction = new_reduction(plan, peers, width=rows.width + 1, at_once=rows.at_once)
        own = self._reduction.rows
        self._numbers, self._stops = own[:, :-1], light(own)[:, -1]
        self._first = plan.owned(plan.rank).start
        self._buffers: dict[str, tuple[int, int]] | None = None  # as the first step found them

    def __call__(self, batch: Any, *, epoch: int, step: int, stop: bool) -> StepResult:
        """One step; see Gradient."""
        if self._buffers is None:
            self._buffers = self._versions()
        sizes = self._plan.piece_sizes(step)
        for some in self._reduction.groups():
            self._rows.gradients(
                some_pieces(batch, sizes, some), sizes=sizes[some],
                place=Place(epoch, step, self._first + some.start), out=self._numbers,
            )  # fmt: skip
            self._stops[:] = stop
        total = self._reduction.total()  # the step's collectives
        known = total[self._width :].tolist()  # waits for a GPU, once a step
        flags, (*numbers, stops) = known[: self._num_flags], known[self._num_flags :]
        totals = self._rows.counts.to_totals(numbers)
        # These are the parameters' .grad, as the constructor has laid them out.
        _divide(total[: self._width], totals.divided_by or math.nan, out=self._mean)
        if flags:
            self._set_grads([number > 0 for number in flags])
        return StepResult(totals, stops > 0)

    def _set_grads(self, used: list[bool]) -> None:
        for parameter, part, is_used in zip(self._rows.parameters, self._parts, used, strict=True):
            parameter.grad = part if is_used else None

    def settle(self) -> None:
        """Refuse a model whose buffers have changed: on each process in another way.

        Raises:
            ConfigError: names the buffer.
        """
        if self._buffers is None:  # no step came through here: the kernel made them all
            return
        if changed := self._versions().items() - self._buffers.items():
            raise ConfigError(
                f"task.build: {min(changed)[0]} has changed in training, so the result depends on "
                "the number of processes: ordered reduction cannot train this model"
            )

    def _versions(self) -> dict[str, tuple[int, int]]:
        """What tells that a buffer was replaced or written to."""
        return {name: (id(b), b._version) for name, b in self._rows.model.named_buffers()}


def _divide(total: Rows, number: float, *, out: Rows) -> None:
    """Divide with the same bits on any device."""
    if isinstance(total, np.ndarray):
        np.divide(total, number, out=out)
    else:
        # By a number on the CPU, a GPU would multiply with its inverse instead:
        # https://github.com/pytorch/pytorch/blob/v2.13.0/aten/src/ATen/native/cuda/BinaryDivTrueKernel.cu#L36
        torch.divide(total, total.new_full((), number), out=out)


class DdpGradient:
    """Lets Accelerate's data-parallel wrapper take the mean of the processes' gradients.

    Args:
        rows: of the model that is trained.
        wrapped: the wrapper of that model.
        plan: cuts each batch into one piece per process.
        world: the processes.
        spare: gives a piece for a process that has no samples in a step: the wrapper needs all.
    """

    is_whole = False

    def __init__(
        self,
        rows: PieceRows,
        *,
        wrapped: nn.Module,
        plan: Plan,
        world: World,
        spare: Callable[[], Any],
    ) -> None:
        self._rows, self._plan, self._world = rows, plan, world
        self._wrapped, self._spare = wrapped.train(), spare

    def __call__(self, batch: Any, *, epoch: int, step: int, stop: bool) -> StepResult:
        """One step; see Gradient."""
        (piece,), (size,) = batch, self._plan.piece_sizes(step)
        place = Place(epoch, step, self._plan.rank)
        piece = self._spare() if piece is None else piece
        loss, totals = self._rows.loss(self._wrapped, piece, num_samples=size, place=place)
        if not size:
            loss, totals = 0 * loss, 0 * totals
        # The wrapper divides by the number of processes. The loss must be divided by samples
        # instead: then shares of different sizes, and empty ones, have their right weights.
        num_samples = self._plan.num_samples(step)
        self._wrapped.zero_grad()
        with self._world.limited():
            self._world.accelerator.backward(loss * (self._world.size / num_samples))  # collective
        sums = torch.cat((totals, totals.new_full((1,), stop))).double()
        *summed, stops = self._world.sum(sums).tolist()  # collective
        result = self._rows.counts.to_totals(summed)
        if result.divided_by != num_samples:
            for parameter in self._rows.parameters:
                if parameter.grad is not None:
                    parameter.grad *= num_samples / (result.divided_by or math.nan)
        return StepResult(result, stops > 0)

    def settle(self) -> None:
        """See Gradient: those of the main process."""
        for buffer in self._rows.model.buffers() if self._world.size > 1 else ():
            buffer.copy_(self._world.broadcast(buffer.detach().clone()))
