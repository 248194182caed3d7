"""What every check gets, a `Bench`, and what it returns, a `Finding`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sinlstm_dist.config import Config, Train, flat, is_set, load_config
from sinlstm_dist.data.steps import FETCH_SAMPLES
from sinlstm_dist.job import Job, build
from sinlstm_dist.metrics import Totals
from sinlstm_dist.processes.world import World
from sinlstm_dist.reduction import totals_over
from sinlstm_dist.run.folder import RunFolder

# Noise makes all windows different. The last batch is a partial one, in training and in testing.
SETTINGS = {
    "data.train_size": 230,
    "data.test_size": FETCH_SAMPLES + 101,
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


def settings(config: Config, world: World, changed: Mapping[str, object]) -> Config:
    """The configuration to verify: the code path of `config`, on small data.

    Args:
        config: the user's.
        changed: other values of some keys, such as {"train.epochs": 3}.
    """
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


@dataclass(frozen=True)
class Parts:
    """The code under test: the package's own functions and classes. A fault replaces some of them.

    Args:
        settings: returns the configuration that this process verifies.
        build: `job.build`.
        totals_over: `reduction.totals_over`.
        run_folder: `run.folder.RunFolder`.
        world: returns the world for the checks, given the one that was joined.
    """

    settings: Callable[[Config, World, Mapping[str, object]], Config] = settings
    build: Callable[[Config, World], Job] = build
    totals_over: Callable[..., Totals] = totals_over
    run_folder: Callable[[Path], RunFolder] = RunFolder
    world: Callable[[World], World] = lambda world: world


@dataclass(frozen=True)
class Bench:
    """What a check works with: the processes, the parts under test, the user's configuration."""

    world: World
    parts: Parts
    config: Config = dataclasses.field(default_factory=Config)

    def settings(self, changed: Mapping[str, object] = {}) -> Config:
        """The configuration to verify, with other values of some keys."""
        return self.parts.settings(self.config, self.world, changed)

    def build(self, changed: Mapping[str, object] = {}) -> Job:
        """Build a job of that configuration. Collective: yes."""
        return self.parts.build(self.settings(changed), self.world)

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
    """

    measured: str
    problems: Sequence[str] = ()
    figures: Sequence[Mapping[str, float]] = ()
    look_at: str | None = None
