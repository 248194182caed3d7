"""The sine wave as a map-style data set.

    >>> window, target = SineDataset(size=100)[7]

Windows take no memory: all are views of one series. Noise is computed when a sample is fetched,
from the sample's own index, so a sample is the same in any batch, on any process, in any order.
"""

import hashlib
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch.utils.data import Dataset

from sinlstm_dist.config import Data
from sinlstm_dist.data.noise import add_noise
from sinlstm_dist.problems import describe

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

    Raises:
        ValueError: an argument is out of the limits of its configuration key.

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
        limited = _limited(
            size=size, window=window, period=period, noise=noise, phase=phase, seed=seed
        )
        size, window, noise = limited.train_size, limited.window, limited.noise
        self._size, self._window, self._noise = size, window, noise
        self._key = (limited.seed, _limited(stream=stream).seed)
        series = _sine(
            length=size + window, period=limited.period, phase=limited.test_phase
        )  # (size + W,)
        self._windows = np.lib.stride_tricks.sliding_window_view(series, window)[:size]  # (size, W)
        self._targets = series[window:, None]  # (size, 1)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: Any) -> Batch:
        """One sample, or one batch for an array of indices.

        Args:
            index: -size to size - 1; a negative one counts from the end. Or a slice, a list, an
                array or a tensor of such indices, or a mask of `size` booleans.

        Returns:
            window (W, 1) and target (1,), float32; with a leading batch dimension for an array.

        Raises:
            IndexError: an index outside [-size, size), or None.
        """
        if type(index) is not int and getattr(index, "dtype", None) != np.int64:
            index = self._as_index(index)
        index = np.asarray(index)  # numpy copies what an array picks, one without dimensions too
        windows, targets = self._windows[index], self._targets[index]
        if self._noise:
            rows = index % self._size  # a negative index counts from the end
            add_noise(windows, key=self._key, rows=rows, deviation=self._noise)
        return torch.from_numpy(windows).unsqueeze(-1), torch.from_numpy(targets)

    def _as_index(self, index: Any) -> Any:
        """The numbers of the samples that an index means, of a kind other than int64."""
        if isinstance(index, slice):
            return np.arange(*index.indices(self._size))
        if index is None or index is Ellipsis or isinstance(index, bool | np.bool):
            raise IndexError(f"{index} is no index of a sample")
        return np.arange(self._size)[index]

    def fingerprint(self) -> str:
        """SHA-256 of some samples from all over the data set, hexadecimal."""
        some = np.linspace(0, self._size - 1, num=min(64, self._size)).astype(np.int64)
        windows, targets = self[some]
        parts = (windows.numpy().tobytes(), targets.numpy().tobytes(), str(self._size).encode())
        return hashlib.sha256(b"".join(parts)).hexdigest()


def _limited(**arguments: Any) -> Data:
    """The arguments of a SineDataset within the limits of the configuration, which has them as
    `[data]`.

    Raises:
        ValueError: names those that are not.
    """
    keys = {"size": "train_size", "phase": "test_phase", "stream": "seed"}
    names = {keys.get(name, name): name for name in arguments}
    values = {
        keys.get(name, name): getattr(v, "item", lambda v=v: v)() for name, v in arguments.items()
    }
    try:
        return Data.model_validate(values, strict=True)
    except ValidationError as error:
        found = [{**p, "loc": [names[str(key)] for key in p["loc"]]} for p in error.errors()]
        raise ValueError(f"SineDataset: {'; '.join(map(describe, found))}") from None


def _sine(*, length: int, period: float, phase: float) -> np.ndarray:
    """float32 series of `length` values, computed in float64, chunk by chunk."""
    series = np.empty(length, dtype=np.float32)
    chunk = 1 << 16
    for start in range(0, length, chunk):
        steps = np.arange(start, min(start + chunk, length), dtype=np.float64) + phase
        series[start : start + chunk] = sine_of_turns(steps / period)
    return series


# (2 pi)**n / n! for n = 21, 19, ..., 1, with alternating signs.
_SINE = (
    0.0011309237482517954, -0.012031585942120619, 0.10422916220813978, -0.7181223017785001,
    3.8199525848482803, -15.094642576822984, 42.058693944897634, -76.70585975306136,
    81.60524927607504, -41.341702240399755, 6.283185307179586,
)  # fmt: skip


def sine_of_turns(turns: np.ndarray) -> np.ndarray:
    """sin(2 pi turns) in float64, the same bits on any CPU.

    Within 2 units in the last place, of `turns` as they are given; numpy's own sine follows the
    CPU. Only additions, multiplications and what is exact: each operation rounds once.
    """
    turns = turns - np.rint(turns)  # -1/2 to 1/2; exact
    folded = np.copysign(0.5, turns) - turns  # exact where it is used
    turns = np.where(np.abs(turns) > 0.25, folded, turns)
    square, series = turns * turns, np.zeros_like(turns)
    for coefficient in _SINE:
        series = series * square + coefficient
    return turns * series
