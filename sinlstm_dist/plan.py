"""The plan of an epoch: the samples of each step and piece, and the process that computes them.

A step's global batch is cut into pieces, and each process owns a contiguous range of pieces. Both
cuts follow one rule: `n` things into `k` parts, in order, where the first `n % k` parts are one
larger. These are pure functions of numbers, so they can be called and tested without processes.
"""

import functools
import itertools
from dataclasses import dataclass

import numpy as np

_ORDER = 1  # separates sample orders from other random numbers of the same seed


def epoch_order(
    *, seed: int, epoch: int, size: int, sampling: str = "permutation"
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The sample indices of one epoch, in the order in which they are trained.

    Args:
        seed: `train.seed`, 0 to 2**32 - 1.
        epoch: counted from 0.
        size: number of samples in the data set, and of indices in the result.
        sampling: "permutation" (each sample once) or "replacement" (independent draws).

    Returns:
        int64 array of `size` indices in [0, size).

    Examples:
        >>> epoch_order(seed=0, epoch=0, size=8).tolist()
        [5, 0, 1, 4, 2, 6, 3, 7]
        >>> epoch_order(seed=0, epoch=1, size=8).tolist()
        [5, 2, 6, 7, 4, 0, 1, 3]
    """
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([_ORDER, seed, epoch])))
    if sampling == "replacement":
        return generator.integers(0, size, size)
    return generator.permutation(size)


def in_order(size: int) -> np.ndarray:
    """The order of a test set: each sample once, by index."""
    return np.arange(size)


@functools.lru_cache(maxsize=64)  # every step but the last is cut alike
def bounds(total: int, parts: int) -> tuple[int, ...]:
    """Cut `total` things into consecutive parts: the start of each part, and the end of the last.

    The first `total % parts` parts are one larger.

    Examples:
        >>> bounds(10, 4)
        (0, 3, 6, 8, 10)
    """
    small, larger = divmod(total, parts)
    return tuple(part * small + min(part, larger) for part in range(parts + 1))


@dataclass(frozen=True)
class Plan:
    """Cuts a data set into steps, steps into pieces, and shares the pieces out.

    Steps are counted from 0 within an epoch; the last batch may be partial.

    Args:
        size: samples in the data set.
        global_batch_size: samples in one step over all processes.
        num_pieces: pieces of each global batch.
        world_size: number of processes, at most `num_pieces`.
        rank: the process whose pieces `piece_sizes` returns.

    Examples:
        Three processes share the eight pieces of a batch of 100 samples:

        >>> plan = Plan(size=1000, global_batch_size=100, num_pieces=8, world_size=3)
        >>> plan.all_sizes(step=0)
        [13, 13, 13, 13, 12, 12, 12, 12]
        >>> [list(plan.owned(rank)) for rank in range(3)]
        [[0, 1, 2], [3, 4, 5], [6, 7]]
    """

    size: int
    global_batch_size: int
    num_pieces: int
    world_size: int = 1
    rank: int = 0

    @property
    def num_steps(self) -> int:
        """Steps in one epoch."""
        return -(-self.size // self.global_batch_size)

    def num_samples(self, step: int) -> int:
        """Samples in the global batch of `step`."""
        return min(self.global_batch_size, self.size - step * self.global_batch_size)

    def owned(self, rank: int) -> range:
        """The pieces of every global batch that process `rank` computes."""
        edges = bounds(self.num_pieces, self.world_size)
        return range(edges[rank], edges[rank + 1])

    def all_sizes(self, step: int) -> list[int]:
        """Samples in each piece of `step`, on all processes."""
        edges = bounds(self.num_samples(step), self.num_pieces)
        return [stop - start for start, stop in itertools.pairwise(edges)]

    def distinct_sizes(self) -> list[int]:
        """The sizes of the pieces of an epoch, each once, the largest first; 0 is left out."""
        sizes = self.all_sizes(0) + self.all_sizes(self.num_steps - 1)
        return sorted(set(sizes) - {0}, reverse=True)

    def piece_sizes(self, step: int) -> list[int]:
        """Samples in each piece of `step` that `self.rank` computes.

        Examples:
            >>> plan = Plan(size=1000, global_batch_size=100, num_pieces=8, world_size=3, rank=2)
            >>> plan.piece_sizes(step=0)
            [12, 12]
        """
        owned = self.owned(self.rank)
        return self.all_sizes(step)[owned.start : owned.stop]

    def share(self, step: int, rank: int) -> tuple[int, int]:
        """The start and the end, in an epoch's order, of the share of process `rank` in `step`.

        Examples:
            >>> plan = Plan(size=1000, global_batch_size=100, num_pieces=8, world_size=3)
            >>> plan.share(step=1, rank=0)
            (100, 139)
        """
        edges = bounds(self.num_samples(step), self.num_pieces)
        owned, first = self.owned(rank), step * self.global_batch_size
        return first + edges[owned.start], first + edges[owned.stop]
