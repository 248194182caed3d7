"""The batches of an epoch: which samples each process fetches for each step."""

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import BatchSampler, DataLoader, Dataset

from sinlstm_dist.data.sine import Batch
from sinlstm_dist.plan import Plan


class StepSampler(BatchSampler):
    """Yields the batches of an epoch: for each fetch one per process, in the order of ranks.

    A fetch brings a process its shares of one or more successive steps, as many as `FETCH_SAMPLES`
    allows: to fetch a few samples costs as much as to fetch a thousand. A batch is a list of one
    array of indices, which the data set fetches at once.

    Accelerate gives batch i to process i % world_size. So each process gets its share of every
    step, also an empty one; no share is repeated or dropped.

    `start(epoch, step)` sets the next epoch and the step in it to begin with.

    Args:
        plan: divides the data set into steps and shares.
        order: gives the sample indices of an epoch, like `plan.epoch_order`.
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


FETCH_SAMPLES = 2048  # of all processes together; with more, a sample would not get cheaper


def fetches(plan: Plan, *, first_step: int = 0) -> list[range]:
    """The steps of an epoch from `first_step` on, grouped into fetches."""
    together = max(1, FETCH_SAMPLES // plan.global_batch_size)
    starts = range(first_step, plan.num_steps, together)
    return [range(start, min(start + together, plan.num_steps)) for start in starts]


def step_loader(dataset: Dataset[Any], sampler: StepSampler) -> DataLoader[Any]:
    """A loader that fetches each batch at once, by an array of indices, not sample by sample."""
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=operator.itemgetter(0))


def step_batches(
    loader: Iterable[Batch], plan: Plan, *, first_step: int = 0
) -> Iterator[tuple[int, Batch]]:
    """Each step from `first_step` on, with this process's share of its batch.

    Args:
        loader: gives the fetches of `plan.rank`; its sampler starts at `first_step`.
        plan: of the sampler.
    """
    for steps, (windows, targets) in zip(fetches(plan, first_step=first_step), loader, strict=True):
        sizes = [sum(plan.piece_sizes(step)) for step in steps]
        yield from zip(
            steps, zip(windows.split(sizes), targets.split(sizes), strict=True), strict=True
        )
