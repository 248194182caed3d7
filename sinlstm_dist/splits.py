"""A task's train and test samples, dealt out to the processes."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from sinlstm_dist.agreement import digest
from sinlstm_dist.blame import blamed
from sinlstm_dist.config import Config
from sinlstm_dist.data.steps import FETCH_BYTES, Split, deal_out, is_by_array, sample_bytes
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.plan import Plan, in_order, indices_at
from sinlstm_dist.processes.world import World
from sinlstm_dist.randomness import SAMPLES, TEST_SAMPLES, stream
from sinlstm_dist.task import Task

FINGERPRINT_SAMPLES = 64  # at most
TEST_BATCH = 2048  # samples, at least, by array; the last bits of a test loss depend on it


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


def splits(task: Task, config: Config, world: World) -> tuple[Split, Split]:
    """The train and the test samples; Accelerate has not prepared their loaders yet.

    Raises:
        ConfigError: the user's code fails.
    """
    settings = config.train
    num_pieces = settings.virtual_shards if settings.reduction == "ordered" else world.size
    size = len(task.train_data)
    plan = Plan(size, settings.global_batch_size, num_pieces, world.size, world.rank)
    with blamed(config.task.build):
        train = deal_out(
            task.train_data,
            plan,
            order=partial(indices_at, seed=settings.seed, size=size, sampling=settings.sampling),
            seed=stream(SAMPLES, settings.seed),
            num_workers=settings.num_workers,
        )
        return train, deal_out_test(task, config, world, num_pieces=num_pieces)


def deal_out_test(task: Task, config: Config, world: World, *, num_pieces: int) -> Split:
    """The test samples, dealt out; see `prepared` for the loader.

    No weight changes while testing, so a batch may be larger than in training.
    """
    batch_size = config.train.global_batch_size
    if is_by_array(task.test_data):
        batch_size = max(batch_size, TEST_BATCH)
    size = len(task.test_data)
    return deal_out(
        task.test_data,
        Plan(size, batch_size, num_pieces, world.size, world.rank),
        order=in_order,
        seed=stream(TEST_SAMPLES, config.train.seed),
        num_workers=config.train.num_workers,
    )


def prepared(split: Split, world: World) -> Split:
    """A split whose loader Accelerate has prepared: it brings this process's shares."""
    # On the CPU nothing has to move, but Accelerate would look through each fetch.
    moves = world.device.type != "cpu"
    loader = world.accelerator.prepare(split.loader, device_placement=[moves])
    return replace(split, loader=loader)


def prepared_test(split: Split, world: World) -> Split:
    """As `prepared`, for test samples: a few, by array, are fetched once and stay on the device."""
    split = prepared(split, world)
    if split.by_array and len(split.data) * sample_bytes(split.data) <= FETCH_BYTES:
        split = replace(split, loader=_FetchedOnce(split.loader))
    return split


class _FetchedOnce:
    """A loader of samples that are the same in every pass; it fetches them in the first."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self._fetched)

    @cached_property
    def _fetched(self) -> list[Any]:
        return list(self._loader)


def check_same_data(train: Split, test: Split, config: Config, world: World) -> str:
    """Return SHA-256 of some samples, hexadecimal, which is the same on all processes.

    Raises:
        ConfigError: it is not, or the user's code fails.

    Collective: yes.
    """
    with blamed(config.task.build):
        fingerprint = _fingerprint(train) + _fingerprint(test)
    world.check_same(data=fingerprint)
    return hashlib.sha256(fingerprint.encode()).hexdigest()


def _fingerprint(split: Split) -> str:
    """SHA-256 of some samples from all over a data set, hexadecimal."""
    if split.by_array:
        return str(split.data.fingerprint())
    size = len(split.data)
    some = np.linspace(0, size - 1, num=min(FINGERPRINT_SAMPLES, size)).astype(np.int64)
    return digest((size, split.some(some, [1] * len(some))))
