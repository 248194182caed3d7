"""What a claim is: a check that every process makes, and what it is made with."""

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

# Noise makes every window another one, and the last batch is a partial one, in training and in
# testing. Only a larger world needs more pieces than the default.
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
# What a user's configuration decides about the code that runs. The rest decides how long.
PATH = (
    "model.hidden_size", "model.num_layers", "model.lstm", "data.window", "optim.momentum",
    "train.reduction", "train.virtual_shards",
)  # fmt: skip
LARGE = 1_000_000  # multiplications of a sample by a layer's weights, from which samples are fewer
FEW = {"data.train_size": 23, "data.test_size": 101, "train.global_batch_size": 10}


def settings(config: Config, world: World, **changed: object) -> Config:
    """The configuration to verify: `config`'s path through the code, on small data.

    Args:
        config: the user's.
        changed: `train__epochs=3` is `train.epochs`.
    """
    values = flat(config)
    chosen = {key: values[key] for key in PATH if is_set(config, key)}
    changes = {key.replace("__", "."): value for key, value in changed.items()}
    pieces = {"train.virtual_shards": max(Train().virtual_shards, world.size)}
    found = load_config(overrides={**SETTINGS, **pieces, **chosen, **changes})
    if is_large(found):
        found = load_config(overrides={**SETTINGS, **FEW, **pieces, **chosen, **changes})
    return found


def is_large(config: Config) -> bool:
    """Whether the model is so large that some steps are enough."""
    model = config.model
    return model.hidden_size**2 * model.num_layers * config.data.window > LARGE


@dataclass(frozen=True)
class Parts:
    """What the claims are checked on: the package's own parts, unless one is broken on purpose.

    Args:
        settings: the configuration that is verified, as a process has got it.
        build: `job.build`.
        totals_over: `reduction.totals_over`.
        run_folder: `run_folder.RunFolder`.
        world: what the processes say to each other through, made from the one they have joined.
    """

    settings: Callable[..., Config] = settings
    build: Callable[[Config, World], Job] = build
    totals_over: Callable[..., Totals] = totals_over
    run_folder: Callable[[Path], RunFolder] = RunFolder
    world: Callable[[World], World] = lambda world: world


@dataclass(frozen=True)
class Bench:
    """A check's surroundings: the processes, the parts under test, the user's configuration."""

    world: World
    parts: Parts
    config: Config = dataclasses.field(default_factory=Config)

    def settings(self, **changed: object) -> Config:
        """The configuration that is verified, with some keys changed (`train__epochs=3`)."""
        return self.parts.settings(self.config, self.world, **changed)

    def build(self, **changed: object) -> Job:
        """A job of that configuration. Collective: yes."""
        return self.parts.build(self.settings(**changed), self.world)

    def name(self, rank: int) -> str:
        """A process as a person finds it."""
        return f"rank {rank} on {self.world.hosts[rank]}"


@dataclass(frozen=True)
class Finding:
    """What one process saw.

    Args:
        measured: for people, in one line; rank 0's is shown.
        problems: why the claim does not hold; empty if it does. Those that not all processes see
            are shown with the names of those that do.
        figures: measurements by name, a row each.
        look_at: where to look, if the problems say better than the claim; "" if they say it.
    """

    measured: str
    problems: Sequence[str] = ()
    figures: Sequence[Mapping[str, float]] = ()
    look_at: str | None = None


@dataclass(frozen=True)
class Claim:
    """Something that must be true of a world that trains correctly.

    Args:
        name: a word or two.
        check: called by every process; what it raises ends the verification.
        look_at: where to look when it fails.
        needs: the claims without which a check says nothing.
    """

    name: str
    check: Callable[[Bench], Finding]
    look_at: str
    needs: Sequence[str] = ("World",)


@dataclass(frozen=True)
class Verdict:
    """What all processes together found of a claim.

    Args:
        result: "PASS", "FAIL", or "SKIP" if it depends on a claim that failed.
        seconds: that it took.
    """

    claim: str
    result: str
    measured: str
    problems: Sequence[str] = ()
    look_at: str = ""
    seconds: float = 0.0
    figures: Sequence[Mapping[str, float]] = ()
