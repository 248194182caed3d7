"""How an epoch is dealt out: which samples each process fetches for each step."""

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import BatchSampler, DataLoader, Dataset

from sinlstm_dist.plan import Plan


class StepSampler(BatchSampler):
    """Yields the batches of an epoch: for each fetch, one per process: rank 0's, rank 1's, ...

    A fetch brings a process its shares of one or more consecutive steps, as many as
    `FETCH_SAMPLES` allows: fetching a few samples costs the same as fetching a thousand. A batch
    is a list of one array of indices, which the data set fetches at once.

    Accelerate deals batches out in turn, batch i to process i % world_size. So each process gets
    its share of every step, even an empty one, and no share is repeated or dropped.

    `start(epoch, step)` sets the epoch that comes next and the step at which it begins.

    Args:
        plan: how the data set is cut and shared out.
        order: the sample indices of an epoch, as `plan.epoch_order` has them.
    """

    def __init__(self, plan: Plan, *, order: Callable[[int], np.ndarray]) -> None:
        self._plan, self._order = plan, order
        self.start(epoch=0, step=0)

    def start(self, *, epoch: int, step: int) -> None:
        """Begin the next pass at `step` of `epoch`, both counted from 0."""
        self._epoch, self._step = epoch, step

    def __len__(self) -> int:
        return len(fetches(self._plan, first_step=self._step)) * self._plan.world_size

    def __iter__(self) -> Iterator[list[np.ndarray]]:  # type: ignore[override]
        order, plan = self._order(self._epoch), self._plan
        for steps in fetches(plan, first_step=self._step):
            for rank in range(plan.world_size):
                shares = [order[slice(*plan.share(step, rank))] for step in steps]
                yield [shares[0] if len(shares) == 1 else np.concatenate(shares)]


FETCH_SAMPLES = 2048  # of all processes together; more would not make a sample cheaper


def fetches(plan: Plan, *, first_step: int = 0) -> list[range]:
    """The steps of an epoch from `first_step` on, grouped by fetch."""
    together = max(1, FETCH_SAMPLES // plan.global_batch_size)
    starts = range(first_step, plan.num_steps, together)
    return [range(start, min(start + together, plan.num_steps)) for start in starts]


def step_loader(dataset: Dataset[Any], sampler: StepSampler) -> DataLoader[Any]:
    """Make a loader that fetches each batch by one array of indices, not sample by sample."""
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=operator.itemgetter(0))


def step_batches(
    loader: Iterable[Any], plan: Plan, *, first_step: int = 0
) -> Iterator[tuple[int, Any]]:
    """Yield the number of each step from `first_step` on, and this process's share of its batch.

    Args:
        loader: a `step_loader`'s fetches for `plan.rank`, tuples of tensors (B, ...); its sampler
            was told to start at `first_step`.
        plan: the sampler's.
    """
    for steps, tensors in zip(fetches(plan, first_step=first_step), loader, strict=True):
        sizes = [sum(plan.piece_sizes(step)) for step in steps]
        shares = zip(*(tensor.split(sizes) for tensor in tensors), strict=True)
        yield from zip(steps, shares, strict=True)


@dataclass(frozen=True)
class Split:
    """The train or the test part of the data, dealt out to the processes.

    Args:
        data: a map-style data set that gives a batch for an array of indices.
        plan: cuts an epoch into steps and pieces.
        sampler: yields the indices of each fetch.
        loader: fetches this process's shares.
    """

    data: Any
    plan: Plan
    sampler: StepSampler
    loader: Iterable[Any]

    def batches(self, *, epoch: int = 0, first_step: int = 0) -> Iterator[tuple[int, Any]]:
        """Start an epoch, from 0, at a step; yields as `step_batches`."""
        self.sampler.start(epoch=epoch, step=first_step)
        return step_batches(self.loader, self.plan, first_step=first_step)


def deal_out(data: Any, plan: Plan, *, order: Callable[[int], np.ndarray]) -> Split:
    """Deal a data set out; arguments as for `StepSampler`. Accelerate prepares the loader."""
    sampler = StepSampler(plan, order=order)
    return Split(data, plan, sampler, step_loader(data, sampler))
