"""How an epoch is dealt out: which samples each process fetches for each step."""

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, default_collate

from sinlstm_dist.data.workers import from_loader, worker_settings
from sinlstm_dist.plan import Plan
from sinlstm_dist.randomness import seed_all, stream

FETCH_BYTES = 4 << 20  # of all processes together; with more, a sample costs the same (2026-11)
_CPU = torch.device("cpu")


class Order(Protocol):
    """The order of an epoch's samples; see `plan.indices_at`."""

    def __call__(self, positions: np.ndarray, *, epoch: int) -> np.ndarray:
        """The sample indices (N,) at positions (N,) of the order of `epoch`."""
        ...


@dataclass(frozen=True)
class Share:
    """The samples that a process fetches at once.

    Args:
        epoch: counted from 0.
        steps: in the epoch, consecutive, at least one.
        plan: of the process.
    """

    epoch: int
    steps: range
    plan: Plan

    @property
    def positions(self) -> np.ndarray:
        """(N,) int64, in the epoch's order."""
        plan, last = self.plan, np.arange(*self.plan.span(self.steps[-1]))
        first = np.arange(*plan.span(self.steps[0]))
        offsets = plan.global_batch_size * np.arange(len(self.steps) - 1)
        return np.append(first + offsets[:, None], last)  # only the last step may differ


class StepSampler(BatchSampler):
    """Yields the shares of an epoch: for each fetch, one per process: rank 0's, rank 1's, ...

    A fetch brings a process its shares of one or more consecutive steps, because indexing by an
    array costs about the same for a few samples as for a thousand.

    Accelerate deals batches out in turn, batch i to process i % world_size. So each process gets
    its share of every step, even an empty one, and no share is repeated or dropped. A batch is a
    list of one Share, which is the data set's index.

    `start(epoch, step)` sets the epoch that comes next and the step at which it begins.

    Args:
        plan: how the data set is cut and shared out.
        steps_per_fetch: the last fetch may have fewer.
    """

    def __init__(self, plan: Plan, *, steps_per_fetch: int) -> None:
        self._plan, self.steps_per_fetch = plan, steps_per_fetch
        self._plans = [replace(plan, rank=rank) for rank in range(plan.world_size)]
        self.start(epoch=0, step=0)

    def start(self, *, epoch: int, step: int) -> None:
        """Begin the next pass at `step` of `epoch`, both counted from 0."""
        self._epoch, self._step = epoch, step

    def fetches(self) -> list[range]:
        """The steps of the next pass, grouped by fetch."""
        num_steps, number = self._plan.num_steps, self.steps_per_fetch
        starts = range(self._step, num_steps, number)
        return [range(first, min(first + number, num_steps)) for first in starts]

    def __len__(self) -> int:
        return len(self.fetches()) * self._plan.world_size

    def __iter__(self) -> Iterator[list[Share]]:  # type: ignore[override]
        epoch = self._epoch
        for steps in self.fetches():
            for plan in self._plans:
                yield [Share(epoch, steps, plan)]


class Shares(Dataset[Any]):
    """What the loader fetches from: a Share is the index.

    Args:
        data: the data set.
        order: of an epoch's samples. Only the process that fetches a share computes its indices.
    """

    def __init__(self, data: Any, order: Order) -> None:
        self._data, self._order = data, order

    def __getitem__(self, share: Share) -> Any:
        indices = self._order(share.positions, epoch=share.epoch)
        sizes = share.plan.piece_sizes(share.steps[0])  # for _BySample, whose share is one step
        return self.fetch(indices, epoch=share.epoch, sizes=sizes)

    def fetch(self, indices: np.ndarray, *, epoch: int, sizes: Sequence[int]) -> Any:
        """These samples (N,): as one batch if by array, else in pieces of these sizes."""
        raise NotImplementedError


class _ByArray(Shares):
    """Gives a share's samples as one batch, by one array of indices: as cheap as one sample."""

    def fetch(self, indices: np.ndarray, *, epoch: int, sizes: Sequence[int]) -> Any:
        """See Shares."""
        return self._data[indices]


class _BySample(Shares):
    """Gives a share as a list of its pieces: each what torch's `default_collate` makes of its
    samples, or None if it has no samples.

    Before each sample all generators are seeded from seed, epoch and index. So a sample that is
    drawn at random is the same on any process, and with any number of workers.

    Args:
        data: gives a sample for an int.
        order: see Shares.
        seed: 0 to 2**64 - 1.
    """

    def __init__(self, data: Any, order: Order, *, seed: int) -> None:
        super().__init__(data, order)
        self._seed = seed

    def fetch(self, indices: np.ndarray, *, epoch: int, sizes: Sequence[int]) -> list[Any]:
        """See Shares."""
        samples = (self._sample(epoch, index) for index in indices.tolist())
        pieces = ([next(samples) for _ in range(size)] for size in sizes)
        return [default_collate(piece) if piece else None for piece in pieces]

    def _sample(self, epoch: int, index: int) -> Any:
        seed_all(stream(self._seed, epoch, index), _CPU)
        return self._data[index]


def pieces(batch: Sequence[torch.Tensor], sizes: Sequence[int]) -> list[Any]:
    """Cut a batch into pieces of these sizes, each in memory of its own; None for an empty one.

    A matrix library may choose its code by the alignment of its operands. The alignment of a view
    depends on the number of processes; a fresh copy is always aligned the same way.
    """
    return copies(cut(batch, sizes))


def cut(batch: Sequence[torch.Tensor], sizes: Sequence[int]) -> list[Any]:
    """The pieces of a batch, in its memory; None for an empty one."""
    parts = zip(*(tensor.split(list(sizes)) for tensor in batch), strict=True)
    return [part if size else None for part, size in zip(parts, sizes, strict=True)]


def copies(parts: Sequence[Any]) -> list[Any]:
    """Copies of pieces, each in memory of its own."""
    return [part and tuple(tensor.clone() for tensor in part) for part in parts]


@dataclass(frozen=True)
class Split:
    """The train or the test part of the data, dealt out to the processes; see `deal_out`.

    Args:
        data: the data set.
        plan: cuts an epoch into steps and pieces.
        sampler: yields the share of each fetch.
        loader: fetches this process's shares.
        shares: the data set of the loader.
        by_array: whether a share is fetched as one batch.
    """

    data: Any
    plan: Plan
    sampler: StepSampler
    loader: Iterable[Any]
    shares: Shares
    by_array: bool

    def batches(
        self, *, epoch: int = 0, first_step: int = 0, whole: bool = False
    ) -> Iterator[tuple[int, Any]]:
        """Start an epoch, from 0, at a step; yields each step and this process's share of it.

        The share is a list of its pieces, None for an empty one; or, if it is to be `whole`, which
        only `by_array` can be, a tuple of tensors (B, ...).
        """
        step = first_step
        strides = self.strides(epoch=epoch, next_step=lambda: step, whole=whole)
        for _, share in strides:
            yield step, share
            step += 1

    def strides(
        self,
        *,
        epoch: int,
        next_step: Callable[[], int],
        whole: bool,
        most: Callable[[], int] = lambda: 1,
    ) -> Iterator[tuple[range, Any]]:
        """As `batches`, but several steps at a time: yields a range of steps, and this process's
        shares of them in one.

        Args:
            next_step: returns the step to yield next; called at the start and after each yield.
            most: returns how many steps may be yielded at once; more than one needs `whole`. Data
                that are not `by_array` come one step at a time.
        """
        self.sampler.start(epoch=epoch, step=next_step())
        fetches = zip(self.sampler.fetches(), from_loader(self.loader), strict=True)
        for fetched_steps, fetched in fetches:
            if not self.by_array:
                yield fetched_steps, fetched
                continue
            size = sum(self.plan.piece_sizes(fetched_steps[0]))  # only the last step may have fewer
            while (first := next_step() - fetched_steps.start) < len(fetched_steps):
                steps = fetched_steps[first : first + most()]
                part = slice(first * size, (first + len(steps)) * size)
                share = tuple(tensor[part] for tensor in fetched)
                yield steps, share if whole else pieces(share, self.plan.piece_sizes(steps[0]))

    def some(
        self, indices: np.ndarray, sizes: Sequence[int], *, epoch: int = 0, whole: bool = False
    ) -> Any:
        """These samples as `batches` would yield them, fetched here: on the CPU, without a worker.

        Args:
            indices: (N,) int64.
            sizes: samples in each piece; their sum is N.
            epoch: from 0; decides what is drawn at random.
            whole: as for `batches`.
        """
        fetched = self.shares.fetch(indices, epoch=epoch, sizes=sizes)
        return pieces(fetched, sizes) if self.by_array and not whole else fetched


def is_by_array(data: Any) -> bool:
    """Whether a data set gives a batch, a tuple of tensors, for an int64 array of indices.

    It says so by an attribute `by_array`.
    """
    return getattr(data, "by_array", False) is True


def deal_out(
    data: Any,
    plan: Plan,
    *,
    order: Order,
    seed: int,
    num_workers: int = 0,
) -> Split:
    """Deal a data set out. Accelerate prepares the loader.

    Args:
        data: a map-style data set; see `is_by_array`.
        plan: cuts an epoch into steps and pieces.
        order: of an epoch's samples.
        seed: 0 to 2**64 - 1, of what is drawn at random in a sample; another one for each split.
        num_workers: processes that fetch samples in advance; with 0 this one does, in between.
    """
    by_array = is_by_array(data)
    steps_per_fetch = 1
    if by_array:
        step_bytes = sample_bytes(data) * plan.global_batch_size
        steps_per_fetch = max(1, FETCH_BYTES // max(1, step_bytes))
    shares = _ByArray(data, order) if by_array else _BySample(data, order, seed=seed)
    sampler = StepSampler(plan, steps_per_fetch=steps_per_fetch)
    loader = DataLoader(
        shares,
        batch_sampler=sampler,
        collate_fn=operator.itemgetter(0),
        **worker_settings(num_workers),
    )
    return Split(data, plan, sampler, loader, shares, by_array)


def sample_bytes(data: Any) -> int:
    """Bytes of a sample of a data set that `is_by_array`; fetches the first one."""
    return sum(tensor.nbytes for tensor in data[np.zeros(1, np.int64)])
