"""Things that go wrong, to see the table go red before trusting it.

The package's own parts know nothing of faults: each is a part wrapped here, handed to the claims
in the place of the sound one. Unless it says otherwise it strikes the last process.
"""

import dataclasses
import itertools
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader

from sinlstm_dist.config import Config, did_you_mean
from sinlstm_dist.data.sine import Batch
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.gradient import Gradient, StepResult
from sinlstm_dist.job import Job, build
from sinlstm_dist.metrics import Totals
from sinlstm_dist.plan import Plan
from sinlstm_dist.processes.world import World
from sinlstm_dist.reduction import count
from sinlstm_dist.run import checkpoint
from sinlstm_dist.run.checkpoint import Checkpoint
from sinlstm_dist.run.folder import RunFolder
from sinlstm_dist.verify.claim import Parts, settings

SLEEP_S = 0.03  # a step; several times its arithmetic, through nn.LSTM too
FLIPS_AT, DIES_AT = 10, 5  # calls of a gradient
SLOWED = 1e-3  # the learning rate
LARGE_BYTES = 4 << 20  # far above what training this model sends


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Args:
        what: for people.
        claim: the one that it must turn red.
        parts: makes the parts that carry it.
        least_processes: with fewer it cannot happen.
    """

    what: str
    claim: str
    parts: Callable[[], Parts]
    least_processes: int = 1


def find(name: str) -> Fault:
    """The fault of that name.

    Raises:
        ConfigError: there is none; names the nearest, or those that there are.
    """
    if name not in FAULTS:
        known = f": the known faults are {', '.join(FAULTS)}"
        raise ConfigError(f"--inject {name}{did_you_mean(name, FAULTS) or known}")
    return FAULTS[name]


def _is_last(world: World) -> bool:
    return world.rank == world.size - 1


def _with_gradient(wrap: Callable[[Job, World], Gradient]) -> Parts:
    def build_broken(config: Config, world: World) -> Job:
        job = build(config, world)
        return dataclasses.replace(job, gradient=wrap(job, world))

    return Parts(build=build_broken)


def _before_step(strike: Callable[[Job, int], None]) -> Callable[[], Parts]:
    """`strike` before each gradient of the last process, told how many there have been."""

    def parts() -> Parts:
        calls = itertools.count(1)

        def wrap(job: Job, world: World) -> Gradient:
            def gradient(batch: Batch, *, step: int, stop: bool) -> StepResult:
                if _is_last(world):
                    strike(job, next(calls))
                return job.gradient(batch, step=step, stop=stop)

            return gradient

        return _with_gradient(wrap)

    return parts


def _after_step(spoil: Callable[[Job, World, Batch, int], None]) -> Callable[[], Parts]:
    """`spoil` the gradient of each step of every process, given its share and the step."""

    def wrap(job: Job, world: World) -> Gradient:
        def gradient(batch: Batch, *, step: int, stop: bool) -> StepResult:
            result = job.gradient(batch, step=step, stop=stop)
            spoil(job, world, batch, step)
            return result

        return gradient

    return lambda: _with_gradient(wrap)


def _drop_gradient(job: Job, world: World, batch: Batch, step: int) -> None:
    """Take out of the gradient what the last process's share has put into it."""
    parameters = list(job.model.parameters())
    error = (job.model(batch[0]) - batch[1]).square().sum() / job.train.plan.num_samples(step)
    for parameter, part in zip(parameters, torch.autograd.grad(error, parameters), strict=True):
        assert parameter.grad is not None
        parameter.grad -= world.sum(part if _is_last(world) else torch.zeros_like(part))


def _scale_gradient(job: Job, world: World, batch: Batch, step: int) -> None:
    for parameter in job.model.parameters():
        assert parameter.grad is not None
        parameter.grad *= world.size


def _flip_bit(job: Job, call: int, *, at: int = FLIPS_AT) -> None:
    if call == at:
        bits = next(job.model.parameters()).data.view(torch.int32)
        bits[0] ^= 1  # the last bit of a float


def _flip_between_checkpoints() -> Parts:
    """In a run that saves by steps, which is one of the claim about checkpoints."""
    calls = itertools.count(1)

    def build_broken(config: Config, world: World) -> Job:
        job = build(config, world)
        every_steps = config.checkpoint.every_steps

        def gradient(batch: Batch, *, step: int, stop: bool) -> StepResult:
            if every_steps and _is_last(world):
                _flip_bit(job, next(calls), at=every_steps + 1)
            return job.gradient(batch, step=step, stop=stop)

        return dataclasses.replace(job, gradient=gradient)

    return Parts(build=build_broken)


class OtherLstm(nn.LSTM):
    """nn.LSTM without its vendor's library, as it computes on another machine."""

    def forward(self, *arguments: Any) -> Any:
        """See nn.LSTM."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of TF32 on Intel's GPUs
            with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(False):
                return super().forward(*arguments)


def _other_code() -> Parts:
    def build_broken(config: Config, world: World) -> Job:
        job = build(config, world)
        if _is_last(world):
            job.model.fused, job.model.rnn.__class__ = False, OtherLstm
        return job

    return Parts(build=build_broken)


def _sleep(job: Job, call: int) -> None:
    time.sleep(SLEEP_S)


def _die(job: Job, call: int) -> None:
    if call == DIES_AT:
        os.kill(os.getpid(), signal.SIGKILL)


class DamagingWorld(World):
    """A world in which the last value of a large message arrives damaged at the last process."""

    def __init__(self, world: World) -> None:
        super().__init__(world.accelerator, hosts=world.hosts)
        self._wrappers = world._wrappers

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """See World."""
        return self._damaged(super().sum(values))

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """See World."""
        return self._damaged(super().gather(rows))

    def broadcast(self, values: torch.Tensor) -> torch.Tensor:
        """See World."""
        return self._damaged(super().broadcast(values))

    def _damaged(self, values: torch.Tensor) -> torch.Tensor:
        if _is_last(self) and values.nbytes >= LARGE_BYTES:
            values[-1] += 1
        return values


class TwiceLoader:
    """A loader whose first sample comes again in the second's place."""

    def __init__(self, loader: DataLoader[Batch]) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Batch]:
        for number, (windows, targets) in enumerate(self._loader):
            if number == 0:
                windows[1:2], targets[1:2] = windows[:1].clone(), targets[:1].clone()
            yield windows, targets


def _draw_twice() -> Parts:
    def build_broken(config: Config, world: World) -> Job:
        job = build(config, world)
        twice = cast(DataLoader[Batch], TwiceLoader(job.train.loader))
        train = dataclasses.replace(job.train, loader=twice)
        return dataclasses.replace(job, train=train) if _is_last(world) else job

    return Parts(build=build_broken)


def _other_seed() -> Parts:
    def settings_broken(config: Config, world: World, **changed: object) -> Config:
        return settings(config, world, **{"train__seed": int(_is_last(world)), **changed})

    return Parts(settings=settings_broken)


def _slow_learning() -> Parts:
    def settings_broken(config: Config, world: World, **changed: object) -> Config:
        meant = settings(config, world, **changed)
        return settings(config, world, **{**changed, "optim__lr": meant.optim.lr * SLOWED})

    return Parts(settings=settings_broken)


@torch.no_grad()
def _average(
    model: nn.Module, loader: Iterable[Batch], *, plan: Plan, peers: World, tolerance: float
) -> Totals:
    """The mean over processes of each one's mean over batches of the mean of a batch."""
    means = [
        totals[:2] / totals[2]
        for windows, targets in loader
        if len(totals := count(model(windows), targets, tolerance=tolerance)) and len(windows)
    ]
    mean = torch.stack(means).mean(dim=0) if means else torch.zeros(2, device=peers.device)
    loss, accuracy = (peers.sum(mean) / peers.size).tolist()
    return Totals(loss * plan.size, round(accuracy * plan.size), plan.size)


class StaleFolder(RunFolder):
    """A run folder that gives back the weights of the checkpoint before the newest."""

    def loaded(self) -> Checkpoint:
        """See RunFolder."""
        return checkpoint.read(checkpoint.find(self.checkpoints)[1])


ARITHMETIC, WEIGHTS = "Arithmetic", "Gradients and weights"
FAULTS = {
    "other-seed": Fault(
        "a process has another train.seed", "World", _other_seed, least_processes=2
    ),
    "damaged-message": Fault(
        "messages of 4 MiB and more arrive with a wrong value", "Collectives",
        lambda: Parts(world=DamagingWorld), least_processes=2,
    ),
    "other-code": Fault(
        "a process computes the recurrence with other code", ARITHMETIC, _other_code,
        least_processes=2,
    ),
    "sample-twice": Fault("a sample is drawn twice, and another never", "Data", _draw_twice),
    "dropped-gradient": Fault(
        "a process's gradient is lost on its way", WEIGHTS, _after_step(_drop_gradient)
    ),
    "scaled-gradient": Fault(
        "the gradient is multiplied by the number of processes",
        WEIGHTS, _after_step(_scale_gradient), least_processes=2,
    ),
    "flipped-bit": Fault("a bit of one process's weights flips", WEIGHTS, _before_step(_flip_bit)),
    "averaged-metrics": Fault(
        "metrics are means of means, not totals divided once", "Metrics",
        lambda: Parts(totals_over=_average),
    ),
    "flipped-later": Fault(
        "a bit of one process's weights flips between two checkpoints", "Checkpoint",
        _flip_between_checkpoints,
    ),
    "stale-checkpoint": Fault(
        "a run resumes with the weights of an older checkpoint", "Checkpoint",
        lambda: Parts(run_folder=StaleFolder),
    ),
    "slow-learning": Fault(
        f"all processes have a learning rate of {SLOWED:g} times what was meant", "Learning",
        _slow_learning,
    ),
    "sleeps": Fault(
        f"a process sleeps {SLEEP_S:g} s in each step", "Speed", _before_step(_sleep),
        least_processes=2,
    ),
    "dies": Fault(
        "a process is killed in the middle of training", WEIGHTS, _before_step(_die),
        least_processes=2,
    ),
}  # fmt: skip
