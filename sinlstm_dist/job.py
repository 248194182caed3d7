"""Everything that a run needs, built from its configuration and prepared by Accelerate."""

import functools
import hashlib
import itertools
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from sinlstm_dist import data, lstm, plan
from sinlstm_dist.checkpoint import Tensors
from sinlstm_dist.config import Config, ConfigError, Data, to_toml
from sinlstm_dist.data import Batch, StepSampler
from sinlstm_dist.gradient import DdpGradient, Gradient, OrderedGradient
from sinlstm_dist.model import Predictor
from sinlstm_dist.optim import SGD
from sinlstm_dist.plan import Plan
from sinlstm_dist.runtime import World


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
    fingerprint: str  # of the data
    preview: Callable[[], tuple[list[float], list[float]]]  # one cycle's targets and predictions


def build(config: Config, world: World) -> Job:
    """Build the model, the data and the optimizer, and let Accelerate prepare them.

    Raises:
        ConfigError: this configuration cannot run in this world.

    Collective: yes, to see that all processes build the same.
    """
    # Before anything that follows from the configuration: processes that differ would do
    # different collectives, and wait for each other.
    world.check_same(configuration=to_toml(config), versions=str(versions()))
    ordered = config.train.reduction == "ordered"
    if ordered and world.size > config.train.virtual_shards:
        raise ConfigError(
            f"{world.size} processes cannot share train.virtual_shards="
            f"{config.train.virtual_shards} pieces of a batch: use at most as many processes, or "
            f"set train.virtual_shards={world.size} or more (which makes it another run)"
        )
    model, recurrence = new_model(config, world)
    if config.train.init_from:
        weights: Tensors = {}
        world.on_main(_read_weights, Path(config.train.init_from), model, into=weights)
        model.load_state_dict(world.broadcast_tensors(weights))
    optimizer = SGD(model.parameters(), lr=config.optim.lr, momentum=config.optim.momentum)
    num_pieces = config.train.virtual_shards if ordered else world.size
    train_data, test_data = datasets(config.data)
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
    prepare = world.accelerator.prepare
    # Ordered reduction adds gradients itself: the model goes to its device without a wrapper.
    # Left to decide whether it should go there, Accelerate imports DTensor for the answer: 0.6 s.
    prepared = world.accelerator.prepare_model(
        model, device_placement=True, evaluation_mode=ordered
    )
    prepared_optimizer, train_loader, test_loader = prepare(
        optimizer,
        data.step_loader(train_data, train_sampler),
        data.step_loader(test_data, test_sampler),
    )
    # Accelerate's own step searches the disk twice for a package of other optimizers: 0.2 ms.
    optimizer = prepared_optimizer.optimizer
    make_gradient = OrderedGradient if ordered else DdpGradient
    fingerprint = train_data.fingerprint() + test_data.fingerprint()
    world.check_same(data=fingerprint, recurrence=recurrence.reason)
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
        fingerprint=hashlib.sha256(fingerprint.encode()).hexdigest(),
        preview=functools.partial(
            _preview, model, test_data, period=config.data.period, device=world.device
        ),
    )


PREVIEW_SAMPLES = 120  # at most; a picture in characters shows no more


@torch.no_grad()
def _preview(
    model: Predictor, test_data: data.SineDataset, *, period: float, device: torch.device
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
    batch_size = max(config.train.global_batch_size, data.FETCH_SAMPLES)
    return Plan(size, batch_size, num_pieces, world.size, world.rank)


def versions() -> dict[str, str]:
    """Versions of what decides the bits of a result."""
    packages = ("sinlstm-dist", "torch", "numpy", "accelerate")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def optimizer_tensors(job: Job) -> Tensors:
    """The optimizer's state, as `parameter.key`."""
    names = [name for name, _ in job.model.named_parameters()]
    return {
        f"{names[index]}.{key}": value
        for index, state in job.optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if value is not None
    }


def load_tensors(job: Job, weights: Mapping[str, torch.Tensor], optimizer: Tensors) -> None:
    """Set the model and the optimizer to what `optimizer_tensors` and the model once were."""
    job.model.load_state_dict(dict(weights))
    names = [name for name, _ in job.model.named_parameters()]
    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in optimizer.items():
        parameter, _, key = name.rpartition(".")
        states.setdefault(names.index(parameter), {})[key] = value
    groups = job.optimizer.state_dict()["param_groups"]
    job.optimizer.load_state_dict({"state": states, "param_groups": groups})


def describe(job: Job, config: Config, world: World) -> dict[str, str]:
    """What the start panel says: processes, devices and why, the batch algebra, the model."""
    edges = plan.bounds(job.train_plan.num_samples(0), job.train_plan.num_pieces)
    sizes = sorted({stop - start for start, stop in itertools.pairwise(edges)})
    parameters = sum(parameter.numel() for parameter in job.model.parameters())
    where = ", ".join(dict.fromkeys(world.hosts))
    why = "CUDA is available" if world.device.type == "cuda" else "no CUDA device"
    return {
        "processes": f"{world.size} on {where}, {world.device.type} ({why}), "
        f"{world.num_threads} thread{'s' * (world.num_threads > 1)} each",
        "data": f"{config.data.train_size:,} train and {config.data.test_size:,} test windows of "
        f"{config.data.window} steps, noise {config.data.noise:g}",
        "batch": f"{job.train_plan.num_samples(0):,} samples a step = {job.train_plan.num_pieces} "
        f"pieces of {' or '.join(map(str, sizes))}; {job.train_plan.num_steps:,} steps an epoch",
        "reduction": config.train.reduction,
        "model": f"{parameters:,} parameters, recurrence: {job.recurrence.name} "
        f"({job.recurrence.reason})",
        "run folder": config.output.dir,
    }


def datasets(settings: Data) -> tuple[data.SineDataset, data.SineDataset]:
    """Train and test windows; the test's differ by their phase and by their stream of noise."""
    make = functools.partial(
        data.SineDataset,
        window=settings.window,
        period=settings.period,
        noise=settings.noise,
        seed=settings.seed,
    )
    return (
        make(size=settings.train_size, stream=data.TRAIN_NOISE),
        make(size=settings.test_size, stream=data.TEST_NOISE, phase=settings.test_phase),
    )


def period_ago(settings: Data) -> data.SineDataset:
    """Windows of one value: the one observed a period before each test window's target."""
    steps = max(1, round(settings.period))
    return data.SineDataset(
        size=settings.test_size,
        window=1,
        period=settings.period,
        noise=settings.noise,
        seed=settings.seed,
        stream=data.TEST_NOISE,
        phase=settings.test_phase + settings.window - steps,
    )


def continuation(settings: Data, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The first test window (W,), and the `steps` values that follow it, or as many as there are.

    Both float32; noise is on the window only.
    """
    _, test = datasets(settings.model_copy(update={"test_size": steps}))
    return test[0][0][:, 0].numpy(), test[np.arange(steps)][1][:, 0].numpy()


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
    check_weights(weights, model, origin=f"train.init_from={path}")
    into.update({name: value.float() for name, value in weights.items()})


def check_weights(weights: Mapping[str, torch.Tensor], model: Predictor, *, origin: str) -> None:
    """Refuse weights that are not exactly the model's, by name and shape.

    Raises:
        ConfigError: names `origin` and every difference.
    """
    expected = {name: list(value.shape) for name, value in model.state_dict().items()}
    found = {name: list(value.shape) for name, value in weights.items()}
    if found != expected:
        differing = sorted(k for k in expected | found if expected.get(k) != found.get(k))
        parts = [
            f"{k} is {found.get(k, 'missing')}, needed {expected.get(k, 'not')}" for k in differing
        ]
        raise ConfigError(f"{origin}: weights of another model: {'; '.join(parts)}")
