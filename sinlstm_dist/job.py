"""Everything that a run needs, built from its configuration and prepared by Accelerate."""

import copy
import functools
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import nn

from sinlstm_dist import lstm
from sinlstm_dist.agreement import Agreement, check_same_model
from sinlstm_dist.arithmetic import arithmetic, versions
from sinlstm_dist.config import SINE, Config, flat
from sinlstm_dist.data.series import SeriesDataset
from sinlstm_dist.data.source import WindowDataset, datasets
from sinlstm_dist.data.steps import FETCH_SAMPLES, Split, deal_out
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.gradient import DdpGradient, Gradient, OrderedGradient
from sinlstm_dist.model import Predictor
from sinlstm_dist.optim import SGD, optimizer_tensors, trial_step
from sinlstm_dist.plan import Plan, epoch_order, in_order
from sinlstm_dist.processes.world import World
from sinlstm_dist.randomness import SAMPLES, TEST_SAMPLES, stream
from sinlstm_dist.run.checkpoint import Layout, shapes
from sinlstm_dist.trained import read_weights

PREVIEW_SAMPLES = 120  # at most; a picture in characters shows no more


@dataclass(frozen=True)
class Job:
    """The prepared objects of a run; see `build`.

    Args:
        train: the train windows, dealt out.
        test: the test windows, dealt out.
        fingerprint: SHA-256 of the data.
        model: trained in place.
        recurrence: the implementation of the model's recurrence.
        optimizer: of the model's parameters.
        gradient: computes a step's gradient over all processes.
        agreement: compares what the processes compute.
        layout: of the run's checkpoints.
        preview: gives one cycle's targets and predictions.
    """

    train: Split
    test: Split
    fingerprint: str
    model: Predictor
    recurrence: lstm.Choice
    optimizer: torch.optim.Optimizer
    gradient: Gradient
    agreement: Agreement
    layout: Layout
    preview: Callable[[], tuple[list[float], list[float]]]


def build(config: Config, world: World) -> Job:
    """Build the data, the model and the optimizer, and let Accelerate prepare them.

    Raises:
        ConfigError: this configuration cannot run in this world.

    Collective: yes, to check that all processes build the same.
    """
    _check_configuration(config, world)
    train, test = _splits(config, world)
    fingerprint = _check_same_data(train, test, world)
    model, recurrence = _first_model(config, world, train)
    optimizer, gradient, train, test = _prepare(model, train, test, config, world)
    return Job(
        train=train,
        test=test,
        fingerprint=fingerprint,
        model=model,
        recurrence=recurrence,
        optimizer=optimizer,
        gradient=gradient,
        agreement=Agreement(
            model,
            optimizer,
            train=train,
            test=test,
            world=world,
            is_exact=config.train.reduction == "ordered",
            tolerance=config.train.tolerance,
            arithmetic=arithmetic(recurrence, world),
        ),
        layout=_layout(model, optimizer, train.plan),
        preview=functools.partial(_preview, model, test.data, period=config.data.period),
    )


def _check_configuration(config: Config, world: World) -> None:
    """Check that all processes have the same configuration, and that it fits their number.

    This comes first: with different configurations they would issue different collectives, and
    deadlock.
    """
    world.check_same(**{key: str(value) for key, value in flat(config).items()}, **versions())
    if config.train.reduction == "ordered":
        check_enough_pieces(config, world)


def check_enough_pieces(config: Config, world: World) -> None:
    """Refuse a world with more processes than a batch has pieces.

    Raises:
        ConfigError: it has.
    """
    if world.size > config.train.virtual_shards:
        raise ConfigError(
            f"{world.size} processes cannot share train.virtual_shards="
            f"{config.train.virtual_shards} pieces of a batch: use at most as many processes, or "
            f"train with train.virtual_shards={world.size} or more (which makes it another run)"
        )


def _splits(config: Config, world: World) -> tuple[Split, Split]:
    """The train and test windows, dealt out; their loaders are not prepared."""
    settings = config.train
    train, test = datasets(config.data)
    num_pieces = settings.virtual_shards if settings.reduction == "ordered" else world.size
    plan = Plan(len(train), settings.global_batch_size, num_pieces, world.size, world.rank)

    def order(epoch: int) -> np.ndarray:
        return epoch_order(
            seed=settings.seed, epoch=epoch, size=plan.size, sampling=settings.sampling
        )

    fetched = {"whole": True, "by_array": True}
    test_plan = new_test_plan(len(test), config, world, num_pieces=num_pieces)
    return (
        deal_out(train, plan, order=order, seed=stream(SAMPLES, settings.seed), **fetched),
        deal_out(
            test,
            test_plan,
            order=lambda _: in_order(test_plan.size),
            seed=stream(TEST_SAMPLES, settings.seed),
            **fetched,
        ),
    )


def new_test_plan(size: int, config: Config, world: World, *, num_pieces: int) -> Plan:
    """Cut `size` test samples into steps and pieces.

    No weight changes while testing, so each batch holds as many samples as one fetch brings.
    """
    batch_size = max(config.train.global_batch_size, FETCH_SAMPLES)
    return Plan(size, batch_size, num_pieces, world.size, world.rank)


def _check_same_data(train: Split, test: Split, world: World) -> str:
    """Return the fingerprint of the data, which is the same on all processes. Collective: yes."""
    fingerprint = train.data.fingerprint() + test.data.fingerprint()
    world.check_same(data=fingerprint)
    return hashlib.sha256(fingerprint.encode()).hexdigest()


def _first_model(config: Config, world: World, train: Split) -> tuple[Predictor, lstm.Choice]:
    """The model as the first step of the run finds it, and its recurrence.

    Collective: yes, to check that the initial weights are the same on all processes.
    """
    model, recurrence = new_model(config, world)
    # Compare before anything is broadcast: that would hide that processes begin differently.
    check_same_model(world, arithmetic(recurrence, world), model, code=recurrence.reason)
    if config.train.init_from:
        path = Path(config.train.init_from)
        weights = world.tensors_from_main(read_weights, path, model)
        model.load_state_dict(model.state_dict() | weights)
    if model.scaling and isinstance(train.data, SeriesDataset):
        model.scaling.set(train.data.scale.mean, train.data.scale.std)
    return model, recurrence


def _prepare(
    model: Predictor, train: Split, test: Split, config: Config, world: World
) -> tuple[torch.optim.Optimizer, Gradient, Split, Split]:
    """Let Accelerate prepare the model, its optimizer and the loaders."""
    is_ordered = config.train.reduction == "ordered"
    # Ordered reduction adds gradients itself: the model needs no wrapper.
    wrapped: nn.Module = world.prepare_model(model, data_parallel=not is_ordered)
    optimizer, train_loader, test_loader = world.accelerator.prepare(
        new_optimizer(model, config), train.loader, test.loader
    )
    make_gradient = OrderedGradient if is_ordered else DdpGradient
    return (
        # Accelerate's own step searches the disk twice for a package of other optimizers: 0.2 ms.
        optimizer.optimizer,
        make_gradient(wrapped, plan=train.plan, peers=world, tolerance=config.train.tolerance),
        replace(train, loader=train_loader),
        replace(test, loader=test_loader),
    )


@torch.no_grad()
def _preview(
    model: Predictor, data: WindowDataset, *, period: float
) -> tuple[list[float], list[float]]:
    """Targets and predictions of the first cycle of the test windows."""
    cycle = min(len(data), math.ceil(period))
    some = np.linspace(0, cycle - 1, min(cycle, PREVIEW_SAMPLES)).astype(np.int64)
    windows, targets = data[some]
    device = model.output_layer.weight.device
    return targets[:, 0].tolist(), model(windows.to(device))[:, 0].tolist()


def _layout(model: Predictor, optimizer: torch.optim.Optimizer, train_plan: Plan) -> Layout:
    """The layout of this run's checkpoints, learned from a step of a copy."""
    trial = copy.deepcopy((model, optimizer))
    trial_step(*trial)
    return Layout(
        weights=shapes(model.state_dict()),
        optimizer=shapes(optimizer_tensors(*trial)),
        num_steps=train_plan.num_steps,
        samples_per_step=train_plan.num_samples(0),
    )


def new_optimizer(model: Predictor, config: Config) -> SGD:
    """The optimizer of a run."""
    settings = config.optim
    return SGD(model.parameters(), lr=settings.lr, momentum=settings.momentum)


def new_model(config: Config, world: World) -> tuple[Predictor, lstm.Choice]:
    """The untrained model that every process starts from, on the CPU, and its recurrence.

    Raises:
        ConfigError: `model.lstm` asks for a recurrence that is not available here.
    """
    try:
        choice = lstm.choose(
            config.model.lstm,
            device_type=world.device.type,
            input_size=1,
            hidden_size=config.model.hidden_size,
            num_layers=config.model.num_layers,
        )
    except ValueError as error:
        raise ConfigError(f'model.lstm="{config.model.lstm}": {error}') from error
    set_seed(config.train.seed)  # the same weights on every process
    model = Predictor(
        hidden_size=config.model.hidden_size,
        num_layers=config.model.num_layers,
        scaled=config.data.source != SINE,
        fused=choice.name == "fused",
    )
    return model, choice
