"""Faults to inject, which show that a check can fail.

A fault replaces some of the `Parts` that are checked; the package itself knows nothing of faults.
Most faults strike on the last process only.
"""

import dataclasses
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sinlstm_dist.config import Config
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.gradient import StepResult
from sinlstm_dist.job import Job, build
from sinlstm_dist.piece_rows import Place
from sinlstm_dist.problems import did_you_mean
from sinlstm_dist.processes.world import World
from sinlstm_dist.verify.bench import Parts, settings
from sinlstm_dist.verify.broken import (
    SLEEP_S,
    DamagingWorld,
    OtherLstm,
    OtherRows,
    RoundedRows,
    SlowGradient,
    StaleFolder,
    StruckGradient,
    TwiceSampler,
    averaged_totals,
    break_rows,
    is_last,
)
from sinlstm_dist.verify.claims import ARITHMETIC, GRADIENTS

FLIPS_AT, DIES_AT = 10, 5  # calls of a job's gradient
SLOWED = 1e-3  # factor of the learning rate


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


def _rebuilt(change: Callable[[Job, Config, World], Job]) -> Parts:
    """Parts that build a job as usual and then change it."""
    return Parts(
        build=lambda config, world, adapt: change(build(config, world, adapt), config, world)
    )


def _before_step(strike: Callable[[Job, Config, int], None]) -> Parts:
    """Call `strike` on the last process before each gradient, numbered from 1 in each job."""

    def change(job: Job, config: Config, world: World) -> Job:
        if not is_last(world):
            return job
        struck = StruckGradient(job.gradient, before=lambda call: strike(job, config, call))
        return dataclasses.replace(job, gradient=struck)

    return _rebuilt(change)


def _after_step(spoil: Callable[[Job, World, Any, Place, StepResult], None]) -> Parts:
    """Call `spoil` on every process after each gradient, with its share, place and result."""

    def change(job: Job, config: Config, world: World) -> Job:
        def after(batch: Any, place: Place, result: StepResult) -> None:
            spoil(job, world, batch, place, result)

        return dataclasses.replace(job, gradient=StruckGradient(job.gradient, after=after))

    return _rebuilt(change)


def _drop_gradient(job: Job, world: World, batch: Any, place: Place, result: StepResult) -> None:
    """Subtract the contribution of the last process from the gradient."""
    rows, plan = job.rows, job.train.plan
    sizes = plan.piece_sizes(place.step)
    parts = torch.zeros(len(sizes), rows.width, device=world.device)
    if is_last(world) and any(sizes):
        share = batch if rows.is_whole == job.gradient.is_whole else batch[0]
        here = dataclasses.replace(place, first=plan.owned(plan.rank).start)
        rows.gradients(share, sizes=sizes, place=here, out=parts)
    lost = world.sum(parts.sum(dim=0)) / result.totals.divided_by
    start = 0
    for parameter in rows.parameters:
        part = lost[start : start + parameter.numel()]
        start += parameter.numel()
        if parameter.grad is not None:
            parameter.grad -= part.view_as(parameter)


def _scale_gradient(job: Job, world: World, batch: Any, place: Place, result: StepResult) -> None:
    for parameter in job.rows.parameters:
        if parameter.grad is not None:
            parameter.grad *= world.size


def _flip_bit(job: Job, config: Config, call: int) -> None:
    if call == FLIPS_AT:
        _flip_last_bit(job)


def _flip_between_checkpoints(job: Job, config: Config, call: int) -> None:
    """Flip only in a run that saves by steps, which the check of checkpoints makes."""
    if config.checkpoint.every_steps and call == config.checkpoint.every_steps + 1:
        _flip_last_bit(job)


def _flip_last_bit(job: Job) -> None:
    bits = next(job.task.model.parameters()).data.view(torch.int32)
    bits[0] ^= 1


def _slow_down(job: Job, config: Config, world: World) -> Job:
    return dataclasses.replace(job, gradient=SlowGradient(job.gradient)) if is_last(world) else job


def _die(job: Job, config: Config, call: int) -> None:
    if call == DIES_AT:
        os.kill(os.getpid(), signal.SIGKILL)


def _use_other_code(job: Job, config: Config, world: World) -> Job:
    if not is_last(world):
        return job
    if config.task.build:
        return _round_otherwise(job, config, world)
    model: Any = job.task.model
    model.rnn.__class__ = OtherLstm
    break_rows(job.rows, OtherRows)
    return job


def _round_otherwise(job: Job, config: Config, world: World) -> Job:
    break_rows(job.rows, RoundedRows)
    return job


def _draw_twice(job: Job, config: Config, world: World) -> Job:
    job.train.sampler.__class__ = TwiceSampler
    return job


def _other_seed(config: Config, world: World, changed: Mapping[str, object]) -> Config:
    return settings(config, world, {"train.seed": int(is_last(world)), **changed})


def _slow_learning(config: Config, world: World, changed: Mapping[str, object]) -> Config:
    usual = settings(config, world, changed)
    if config.task.build:  # Learning trains the built-in model
        return usual
    lr = usual.optim.lr
    return settings(config, world, {**changed, "optim.lr": lr * SLOWED})


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
        Parts(totals_over=averaged_totals),
    ),
    "flipped-later": Fault(
        "a bit of one process's weights flips between two checkpoints", "Checkpoint",
        _before_step(_flip_between_checkpoints),
    ),
    "stale-checkpoint": Fault(
        "a run resumes with the weights of an older checkpoint", "Checkpoint",
        Parts(run_folder=StaleFolder),
    ),
    "other-rounding": Fault(
        "all processes round gradients otherwise, as another compiler may let them", "Golden",
        _rebuilt(_round_otherwise),
    ),
    "slow-learning": Fault(
        f"all processes have a learning rate of {SLOWED:g} times what was meant", "Learning",
        Parts(settings=_slow_learning),
    ),
    "sleeps": Fault(
        f"a process sleeps {SLEEP_S:g} s or more in each step", "Speed", _rebuilt(_slow_down),
        least_processes=2,
    ),
    "dies": Fault(
        "a process is killed in the middle of training", GRADIENTS, _before_step(_die),
        least_processes=2,
    ),
}  # fmt: skip
