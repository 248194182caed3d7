"""Faults to inject, which show that a check can fail.

A fault replaces some of the `Parts` that are checked; the package itself knows nothing of faults.
Most faults strike on the last process only.
"""

import dataclasses
import itertools
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sinlstm_dist.config import Config
from sinlstm_dist.data.sine import Batch
from sinlstm_dist.data.steps import Split
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.gradient import StepResult
from sinlstm_dist.job import Job, build
from sinlstm_dist.metrics import Totals
from sinlstm_dist.problems import did_you_mean
from sinlstm_dist.processes.world import World
from sinlstm_dist.reduction import count
from sinlstm_dist.run import checkpoint
from sinlstm_dist.run.checkpoint import Checkpoint
from sinlstm_dist.run.folder import RunFolder
from sinlstm_dist.verify.bench import Parts, settings
from sinlstm_dist.verify.claims import ARITHMETIC, GRADIENTS

SLEEP_S = 0.03  # per step, several times what its arithmetic takes, also through nn.LSTM
FLIPS_AT, DIES_AT = 10, 5  # calls of a job's gradient
SLOWED = 1e-3  # factor of the learning rate
LARGE_BYTES = 4 << 20  # far more than training this model sends at once


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Args:
        what: a description for the user.
        claim: the claim that must fail.
        parts: with the fault in them.
        least_processes: how many processes the fault needs.
    """

    what: str
    claim: str
    parts: Parts
    least_processes: int = 1


def find(name: str) -> Fault:
    """Return the fault of that name.

    Raises:
        ConfigError: there is no such fault; suggests the nearest, or lists all.
    """
    if name not in FAULTS:
        known = f": the known faults are {', '.join(FAULTS)}"
        raise ConfigError(f"--inject {name}{did_you_mean(name, FAULTS) or known}")
    return FAULTS[name]


def _is_last(world: World) -> bool:
    return world.rank == world.size - 1


def _rebuilt(change: Callable[[Job, Config, World], Job]) -> Parts:
    """Parts that build a job as usual and then change it."""
    return Parts(build=lambda config, world: change(build(config, world), config, world))


def _before_step(strike: Callable[[Job, Config, int], None]) -> Parts:
    """Call `strike` on the last process before each gradient, numbered from 1 in each job."""

    def change(job: Job, config: Config, world: World) -> Job:
        calls = itertools.count(1)

        def gradient(batch: Batch, *, step: int, stop: bool) -> StepResult:
            if _is_last(world):
                strike(job, config, next(calls))
            return job.gradient(batch, step=step, stop=stop)

        return dataclasses.replace(job, gradient=gradient)

    return _rebuilt(change)


def _after_step(spoil: Callable[[Job, World, Batch, int], None]) -> Parts:
    """Call `spoil` on every process after each gradient, with its share and the step's number."""

    def change(job: Job, config: Config, world: World) -> Job:
        def gradient(batch: Batch, *, step: int, stop: bool) -> StepResult:
            result = job.gradient(batch, step=step, stop=stop)
            spoil(job, world, batch, step)
            return result

        return dataclasses.replace(job, gradient=gradient)

    return _rebuilt(change)


def _drop_gradient(job: Job, world: World, batch: Batch, step: int) -> None:
    """Subtract the contribution of the last process from the gradient."""
    parameters = list(job.model.parameters())
    error = (job.model(batch[0]) - batch[1]).square().sum() / job.train.plan.num_samples(step)
    for parameter, part in zip(parameters, torch.autograd.grad(error, parameters), strict=True):
        assert parameter.grad is not None
        parameter.grad -= world.sum(part if _is_last(world) else torch.zeros_like(part))


def _scale_gradient(job: Job, world: World, batch: Batch, step: int) -> None:
    for parameter in job.model.parameters():
        assert parameter.grad is not None
        parameter.grad *= world.size


def _flip_bit(job: Job, config: Config, call: int) -> None:
    if call == FLIPS_AT:
        _flip_last_bit(job)


def _flip_between_checkpoints(job: Job, config: Config, call: int) -> None:
    """Flip only in a run that saves by steps, which the check of checkpoints makes."""
    if config.checkpoint.every_steps and call == config.checkpoint.every_steps + 1:
        _flip_last_bit(job)


def _flip_last_bit(job: Job) -> None:
    bits = next(job.model.parameters()).data.view(torch.int32)
    bits[0] ^= 1


def _sleep(job: Job, config: Config, call: int) -> None:
    time.sleep(SLEEP_S)


def _die(job: Job, config: Config, call: int) -> None:
    if call == DIES_AT:
        os.kill(os.getpid(), signal.SIGKILL)


class OtherLstm(nn.LSTM):
    """An nn.LSTM that does not use oneDNN or cuDNN, as on another kind of machine."""

    def forward(self, *arguments: Any) -> Any:
        """See nn.LSTM."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about TF32 on Intel's GPUs
            with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(False):
                return super().forward(*arguments)


def _use_other_code(job: Job, config: Config, world: World) -> Job:
    if _is_last(world):
        job.model.fused, job.model.rnn.__class__ = False, OtherLstm
    return job


class TwiceLoader:
    """A loader that yields its first sample again in place of the second."""

    def __init__(self, loader: Iterable[Batch]) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Batch]:
        for number, (windows, targets) in enumerate(self._loader):
            if number == 0:
                windows[1:2], targets[1:2] = windows[:1].clone(), targets[:1].clone()
            yield windows, targets


def _draw_twice(job: Job, config: Config, world: World) -> Job:
    if not _is_last(world):
        return job
    train = dataclasses.replace(job.train, loader=TwiceLoader(job.train.loader))
    return dataclasses.replace(job, train=train)


class DamagingWorld(World):
    """A world whose last process receives large messages with a wrong last value."""

    def __init__(self, world: World) -> None:
        vars(self).update(vars(world))  # the same world, except for what it receives

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """See World."""
        return self._damaged(super().sum(values))

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """See World."""
        return self._damaged(super().gather(rows))

    def exchange(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """See World."""
        return self._damaged(super().exchange(rows, counts))

    def broadcast(self, values: torch.Tensor) -> torch.Tensor:
        """See World."""
        return self._damaged(super().broadcast(values))

    def _damaged(self, values: torch.Tensor) -> torch.Tensor:
        if _is_last(self) and values.nbytes >= LARGE_BYTES:
            values[-1] += 1
        return values


def _other_seed(config: Config, world: World, changed: Mapping[str, object]) -> Config:
    return settings(config, world, {"train.seed": int(_is_last(world)), **changed})


def _slow_learning(config: Config, world: World, changed: Mapping[str, object]) -> Config:
    lr = settings(config, world, changed).optim.lr
    return settings(config, world, {**changed, "optim.lr": lr * SLOWED})


@torch.no_grad()
def _average(model: nn.Module, split: Split, *, peers: World, tolerance: float) -> Totals:
    """Average each batch, then the batches of each process, then the processes."""
    means = [
        count(model(windows), targets, tolerance=tolerance)[:2] / len(windows)
        for _, (windows, targets) in split.batches()
        if len(windows)
    ]
    mean = torch.stack(means).mean(dim=0) if means else torch.zeros(2, device=peers.device)
    loss, accuracy = (peers.sum(mean) / peers.size).tolist()
    return Totals(loss * split.plan.size, round(accuracy * split.plan.size), split.plan.size)


class StaleFolder(RunFolder):
    """A run folder that loads the checkpoint before the newest."""

    def loaded(self) -> Checkpoint:
        """See RunFolder."""
        return checkpoint.read(checkpoint.find(self.checkpoints)[1])


FAULTS = {
    "other-seed": Fault(
        "a process has another train.seed", "World", Parts(settings=_other_seed),
        least_processes=2,
    ),
    "damaged-message": Fault(
        "messages of 4 MiB and more arrive with a wrong value", "Collectives",
        Parts(world=DamagingWorld), least_processes=2,
    ),
    "other-code": Fault(
        "a process computes the recurrence with other code", ARITHMETIC,
        _rebuilt(_use_other_code), least_processes=2,
    ),
    "sample-twice": Fault(
        "a sample is drawn twice, and another never", "Data", _rebuilt(_draw_twice)
    ),
    "dropped-gradient": Fault(
        "a process's gradient is lost on its way", GRADIENTS, _after_step(_drop_gradient)
    ),
    "scaled-gradient": Fault(
        "the gradient is multiplied by the number of processes", GRADIENTS,
        _after_step(_scale_gradient), least_processes=2,
    ),
    "flipped-bit": Fault(
        "a bit of one process's weights flips", GRADIENTS, _before_step(_flip_bit)
    ),
    "averaged-metrics": Fault(
        "metrics are means of means, not totals divided once", "Metrics",
        Parts(totals_over=_average),
    ),
    "flipped-later": Fault(
        "a bit of one process's weights flips between two checkpoints", "Checkpoint",
        _before_step(_flip_between_checkpoints),
    ),
    "stale-checkpoint": Fault(
        "a run resumes with the weights of an older checkpoint", "Checkpoint",
        Parts(run_folder=StaleFolder),
    ),
    "slow-learning": Fault(
        f"all processes have a learning rate of {SLOWED:g} times what was meant", "Learning",
        Parts(settings=_slow_learning),
    ),
    "sleeps": Fault(
        f"a process sleeps {SLEEP_S:g} s in each step", "Speed", _before_step(_sleep),
        least_processes=2,
    ),
    "dies": Fault(
        "a process is killed in the middle of training", GRADIENTS, _before_step(_die),
        least_processes=2,
    ),
}  # fmt: skip
