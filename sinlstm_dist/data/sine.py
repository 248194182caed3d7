"""The sine wave as a map-style data set.

    >>> window, target = SineDataset(size=100)[7]

Windows take no memory: all are views of one series. Noise is computed when a sample is fetched,
from the sample's own index, so a sample is the same in any batch, on any process, in any order.
"""

import hashlib

import numpy as np
import torch
from torch.utils.data import Dataset

Batch = tuple[torch.Tensor, torch.Tensor]  # windows (B, W, 1), targets (B, 1)

TRAIN_NOISE, TEST_NOISE = 0, 1  # streams of noise under one seed


class SineDataset(Dataset[Batch]):
    """Windows of a sine wave, each with the value that follows it.

    Sample i is the window `sin(2*pi*(i + phase + j) / period) + noise`, j = 0..window-1; its
    target is the same at j = window, without noise. It is a pure function of the arguments and i:
    the same sample in any batch, on any process, in any order.

    Args:
        size: number of windows.
        window: time steps in a window.
        period: time steps in one cycle.
        noise: standard deviation of the Gaussian noise on every value of every window.
        phase: time step at which sample 0 starts.
        seed: seed of the noise, 0 to 2**32 - 1.
        stream: number of the noise stream; the streams of one seed are independent.

    Examples:
        >>> data = SineDataset(size=1000, noise=0.02)
        >>> window, target = data[7]
        >>> window.shape, target.shape
        (torch.Size([50, 1]), torch.Size([1]))

        An array of indices gives a batch:

        >>> windows, targets = data[np.arange(100)]
        >>> windows.shape, targets.shape
        (torch.Size([100, 50, 1]), torch.Size([100, 1]))
    """

    by_array = True  # see data/steps.py

    def __init__(
        self,
        *,
        size: int,
        window: int = 50,
        period: float = 60.0,
        noise: float = 0.0,
        phase: float = 0.0,
        seed: int = 0,
        stream: int = TRAIN_NOISE,
    ) -> None:
        self._size, self._window, self._noise = size, window, noise
        self._key = (seed, stream)
        series = _sine(length=size + window, period=period, phase=phase)  # (size + W,)
        self._windows = np.lib.stride_tricks.sliding_window_view(series, window)[:size]  # (size, W)
        self._targets = series[window:, None]  # (size, 1)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int | np.ndarray) -> Batch:
        """One sample, or one batch for an int64 array of indices.

        Args:
            index: -size to size - 1; a negative one counts from the end.

        Returns:
            window (W, 1) and target (1,), float32; with a leading batch dimension for an array.

        Raises:
            IndexError: an index outside [-size, size).
        """
        windows = self._windows[index, :, None].copy()  # (..., W, 1)
        if self._noise:
            rows = np.asarray(index) % self._size  # a negative index counts from the end
            noise = gaussian(key=self._key, rows=rows, columns=self._window)
            windows += np.float32(self._noise) * noise[..., None]
        return torch.from_numpy(windows), torch.from_numpy(self._targets[index].copy())

    def fingerprint(self) -> str:
        """SHA-256 of some samples from all over the data set, hexadecimal."""
        some = np.linspace(0, self._size - 1, num=min(64, self._size)).astype(np.int64)
        windows, targets = self[some]
        parts = (windows.numpy().tobytes(), targets.numpy().tobytes(), str(self._size).encode())
        return hashlib.sha256(b"".join(parts)).hexdigest()


def _sine(*, length: int, period: float, phase: float) -> np.ndarray:
    """float32 series of `length` values, computed in float64, chunk by chunk."""
    series = np.empty(length, dtype=np.float32)
    chunk = 1 << 16
    for start in range(0, length, chunk):
        steps = np.arange(start, min(start + chunk, length), dtype=np.float64) + phase
        series[start : start + chunk] = np.sin(2 * np.pi * steps / period)
    return series


def gaussian(*, key: tuple[int, int], rows: np.ndarray, columns: int) -> np.ndarray:
    """Standard normal numbers that depend only on (key, row, column).

    Args:
        key: two numbers below 2**32.
        rows: any shape of non-negative int64.
        columns: numbers in each row.

    Returns:
        float32 of shape (*rows.shape, columns).

    Source: Box and Muller 1958, on the counter-based generator Philox4x32-10.
    """
    blocks = -(-columns // 4)  # one block of the generator makes four numbers
    rows = np.asarray(rows, dtype=np.uint64)[..., None]
    block = np.arange(blocks, dtype=np.uint64)
    low, high = rows & _LOW, rows >> _SHIFT
    first, second, third, fourth = philox((low, high, block, np.uint64(0)), key)
    # Between 0 and 1, both excluded, so the logarithm is finite.
    radius = np.sqrt(-2 * np.log((np.stack((first, third), -1) + 0.5) / 2**32))
    angle = 2 * np.pi / 2**32 * np.stack((second, fourth), -1)
    pairs = np.stack((radius * np.cos(angle), radius * np.sin(angle)), -1)  # (..., blocks, 2, 2)
    numbers = pairs.reshape(*pairs.shape[:-3], 4 * blocks)[..., :columns]
    return numbers.astype(np.float32)


_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(
    counter: tuple[np.ndarray | np.uint64, ...], key: tuple[int, int]
) -> tuple[np.ndarray, ...]:
    """Philox4x32-10: four random 32-bit words (in uint64) for each counter of four such words.

    Source: Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC11).
    """
    c0, c1, c2, c3 = np.broadcast_arrays(*counter)
    k0, k1 = key
    for _ in range(10):
        product0, product1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0 = (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0)
        c1 = product1 & _LOW
        c2 = (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1)
        c3 = product0 & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3
