"""Everything that a run needs, built from its configuration and prepared by Accelerate."""

import copy
import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from sinlstm_dist import lstm, plan
from sinlstm_dist.agreement import Agreement, Samples, check_same_model
from sinlstm_dist.arithmetic import arithmetic, versions
from sinlstm_dist.config import SINE, Config, flat
from sinlstm_dist.data.series import SeriesDataset
from sinlstm_dist.data.sine import Batch
from sinlstm_dist.data.source import WindowDataset, datasets, describe_source
from sinlstm_dist.data.steps import FETCH_SAMPLES, StepSampler, step_loader
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.gradient import DdpGradient, Gradient, OrderedGradient
from sinlstm_dist.model import Predictor
from sinlstm_dist.optim import SGD, load_optimizer_tensors, optimizer_tensors, trial_step
from sinlstm_dist.plan import Plan
from sinlstm_dist.processes.world import World
from sinlstm_dist.run.checkpoint import Layout, Tensors, shapes, unlike


@dataclass(frozen=True)
class Job:
    """The prepared objects of a run; see `build`."""

    model: Predictor
    optimizer: torch.optim.Optimizer
    gradient: Gradient
    train_plan: Plan
    train_loader: DataLoader[Batch]
    train_sampler: StepSampler
    test_plan: Plan
    test_loader: DataLoader[Batch]
    recurrence: lstm.Choice
    agreement: Agreement
    fingerprint: str  # of the data
    layout: Layout  # of its checkpoints
    preview: Callable[[], tuple[list[float], list[float]]]  # one cycle's targets and predictions


def build(config: Config, world: World) -> Job:
    """Build the model, the data and the optimizer, and let Accelerate prepare them.

    Raises:
        ConfigError: this configuration cannot run in this world.

    Collective: yes, to see that all processes build the same.
    """
    # Before anything that follows from the configuration: processes that differ would do
    # different collectives, and wait for each other.
    world.check_same(**{key: str(value) for key, value in flat(config).items()}, **versions())
    ordered = config.train.reduction == "ordered"
    if ordered and world.size > config.train.virtual_shards:
        raise ConfigError(
            f"{world.size} processes cannot share train.virtual_shards="
            f"{config.train.virtual_shards} pieces of a batch: use at most as many processes, or "
            f"set train.virtual_shards={world.size} or more (which makes it another run)"
        )
    model, recurrence = new_model(config, world)
    train_data, test_data = datasets(config.data)
    fingerprint = train_data.fingerprint() + test_data.fingerprint()
    world.check_same(data=fingerprint)
    # Before anything is broadcast, which would hide that processes begin differently.
    own_arithmetic = arithmetic(recurrence, world)
    check_same_model(world, own_arithmetic, model, code=recurrence.reason)
    if config.train.init_from:
        weights: Tensors = {}
        world.on_main(_read_weights, Path(config.train.init_from), model, into=weights)
        model.load_state_dict(model.state_dict() | world.broadcast_tensors(weights))
    optimizer = new_optimizer(model, config)
    num_pieces = config.train.virtual_shards if ordered else world.size
    if model.scaling and isinstance(train_data, SeriesDataset):
        model.scaling.set(train_data.scale.mean, train_data.scale.std)
    batch_size = config.train.global_batch_size
    train_plan = Plan(len(train_data), batch_size, num_pieces, world.size, world.rank)
    test_plan = new_test_plan(len(test_data), config, world, num_pieces=num_pieces)
    train_sampler = StepSampler(
        train_plan,
        order=lambda epoch: plan.epoch_order(
            seed=config.train.seed,
            epoch=epoch,
            size=train_plan.size,
            sampling=config.train.sampling,
        ),
    )
    test_sampler = StepSampler(test_plan, order=lambda _: plan.in_order(test_plan.size))
    # Ordered reduction adds gradients itself: the model needs no wrapper.
    prepared = world.prepare_model(model, data_parallel=not ordered)
    prepared_optimizer, train_loader, test_loader = world.accelerator.prepare(
        optimizer,
        step_loader(train_data, train_sampler),
        step_loader(test_data, test_sampler),
    )
    # Accelerate's own step searches the disk twice for a package of other optimizers: 0.2 ms.
    optimizer = prepared_optimizer.optimizer
    make_gradient = OrderedGradient if ordered else DdpGradient
    return Job(
        model=model,
        optimizer=optimizer,
        gradient=make_gradient(
            prepared, plan=train_plan, world=world, tolerance=config.train.tolerance
        ),
        train_plan=train_plan,
        train_loader=train_loader,
        train_sampler=train_sampler,
        test_plan=test_plan,
        test_loader=test_loader,
        recurrence=recurrence,
        agreement=Agreement(
            model,
            optimizer,
            train=Samples(train_data, train_plan),
            test=Samples(test_data, test_plan),
            world=world,
            is_exact=ordered,
            tolerance=config.train.tolerance,
            arithmetic=own_arithmetic,
        ),
        fingerprint=hashlib.sha256(fingerprint.encode()).hexdigest(),
        layout=_layout(model, optimizer, train_plan),
        preview=functools.partial(
            _preview, model, test_data, period=config.data.period, device=world.device
        ),
    )


PREVIEW_SAMPLES = 120  # at most; a picture in characters shows no more


@torch.no_grad()
def _preview(
    model: Predictor, test_data: WindowDataset, *, period: float, device: torch.device
) -> tuple[list[float], list[float]]:
    """Targets and predictions of the first cycle of the test windows."""
    cycle = min(len(test_data), math.ceil(period))
    some = np.linspace(0, cycle - 1, min(cycle, PREVIEW_SAMPLES)).astype(np.int64)
    windows, targets = test_data[some]
    return targets[:, 0].tolist(), model(windows.to(device))[:, 0].tolist()


def new_test_plan(size: int, config: Config, world: World, *, num_pieces: int) -> Plan:
    """How `size` test samples are cut and shared out.

    No weight changes while testing, so as many samples make a batch as are fetched together.
    """
    batch_size = max(config.train.global_batch_size, FETCH_SAMPLES)
    return Plan(size, batch_size, num_pieces, world.size, world.rank)


def _layout(model: Predictor, optimizer: torch.optim.Optimizer, train_plan: Plan) -> Layout:
    """What this run's checkpoints hold, as a step on a copy shows it."""
    trial = copy.deepcopy((model, optimizer))
    trial_step(*trial)
    return Layout(
        weights=shapes(model.state_dict()),
        optimizer=shapes(optimizer_tensors(*trial)),
        num_steps=train_plan.num_steps,
        samples=train_plan.num_samples(0),
    )


def load_tensors(job: Job, weights: Mapping[str, torch.Tensor], optimizer: Tensors) -> None:
    """Set the model and the optimizer to what `optimizer_tensors` and the model once were."""
    job.model.load_state_dict(dict(weights))
    load_optimizer_tensors(job.model, job.optimizer, optimizer)


def describe(job: Job, config: Config, world: World) -> dict[str, str]:
    """What the start panel says: processes, devices and why, the batch algebra, the model."""
    sizes = sorted(set(job.train_plan.all_sizes(0)))
    parameters = sum(parameter.numel() for parameter in job.model.parameters())
    where = ", ".join(dict.fromkeys(world.hosts))
    why = "CUDA is available" if world.device.type == "cuda" else "no CUDA device"
    return {
        "processes": f"{world.size} on {where}, {world.device.type} ({why}), "
        f"{world.num_threads} thread{'s' * (world.num_threads > 1)} each",
        "data": f"{config.data.train_size:,} train and {config.data.test_size:,} test windows of "
        f"{config.data.window} steps, {describe_source(config.data)}",
        "batch": f"{job.train_plan.num_samples(0):,} samples a step = {job.train_plan.num_pieces} "
        f"pieces of {' or '.join(map(str, sizes))}; {job.train_plan.num_steps:,} steps an epoch",
        "reduction": config.train.reduction,
        "model": f"{parameters:,} parameters, recurrence: {job.recurrence.name} "
        f"({job.recurrence.reason})",
        "run folder": config.output.dir,
    }


def new_optimizer(model: Predictor, config: Config) -> SGD:
    """The optimizer of a run."""
    settings = config.optim
    return SGD(model.parameters(), lr=settings.lr, momentum=settings.momentum)


def new_model(config: Config, world: World) -> tuple[Predictor, lstm.Choice]:
    """The untrained model that every process starts from, on the CPU, and its recurrence.

    Raises:
        ConfigError: the recurrence that is asked for cannot be had.
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


def _read_weights(path: Path, model: Predictor, *, into: Tensors) -> None:
    """Read the weights in a .safetensors file, which must be exactly the model's."""
    if path.is_dir():
        raise ConfigError(f"train.init_from={path}: is a folder: name a .safetensors file in it")
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"train.init_from={path}: is not a readable .safetensors file: {error}"
        ) from error
    into.update({k: value.float() for k, value in weights.items() if not k.startswith("scaling.")})
    if problem := unlike(into, shapes(dict(model.named_parameters()))):
        raise ConfigError(f"train.init_from={path}: weights of another model: {problem}")
