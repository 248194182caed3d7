"""The plan of an epoch: the samples of each step and piece, and the process that computes them.

A step's global batch is cut into pieces, and each process owns a contiguous range of pieces. Both
cuts follow one rule: `n` things into `k` parts, in order, where the first `n % k` parts are one
larger. These are pure functions of numbers, so they can be called and tested without processes.
"""

import functools
import itertools
import math
import operator
from dataclasses import dataclass

import numpy as np

from sinlstm_dist import compiled
from sinlstm_dist.philox import philox

_ORDER = 1  # separates sample orders from other random numbers of the same seed
# Of a shuffle, as NUM_SHUFFLE_KEYS in csrc/kernel.h. With 12, some orders of 6 samples were more
# frequent than others.
_NUM_KEYS = 16


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

    Raises:
        ValueError: a number is out of its range, or `sampling` is unknown.

    Examples:
        >>> epoch_order(seed=0, epoch=0, size=8).tolist()
        [2, 3, 5, 0, 6, 4, 1, 7]
        >>> epoch_order(seed=0, epoch=1, size=8).tolist()
        [5, 1, 0, 6, 7, 2, 4, 3]
    """
    seed, epoch, size = map(operator.index, (seed, epoch, size))
    if not 0 <= seed < 2**32 or epoch < 0 or size < 0:
        raise ValueError(
            f"seed={seed}, epoch={epoch}, size={size}: seed from 0 to 2**32 - 1, and no negative "
            "epoch or size, are needed"
        )
    return indices_at(np.arange(size), seed=seed, epoch=epoch, size=size, sampling=sampling)


def indices_at(
    positions: np.ndarray, *, seed: int, epoch: int, size: int, sampling: str = "permutation"
) -> np.ndarray:
    """The part of `epoch_order` at these positions, without computing the rest.

    Args:
        positions: (N,) int64, 0 to size - 1.

    Returns:
        (N,) int64.

    Examples:
        >>> indices_at(np.array([2, 7]), seed=0, epoch=0, size=8).tolist()
        [5, 7]
    """
    if sampling not in ("permutation", "replacement"):
        raise ValueError(f'sampling={sampling!r} is unknown: use "permutation" or "replacement"')
    keys = _keys(seed, epoch)
    if sampling == "replacement":
        words = philox(positions, 0, key=(keys[0], keys[1]))
        numbers = (words[0] << np.uint64(21)) + (words[1] >> np.uint64(11))  # of 53 bits
        return (numbers * 2.0**-53 * size).astype(np.int64)
    return _shuffle(positions, keys=keys, size=size)


@functools.lru_cache(maxsize=4)  # a few steps of an epoch are fetched at a time
def _keys(seed: int, epoch: int) -> np.ndarray:
    """(_NUM_KEYS,) uint64, of 32 random bits each."""
    generator = np.random.PCG64(np.random.SeedSequence([_ORDER, seed, epoch]))
    return generator.random_raw(_NUM_KEYS) >> 32


def _shuffle(positions: np.ndarray, *, keys: np.ndarray, size: int) -> np.ndarray:
    """A random bijection of [0, size), at some positions; keys are (_NUM_KEYS,) uint64."""
    if compiled.missing():
        return _shuffle_by_numpy(positions, keys=keys, size=size)
    positions = np.ascontiguousarray(positions, dtype=np.int64)
    indices = np.empty_like(positions)
    height, width = _grid(size)
    compiled.kernel().shuffle(
        positions=positions.ctypes.data,
        count=positions.size,
        keys=keys.ctypes.data,
        size=size,
        height=height,
        width=width,
        indices=indices.ctypes.data,
    )
    return indices


def _grid(size: int) -> tuple[int, int]:
    """Height and width of a nearly square grid of at least `size` cells."""
    height = math.isqrt(max(size - 1, 0)) + 1
    return height, -(-size // height)


def _shuffle_by_numpy(positions: np.ndarray, *, keys: np.ndarray, size: int) -> np.ndarray:
    """The definition of `_shuffle`; csrc/shuffle.h computes the same numbers.

    A position is a cell in a square grid. Each round shifts every row, or every column, by a random
    number of cells. A cell past the last position moves on until it meets one that is not.

    Source: Black and Rogaway: Ciphers with arbitrary finite domains (CT-RSA 2002).
    """
    height, width = _grid(size)
    cells = positions.astype(np.uint64)
    moving = np.ones(len(cells), dtype=bool)
    while moving.any():
        rows, columns = np.divmod(cells[moving], np.uint64(width))
        for key_of_rows, key_of_columns in zip(keys[::2], keys[1::2], strict=True):
            rows = _shift(rows, by=columns, key=key_of_rows, size=height)
            columns = _shift(columns, by=rows, key=key_of_columns, size=width)
        cells[moving] = rows * np.uint64(width) + columns
        moving = cells >= size
    return cells.astype(np.int64)


def _shift(numbers: np.ndarray, *, by: np.ndarray, key: np.uint64, size: int) -> np.ndarray:
    """Add a hash of `by` to each number, modulo `size`.

    Source of the hash: the finalizer of MurmurHash3, by Austin Appleby.
    """
    word = (by ^ key).astype(np.uint32)
    word ^= word >> np.uint32(16)
    word *= np.uint32(0x85EBCA6B)
    word ^= word >> np.uint32(13)
    word *= np.uint32(0xC2B2AE35)
    word ^= word >> np.uint32(16)
    moved = numbers + (word * np.uint64(size) >> np.uint64(32))
    return np.minimum(moved, moved - np.uint64(size))  # what is below 0 wraps to a large number


def in_order(positions: np.ndarray, *, epoch: int) -> np.ndarray:
    """The order of a test set: each sample once, by index."""
    return positions


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

    def span(self, step: int) -> tuple[int, int]:
        """The start and the end, in an epoch's order, of the share of `self.rank` in `step`.

        Examples:
            >>> plan = Plan(size=1000, global_batch_size=100, num_pieces=8, world_size=3)
            >>> plan.span(step=1)
            (100, 139)
        """
        edges = bounds(self.num_samples(step), self.num_pieces)
        owned, first = self.owned(self.rank), step * self.global_batch_size
        return first + edges[owned.start], first + edges[owned.stop]
