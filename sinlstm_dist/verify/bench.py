"""What every check gets, a `Bench`, and what it returns, a `Finding`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Subset

from sinlstm_dist.config import Config, Train, flat, is_set, load_config, override
from sinlstm_dist.job import Job, build
from sinlstm_dist.metrics import Totals
from sinlstm_dist.processes.world import World
from sinlstm_dist.reduction import totals_over
from sinlstm_dist.run.folder import RunFolder
from sinlstm_dist.splits import TEST_BATCH
from sinlstm_dist.task import Task
from sinlstm_dist.verify.record import Record

Adapt = Callable[[Task], Task]

# Noise makes all windows different. The last batch is a partial one, in training and in testing.
SETTINGS = {
    "data.train_size": 230,
    "data.test_size": TEST_BATCH + 101,
    "data.window": 20,
    "data.noise": 0.02,
    "train.global_batch_size": 100,
    "train.epochs": 2,
    "optim.lr": 0.1,
    "optim.momentum": 0.9,
}
# The keys of the user's configuration that decide which code runs.
PATH = (
    "model.hidden_size", "model.num_layers", "model.lstm", "data.window", "optim.momentum",
    "train.reduction", "train.virtual_shards",
)  # fmt: skip
LARGE = 1_000_000  # multiplications per sample by a layer's weights; above, fewer samples are used
FEW = {"data.train_size": 23, "data.test_size": 101, "train.global_batch_size": 10}
# Of the user's own task: all that decides a step, but not how long a run is.
OWN_SETTINGS = {
    "train.epochs": 12,  # steps enough for any check
    "train.sampling": "permutation", "train.target_accuracy": 0.0,
    "checkpoint.every_epochs": 10, "checkpoint.every_steps": 0, "checkpoint.keep": 2,
    "checkpoint.resume": "auto", "output.plots": False, "output.trackers": [],
}  # fmt: skip


def settings(config: Config, world: World, changed: Mapping[str, object]) -> Config:
    """The configuration to verify: the code path of `config`, on small data.

    Args:
        config: the user's.
        changed: other values of some keys, such as {"train.epochs": 3}.
    """
    if config.task.build:
        return override(config, {**OWN_SETTINGS, **changed})
    values = flat(config)
    chosen = {key: values[key] for key in PATH if is_set(config, key)}
    pieces = {"train.virtual_shards": max(Train().virtual_shards, world.size)}
    small = load_config(overrides={**SETTINGS, **pieces, **chosen, **changed})
    if is_large(small):
        return load_config(overrides={**SETTINGS, **FEW, **pieces, **chosen, **changed})
    return small


def is_large(config: Config) -> bool:
    """Whether the model is so large that a few steps must do."""
    model = config.model
    return model.hidden_size**2 * model.num_layers * config.data.window > LARGE


def few_samples(task: Task, *, batch_size: int) -> Task:
    """The task with samples from all over its data: for three steps, the last a partial one."""

    def some(data: Any, number: int) -> Subset[Any]:
        number = min(number, len(data))
        return Subset(data, np.linspace(0, len(data) - 1, number).astype(np.int64).tolist())

    partial = batch_size // 3 + 1
    return dataclasses.replace(
        task,
        train_data=some(task.train_data, 2 * batch_size + partial),
        test_data=some(task.test_data, batch_size + partial),
    )


@dataclass(frozen=True)
class Parts:
    """The code under test: the package's own functions and classes. A fault replaces some of them.

    Args:
        settings: returns the configuration that this process verifies.
        build: `job.build`, which is given a function that changes the task.
        totals_over: `reduction.totals_over`.
        run_folder: `run.folder.RunFolder`.
        world: returns the world for the checks, given the one that was joined.
    """

    settings: Callable[[Config, World, Mapping[str, object]], Config] = settings
    build: Callable[[Config, World, Adapt], Job] = build
    totals_over: Callable[..., Totals] = totals_over
    run_folder: Callable[[Path], RunFolder] = RunFolder
    world: Callable[[World], World] = lambda world: world


@dataclass(frozen=True)
class Asked:
    """What the user asks for, besides a configuration and a fault.

    Args:
        processes: how many there must be; None if any number will do.
        record: the file to write digests to, or None.
        against: the file with digests to compare with, or None.
    """

    processes: int | None = None
    record: Path | None = None
    against: Path | None = None


@dataclass(frozen=True)
class Bench:
    """What a check works with.

    Args:
        world: the processes.
        parts: under test.
        config: the user's configuration.
        asked: what else the user asks for.
        recorded: what `asked.against` holds.
    """

    world: World
    parts: Parts
    config: Config = dataclasses.field(default_factory=Config)
    asked: Asked = Asked()
    recorded: Record | None = None

    def settings(self, changed: Mapping[str, object] = {}) -> Config:
        """The configuration to verify, with other values of some keys."""
        return self.parts.settings(self.config, self.world, changed)

    @property
    def is_own(self) -> bool:
        """Whether the task is the user's own."""
        return bool(self.config.task.build)

    @property
    def is_one(self) -> bool:
        """Whether there is one process, which has nothing to compare itself with."""
        return self.world.size == 1

    @property
    def built_in(self) -> "Bench":
        """A bench for the built-in task, with the user's `[train]`."""
        return dataclasses.replace(self, config=Config(train=self.config.train))

    def build(self, changed: Mapping[str, object] = {}, *, adapt: Adapt = lambda task: task) -> Job:
        """Build a job of that configuration, with few samples.

        Args:
            adapt: changes the task first.

        Collective: yes.
        """
        config = self.settings(changed)

        def adapted(task: Task) -> Task:
            if self.is_own:
                task = few_samples(task, batch_size=config.train.global_batch_size)
            return adapt(task)

        return self.parts.build(config, self.world, adapted)

    def build_whole(self) -> Job:
        """Build a job of the user's configuration as it is. Collective: yes."""
        return self.parts.build(self.config, self.world, lambda task: task)

    def name(self, rank: int) -> str:
        """A process as the user knows it: `rank 1 on node2`."""
        return f"rank {rank} on {self.world.hosts[rank]}"


@dataclass(frozen=True)
class Finding:
    """The result of a check on one process.

    Args:
        measured: one line for the table, which shows that of rank 0.
        problems: why the claim does not hold; empty if it holds. A problem that only some
            processes have is shown with their names.
        figures: rows of measurements by name.
        look_at: where to look, if the claim's own advice does not fit; "" for no advice.
        applies: whether there is something to check with these processes; if not, `measured` says
            why, and the claim is skipped without harm.
    """

    measured: str
    problems: Sequence[str] = ()
    figures: Sequence[Mapping[str, float]] = ()
    look_at: str | None = None
    applies: bool = True
