"""Make the optimizer's steps: one by one, or several in one call of the kernel.

Both make the same weights and totals, to the last bit. One call of the kernel saves what surrounds
each step in Python, which takes longer than the arithmetic of a small step.
"""

import functools
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from sinlstm_dist import compiled, sine
from sinlstm_dist.config import Config
from sinlstm_dist.gradient import Gradient, OrderedGradient
from sinlstm_dist.job import Job
from sinlstm_dist.lstm.predictor import check_shapes, check_types
from sinlstm_dist.metrics import Totals
from sinlstm_dist.optim import SGD
from sinlstm_dist.optimizers import Update
from sinlstm_dist.piece_rows import PieceRows
from sinlstm_dist.plan import Plan
from sinlstm_dist.processes.gathering import LARGE
from sinlstm_dist.processes.world import World
from sinlstm_dist.reduction import GATHERED_BYTES, places
from sinlstm_dist.run.progress import Progress

CALL_S = 0.01  # that a call of the kernel may take: so long may a request to stop wait
# How csrc/steps.h is told that there is one process.
ALONE = {
    "memory": 0, "num_processes": 1, "slot_bytes": 0, "rank": 0, "spin_ns": 0, "patience_ns": 0
}  # fmt: skip


@dataclass(frozen=True)
class Stepped:
    """What all processes know after some steps.

    Args:
        progress: after the steps that were made.
        loss: the last step's. If it is not finite, that step was not made.
        stop: whether any process was asked to stop.
    """

    progress: Progress
    loss: float
    stop: bool


class Stepping(Protocol):
    """Makes steps."""

    most: int  # steps that a call may make

    def __call__(self, batch: Any, progress: Progress, *, num_steps: int, stop: bool) -> Stepped:
        """Make steps until all are made, one fails, or a process is asked to stop.

        Args:
            batch: this process's shares of these steps, as `Split.strides` gives them.
            progress: before the first of them.
            num_steps: at most `most`.
            stop: whether this process was asked to stop.

        Collective: yes.
        """
        ...


class StepByStep:
    """Makes one step in a call: the gradient over all processes, then the optimizer's update."""

    most = 1

    def __init__(self, gradient: Gradient, update: Update) -> None:
        self._gradient, self._update = gradient, update

    def __call__(self, batch: Any, progress: Progress, *, num_steps: int, stop: bool) -> Stepped:
        """One step; see Stepping."""
        # Sets every parameter's .grad; its collectives carry requests to stop too.
        result = self._gradient(batch, epoch=progress.epoch, step=progress.step_in_epoch, stop=stop)
        if result.totals.is_finite:
            self._update(progress.step)
            progress = progress.after_step(result.totals)
        return Stepped(progress, result.totals.loss, result.stop)


class KernelSteps:
    """Makes steps of the predictor in one call of the kernel on the CPU; see csrc/steps.c.

    Args:
        rows: of the predictor.
        optimizer: of its parameters.
        plan: cuts the batches into pieces.
        world: the processes; more than one share memory.
        tolerance: see `lstm.predictor_rows`.
    """

    def __init__(
        self, rows: PieceRows, optimizer: SGD, *, plan: Plan, world: World, tolerance: float
    ) -> None:
        self._parameters, self._optimizer, self._plan = rows.parameters, optimizer, plan
        self._shared, self._tolerance = world.shared, tolerance
        self._num_threads = world.num_threads
        most = len(plan.owned(0))  # rank 0 owns no fewer pieces than any other
        self._rows = torch.zeros(most, rows.width + 1)
        self._gathered = self._rows
        if world.size > 1:
            self._gathered = torch.zeros(world.size * most, rows.width + 1)
        self._places = np.arange(len(self._gathered))[places(plan)]
        self.most = 1  # until a step has shown how long it takes

    def __call__(self, batch: Any, progress: Progress, *, num_steps: int, stop: bool) -> Stepped:
        """All steps, each in each process; see Stepping."""
        began, totals = time.perf_counter(), progress.totals
        # In the layout of csrc/steps.h: the steps that are made, the number of the last gather,
        # whether it is waited for, whether to stop; and the sums with the last step's loss.
        state = np.array([0, self._shared.number if self._shared else 0, 0, 0])
        sums = np.array([totals.loss_sum, totals.correct, totals.samples, 0.0])
        steps = range(progress.step_in_epoch, progress.step_in_epoch + num_steps)
        call = self._call(batch, steps, stop=stop, state=state, sums=sums)
        if self._shared:
            self._shared.wait(call)
            self._shared.number = int(state[1])
        else:
            call()
        torch.autograd.graph.increment_version(self._parameters)  # as the optimizer does
        self.most = max(1, int(num_steps * CALL_S / (time.perf_counter() - began)))
        made, _, _, is_asked = state.tolist()
        loss_sum, correct, samples, last_loss = sums.tolist()
        totals = Totals(loss_sum, int(correct), int(samples))
        return Stepped(progress.after_steps(made, totals), last_loss, is_asked > 0)

    def _call(
        self, batch: Any, steps: range, *, stop: bool, state: np.ndarray, sums: np.ndarray
    ) -> Callable[[], bool]:
        """What goes on with these steps; it returns false if the other processes take long."""
        windows, targets = batch
        B, W, D, H = check_shapes(windows, targets, self._parameters)
        check_types(windows, targets, self._parameters)
        group, (values, velocity) = self._optimizer.param_groups[0], self._optimizer.vectors()
        sample, step, feature = windows.stride()
        sizes = itertools.chain.from_iterable(map(self._plan.piece_sizes, steps))
        return functools.partial(
            compiled.kernel().steps,
            windows=windows.data_ptr(), windows_sample_stride=sample, windows_step_stride=step,
            windows_feature_stride=feature, targets=targets.data_ptr(),
            targets_sample_stride=targets.stride(0), piece_sizes=tuple(sizes),
            parameters=tuple(p.data_ptr() for p in self._parameters), num_samples=B, window=W,
            input_size=D, hidden_size=H, num_threads=self._num_threads, tolerance=self._tolerance,
            num_steps=len(steps), values=values.ctypes.data,
            velocity=0 if velocity is None else velocity.ctypes.data, lr=group["lr"],
            momentum=group["momentum"], stop=stop, rows=self._rows.data_ptr(),
            num_rows=len(self._rows), row_floats=self._rows.shape[1],
            gathered=self._gathered.data_ptr(), places=self._places.ctypes.data,
            num_pieces=len(self._places),
            **(self._shared.arguments if self._shared else ALONE),
            state=state.ctypes.data, totals=sums.ctypes.data,
        )  # fmt: skip


def new_stepping(job: Job, config: Config, world: World) -> Stepping:
    """The faster way that this job allows; no bit depends on it."""
    optimizer, row_bytes = job.task.optimizer, 4 * (job.rows.width + 1)
    sent_bytes = len(job.train.plan.owned(0)) * row_bytes
    if (
        sine.uses_kernel(job.task)
        and world.device.type == "cpu"
        and type(job.gradient) is OrderedGradient
        and type(job.rows) is PieceRows
        and isinstance(optimizer, SGD)
        and job.train.plan.num_pieces * row_bytes <= GATHERED_BYTES
        and (world.size == 1 or (world.shared and sent_bytes < LARGE))
    ):
        return KernelSteps(
            job.rows, optimizer, plan=job.train.plan, world=world,
            tolerance=config.train.tolerance,
        )  # fmt: skip
    return StepByStep(job.gradient, job.update)
