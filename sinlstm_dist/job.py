"""Everything that a run needs, built from its configuration and prepared by Accelerate."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from sinlstm_dist.agreement import Agreement, check_same_model
from sinlstm_dist.arithmetic import arithmetic, versions
from sinlstm_dist.blame import Refused, blamed
from sinlstm_dist.config import Config, flat
from sinlstm_dist.data.steps import Split
from sinlstm_dist.gradient import DdpGradient, Gradient, OrderedGradient
from sinlstm_dist.graphed_rows import GraphedRows, can_replay
from sinlstm_dist.initial_weights import read_weights
from sinlstm_dist.new_task import new_task
from sinlstm_dist.optimizers import (
    Update,
    check_state,
    copied,
    optimizer_tensors,
    trial_step,
)
from sinlstm_dist.piece_rows import PieceRows
from sinlstm_dist.plan import Plan
from sinlstm_dist.probe import Probed, probe
from sinlstm_dist.processes.world import World
from sinlstm_dist.run.layout import Layout, shapes
from sinlstm_dist.splits import (
    check_enough_pieces,
    check_same_data,
    deal_out_test,
    prepared,
    prepared_test,
    splits,
)
from sinlstm_dist.task import Baseline, Task


@dataclass(frozen=True)
class Job:
    """The prepared objects of a run; see `build`.

    Args:
        task: what is trained; its model is trained in place.
        train: the train samples, dealt out.
        test: the test samples, dealt out.
        fingerprint: SHA-256 of the data.
        rows: computes the rows of the model's pieces.
        baselines: the same for each of the task's baselines, by name, and its test samples.
        gradient: computes a step's gradient over all processes.
        update: makes an optimizer step along it.
        agreement: compares what the processes compute.
        layout: of the run's checkpoints.
    """

    task: Task
    train: Split
    test: Split
    fingerprint: str
    rows: PieceRows
    baselines: Mapping[str, tuple[PieceRows, Split]]
    gradient: Gradient
    update: Update
    agreement: Agreement
    layout: Layout


def build(config: Config, world: World, adapt: Callable[[Task], Task] = lambda task: task) -> Job:
    """Build the task, and let Accelerate prepare it.

    Args:
        adapt: changes the task before anything is made of it.

    Raises:
        ConfigError: this configuration cannot run in this world.

    Collective: yes, to check that all processes build the same.
    """
    _check_configuration(config, world)
    task, code = new_task(config, world)
    task = adapt(task)
    train, test = splits(task, config, world)
    fingerprint = check_same_data(train, test, config, world)
    kind = arithmetic(world, code, reduction=config.train.reduction)
    # Compare before anything is broadcast: that would hide that processes begin differently.
    check_same_model(world, kind, task.model, code=code)
    _take_weights(task, config, world)
    probed = probe(task, train, config, world) if config.task.build else Probed()
    rows = _new_rows(_rows_class(config, world), task, probed, config, world)
    layout = _layout(task, train.plan, build=config.task.build)
    gradient, train, test = _prepare(rows, train, test, config, world, probed)
    is_exact = config.train.reduction == "ordered"
    agreement = Agreement(
        rows, task.optimizer, train=train, test=test, world=world, is_exact=is_exact,
        arithmetic=kind,
    )  # fmt: skip
    return Job(
        task=task,
        train=train,
        test=test,
        fingerprint=fingerprint,
        rows=rows,
        baselines={
            name: _baseline(task, baseline, test, probed, config, world)
            for name, baseline in task.baselines.items()
        },
        gradient=gradient,
        update=new_update(task, rows, config, train.plan),
        agreement=agreement,
        layout=layout,
    )


def _check_configuration(config: Config, world: World) -> None:
    """Check that all processes have the same configuration, and that it fits their number.

    This comes first: with different configurations they would issue different collectives, and
    deadlock.
    """
    world.check_same(**{key: str(value) for key, value in flat(config).items()}, **versions())
    if config.train.reduction == "ordered":
        check_enough_pieces(config, world)


def _take_weights(task: Task, config: Config, world: World) -> None:
    """Take over the weights of `train.init_from`, and move the model to its device."""
    if config.train.init_from:
        path = Path(config.train.init_from)
        weights = world.tensors_from_main(read_weights, path, task.model)
        task.model.load_state_dict(task.model.state_dict() | weights)
    world.prepare_model(task.model)
    task.model.train()


def _rows_class(config: Config, world: World) -> type[PieceRows]:
    # A user's model may draw random numbers or branch on its data: a graph would repeat both.
    has_graphs = can_replay(world.device) and not config.task.build
    return GraphedRows if has_graphs else PieceRows


def _new_rows(
    rows_class: type[PieceRows], task: Task, probed: Probed, config: Config, world: World
) -> PieceRows:
    num_threads = world.num_threads if probed.fits_threads else 1
    return rows_class(
        task, probed.counts, seed=config.train.seed, device=world.device, num_threads=num_threads
    )


def _baseline(
    task: Task,
    baseline: nn.Module | Baseline,
    test: Split,
    probed: Probed,
    config: Config,
    world: World,
) -> tuple[PieceRows, Split]:
    """What computes a baseline's rows, and its test samples; `test` has those of the model."""
    if isinstance(baseline, nn.Module):
        baseline = Baseline(baseline, task.test_data)
    task = replace(task, model=baseline.model, test_data=baseline.test_data, rows=None)
    if task.test_data is not test.data:
        test = prepared(deal_out_test(task, config, world, num_pieces=test.plan.num_pieces), world)
    return _new_rows(PieceRows, task, probed, config, world), test


def _prepare(
    rows: PieceRows, train: Split, test: Split, config: Config, world: World, probed: Probed
) -> tuple[Gradient, Split, Split]:
    """Let Accelerate prepare the optimizer, the loaders and, for "ddp", the model's wrapper."""
    # Of the optimizer only its state is moved to the device. Accelerate's own step searches the
    # disk twice for a package of other optimizers: 0.2 ms.
    world.accelerator.prepare(rows.task.optimizer)
    train, test = prepared(train, world), prepared_test(test, world)
    if config.train.reduction == "ordered":  # it adds gradients itself: the model needs no wrapper
        return OrderedGradient(rows, plan=train.plan, peers=world), train, test
    wrapped = world.wrap_model(rows.model, find_unused=probed.has_unused)
    gradient = DdpGradient(
        rows,
        wrapped=wrapped,
        plan=train.plan,
        world=world,
        spare=lambda: world.to_device(train.some(np.arange(1), [1]))[0],
    )
    return gradient, train, test


def _layout(task: Task, plan: Plan, *, build: str) -> Layout:
    """The layout of this run's checkpoints, learned from a step of a copy."""
    weights, state = task.model.state_dict(), optimizer_tensors(task.model, task.optimizer)
    with blamed(build):
        trial = copied(task.model, task.optimizer)
        trial_step(*trial)
        check_state(*trial)
    return Layout(
        weights=shapes(weights),
        buffers=weights.keys() - dict(task.model.named_parameters(remove_duplicate=False)).keys(),
        optimizer=shapes(optimizer_tensors(*trial)),
        optimizer_at_first=shapes(state),
        may_lack_state=bool(build),
        num_steps=plan.num_steps,
        samples_per_step=plan.num_samples(0),
        lr_factor=task.lr_factor,
    )


def new_update(task: Task, rows: PieceRows, config: Config, plan: Plan) -> Update:
    """What makes the optimizer's steps in a run."""
    num_steps, lr_factor = config.train.epochs * plan.num_steps, task.lr_factor

    def factor(step: int) -> float:
        with blamed(config.task.build, at=lr_factor):
            value = float(lr_factor(step, num_steps)) if lr_factor else 1.0
            if not (math.isfinite(value) and value >= 0):
                raise Refused(
                    f"lr_factor({step}, {num_steps}) is {value}: a finite number, not below 0, is "
                    "needed"
                )
        return value

    factor(0)  # a mistake is told before the first step
    return Update(
        task.optimizer,
        rows.parameters,
        lr_factor=factor if lr_factor else None,
        clip_norm=task.clip_norm,
    )
