"""Make the optimizer's steps: one by one, or several in one call of the kernel.

Both make the same weights and totals, to the last bit. One call of the kernel saves what surrounds
each step in Python, which takes longer than the arithmetic of a small step.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from sinlstm_dist import compiled, sine
from sinlstm_dist.gradient import Gradient, OrderedGradient
from sinlstm_dist.job import Job
from sinlstm_dist.lstm.predictor import check_shapes, check_types
from sinlstm_dist.metrics import Totals
from sinlstm_dist.optim import SGD
from sinlstm_dist.optimizers import Update
from sinlstm_dist.piece_rows import PieceRows
from sinlstm_dist.plan import Plan
from sinlstm_dist.processes.gathering import LARGE, SharedMemory
from sinlstm_dist.processes.world import World
from sinlstm_dist.reduction import is_gathered, places
from sinlstm_dist.run.progress import Progress

SLICE_NS = 10_000_000  # after which a call of the kernel returns, for signals and the screen
MOST_PIECES = 16_384  # in a call, which lists their sizes, and may return after few of them
# How csrc/steps.h is told that there is one process.
ALONE = {"memory": 0, "num_processes": 1, "slot_bytes": 0, "rank": 0, "spin_ns": 0}


@dataclass(frozen=True)
class Stepped:
    """What all processes know after some steps.

    Args:
        progress: after the steps that were made.
        loss: the last step's. If it is not finite, that step was not made.
        stop: whether any process was asked to stop, before the last step.
    """

    progress: Progress
    loss: float
    stop: bool


class Stepping(Protocol):
    """Makes steps."""

    most: int  # the most steps of a call

    def __call__(self, batch: Any, progress: Progress, *, most: int, stop: bool) -> Stepped:
        """Make at least one step, or find that its loss is not finite.

        A call ends after the first step before which a process was asked to stop.

        Args:
            batch: this process's shares of the next `most` steps, as `Split.strides` gives them.
            progress: before the first of them.
            stop: whether this process was asked to stop.

        Collective: yes.
        """
        ...


class StepByStep:
    """Makes one step in a call: the gradient over all processes, then the optimizer's update."""

    most = 1

    def __init__(self, gradient: Gradient, update: Update) -> None:
        self._gradient, self._update = gradient, update

    def __call__(self, batch: Any, progress: Progress, *, most: int, stop: bool) -> Stepped:
        """One step; see Stepping."""
        # Sets every parameter's .grad; its collectives carry requests to stop too.
        result = self._gradient(batch, epoch=progress.epoch, step=progress.step_in_epoch, stop=stop)
        result.totals.check(f"samples of step {progress.step + 1}")
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
        shared: memory of the processes; None if this one is alone.
        tolerance: see `lstm.predictor_rows`.
    """

    most = MOST_PIECES

    def __init__(
        self,
        rows: PieceRows,
        optimizer: SGD,
        *,
        plan: Plan,
        shared: SharedMemory | None,
        tolerance: float,
    ) -> None:
        self._rows, self._optimizer, self._plan = rows, optimizer, plan
        self._shared, self._tolerance = shared, tolerance
        num_sent = len(plan.owned(0))  # rank 0 owns no fewer pieces than any other
        self.most = max(1, self.most // num_sent)
        self._sent = torch.zeros(num_sent, rows.width + 1)
        self._gathered = self._sent
        if shared:
            self._gathered = torch.zeros(plan.world_size * num_sent, rows.width + 1)
        self._places = np.arange(len(self._gathered), dtype=np.int64)[places(plan)]
        # As csrc/steps.h has it: the steps that are made, the number of the last gather, whether
        # the rows of the next step are sent, and whether to stop.
        self._state = np.zeros(4, np.int64)

    def __call__(self, batch: Any, progress: Progress, *, most: int, stop: bool) -> Stepped:
        """As many steps as fit into a slice of time; see Stepping."""
        totals, state = progress.totals, self._state
        state[0] = 0
        sums = np.array([totals.loss_sum, totals.correct, totals.samples, 0.0])  # last: a loss
        steps = range(progress.step_in_epoch, progress.step_in_epoch + most)
        call = functools.partial(
            compiled.kernel().steps,
            **self._arguments(batch, steps, stop=stop),
            totals=sums.ctypes.data,
        )
        if self._shared:
            state[1] = self._shared.number
            self._shared.wait(lambda: call() or state[0] > 0)
            self._shared.number = int(state[1])
        else:
            call()
        torch.autograd.graph.increment_version(self._rows.parameters)  # as the optimizer does
        loss_sum, correct, samples, loss = sums.tolist()
        totals = Totals(loss_sum, int(correct), int(samples))
        return Stepped(progress.after_steps(int(state[0]), totals), loss, bool(state[3]))

    def _arguments(self, batch: Any, steps: range, *, stop: bool) -> dict[str, Any]:
        """What csrc/arguments.h lists, in its order."""
        windows, targets = batch
        parameters = self._rows.parameters
        B, W, D, H = check_shapes(windows, targets, parameters)
        check_types(windows, targets, parameters)
        group, (values, velocity) = self._optimizer.param_groups[0], self._optimizer.vectors()
        sample, step, feature = windows.stride()
        first, last = map(self._plan.piece_sizes, (steps[0], steps[-1]))  # only the last differs
        return {
            "windows": windows.data_ptr(), "windows_sample_stride": sample,
            "windows_step_stride": step, "windows_feature_stride": feature,
            "targets": targets.data_ptr(), "targets_sample_stride": targets.stride(0),
            "piece_sizes": tuple(first * (len(steps) - 1) + last),
            "parameters": tuple(p.data_ptr() for p in parameters),
            "num_samples": B, "window": W, "input_size": D, "hidden_size": H,
            "num_threads": self._rows.num_threads, "tolerance": self._tolerance,
            "num_steps": len(steps), "values": values.ctypes.data,
            "velocity": 0 if velocity is None else velocity.ctypes.data,
            "lr": group["lr"], "momentum": group["momentum"], "stop": stop,
            "rows": self._sent.data_ptr(), "num_rows": len(self._sent),
            "row_floats": self._sent.shape[1], "gathered": self._gathered.data_ptr(),
            "places": self._places.ctypes.data, "num_pieces": len(self._places),
            **(self._shared.place if self._shared else ALONE), "patience_ns": SLICE_NS,
            "state": self._state.ctypes.data,
        }  # fmt: skip


def new_stepping(job: Job, world: World) -> Stepping:
    """The faster way that this job allows; no bit depends on it."""
    task, rows, plan = job.task, job.rows, job.train.plan
    tolerance, width, is_alone = sine.kernel_tolerance(task), rows.width + 1, world.size == 1
    if (
        tolerance is not None
        and world.device.type == "cpu"
        and type(job.gradient) is OrderedGradient
        and type(rows) is PieceRows
        and type(task.optimizer) is SGD
        and _are_same(task.optimizer.param_groups[0]["params"], rows.parameters)
        and not (task.lr_factor or task.clip_norm)
        and is_gathered(plan, width=width)
        and (is_alone or (world.shared and 4 * width * len(plan.owned(0)) < LARGE))
    ):
        shared = None if is_alone else world.shared
        return KernelSteps(rows, task.optimizer, plan=plan, shared=shared, tolerance=tolerance)
    return StepByStep(job.gradient, job.update)


def _are_same(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    return [*map(id, some)] == [*map(id, others)]
