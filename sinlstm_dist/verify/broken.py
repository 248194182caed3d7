"""Parts of the package that are broken on purpose, for `faults.py`."""

import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sinlstm_dist.data.steps import Share, Split, StepSampler, pieces
from sinlstm_dist.gradient import Gradient, StepResult
from sinlstm_dist.metrics import Totals
from sinlstm_dist.piece_rows import TESTING, PieceRows, Place
from sinlstm_dist.processes.world import World
from sinlstm_dist.run import checkpoint
from sinlstm_dist.run.checkpoint import Checkpoint
from sinlstm_dist.run.folder import RunFolder

SLEEP_S, SLEEP_STEPS = 0.03, 4  # per step: several times what its arithmetic takes
LARGE_BYTES = 4 << 20  # far more than training this model sends at once
LAST_BIT = 1 + 2**-23  # a factor that changes the last bit of a float32


def is_last(world: World) -> bool:
    """Whether this is the last process, on which most faults strike, also when it is alone."""
    return bool(world.accelerator.is_last_process)


class StruckGradient:
    """A gradient with something before and after it.

    Args:
        before: called with the number of the call, from 1.
        after: called with the share, its place and the result.
    """

    def __init__(
        self,
        gradient: Gradient,
        *,
        before: Callable[[int], None] = lambda call: None,
        after: Callable[[Any, Place, StepResult], None] = lambda batch, place, result: None,
    ) -> None:
        self._gradient, self._before, self._after = gradient, before, after
        self._calls = itertools.count(1)
        self.is_whole, self.settle = gradient.is_whole, gradient.settle

    def __call__(self, batch: Any, *, epoch: int, step: int, stop: bool) -> StepResult:
        """See Gradient."""
        self._before(next(self._calls))
        result = self._gradient(batch, epoch=epoch, step=step, stop=stop)
        self._after(batch, Place(epoch, step), result)
        return result


class SlowGradient(StruckGradient):
    """A gradient that sleeps for several times as long as it computes."""

    def __call__(self, batch: Any, *, epoch: int, step: int, stop: bool) -> StepResult:
        """See Gradient."""
        started = time.perf_counter()
        result = super().__call__(batch, epoch=epoch, step=step, stop=stop)
        time.sleep(max(SLEEP_S, SLEEP_STEPS * (time.perf_counter() - started)))
        return result


class OtherLstm(nn.LSTM):
    """An nn.LSTM that does not use oneDNN or cuDNN, as on another kind of machine."""

    def forward(self, *arguments: Any) -> Any:
        """See nn.LSTM."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about TF32 on Intel's GPUs
            with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(False):
                return super().forward(*arguments)


def break_rows(rows: PieceRows, fault: type[PieceRows]) -> None:
    """Put a class before the rows' own: its `super()` is what they did before."""
    rows.__class__ = type(fault.__name__, (fault, type(rows)), {})


class OtherRows(PieceRows):
    """Rows of the built-in task by autograd, also where others use the fused kernel."""

    def gradients(self, batch: Any, *, sizes: Sequence[int], place: Place, out: Tensor) -> None:
        """See PieceRows."""
        if not self.is_whole:
            super().gradients(batch, sizes=sizes, place=place, out=out)
            return
        task = replace(self.task, model=self.model, rows=None)
        rows = PieceRows(task, self.counts, seed=0, device=self.device, num_threads=1)
        found = torch.zeros(len(sizes), rows.width, device=self.device)
        rows.gradients(pieces(batch, sizes), sizes=sizes, place=place, out=found)
        out = out[: len(sizes)]
        numbers, totals = out.shape[1] - self.counts.width, self.counts.width
        out[:, :numbers], out[:, numbers:] = found[:, :numbers], found[:, -totals:]


class RoundedRows(PieceRows):
    """Rows whose gradients differ in the last bit."""

    def gradients(self, batch: Any, *, sizes: Sequence[int], place: Place, out: Tensor) -> None:
        """See PieceRows."""
        super().gradients(batch, sizes=sizes, place=place, out=out)
        out[: len(sizes), : -self.counts.width - self.num_flags] *= LAST_BIT


class TwiceShare(Share):
    """A share whose first sample comes again in place of the second."""

    @property
    def positions(self) -> np.ndarray:
        """See Share."""
        positions = super().positions
        positions[1:2] = positions[:1]  # a process may have only one sample
        return positions


class TwiceSampler(StepSampler):
    """Yields the first sample of the last process again in place of the second."""

    def __iter__(self) -> Iterator[list[Share]]:  # type: ignore[override]
        for number, [share] in enumerate(super().__iter__(), start=1):
            if number == self._plan.world_size:
                share = TwiceShare(share.epoch, share.steps, share.plan)
            yield [share]


class DamagingWorld(World):
    """A world whose last process receives large messages with a wrong last value."""

    def __init__(self, world: World) -> None:
        vars(self).update(vars(world))  # the same world, except for what it receives

    def sum(self, values: Tensor) -> Tensor:
        """See World."""
        return self._damaged(super().sum(values))

    def gather(self, rows: Tensor) -> Tensor:
        """See World."""
        return self._damaged(super().gather(rows))

    def exchange(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """See World."""
        return self._damaged(super().exchange(rows, counts))

    def broadcast(self, values: Tensor) -> Tensor:
        """See World."""
        return self._damaged(super().broadcast(values))

    def _damaged(self, values: Tensor) -> Tensor:
        if is_last(self) and values.nbytes >= LARGE_BYTES:
            values[-1] += 1
        return values


class StaleFolder(RunFolder):
    """A run folder that loads the checkpoint before the newest."""

    def loaded(self) -> Checkpoint:
        """See RunFolder."""
        return checkpoint.read(checkpoint.find(self.checkpoints)[1])


def averaged_totals(rows: PieceRows, split: Split, *, peers: World) -> Totals:
    """Average each batch, then the batches of each process, then the processes."""
    means = []
    with rows.testing():
        for step, batch in split.batches(whole=rows.is_whole):
            sizes, place = split.plan.piece_sizes(step), Place(TESTING, step)
            if sum(sizes):
                sums = rows.totals(batch, sizes=sizes, place=place).sum(dim=0)
                means.append(sums[:2] / sum(sizes))
    mean = torch.stack(means).mean(dim=0) if means else torch.zeros(2, device=peers.device)
    loss, accuracy = (peers.sum(mean) / peers.size).tolist()
    size = split.plan.size
    correct = round(accuracy * size) if rows.counts.correct else None
    return Totals(loss * size, correct, size)
