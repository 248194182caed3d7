"""A user's series: read from a file, and cut into windows like the sine.

    python -m sinlstm_dist.train --data.source FILE.csv --data.column NAME \\
        --data.train_size 200 --data.test_size 50

The file's last values are the test part, the values before them the train part; no window has
values of both. The model sees the values minus the train part's mean, divided by its standard
deviation.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from sinlstm_dist.config import Data
from sinlstm_dist.data.reading import read_column
from sinlstm_dist.data.sine import Batch
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.words import counted


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation that scale a series; float32 holds them exactly.

    Args:
        mean: of the train part, in the user's units.
        std: of the train part, in the user's units.
    """

    mean: float
    std: float

    def undo(self, values: np.ndarray) -> np.ndarray:
        """Scaled values, of any shape, in the user's units."""
        return values * self.std + self.mean


NO_SCALE = Scale(0.0, 1.0)


class SeriesDataset(Dataset[Batch]):
    """Windows of a series, each with the value that follows it.

    Sample i is the window values[i : i + window], scaled; its target is values[i + window].

    Args:
        values: (size + window,) float64, in the user's units.
        window: time steps in a window.
        scale: of the values.
    """

    by_array = True  # see data/steps.py

    def __init__(self, values: np.ndarray, *, window: int, scale: Scale) -> None:
        self.scale = scale
        self._series = ((values - scale.mean) / scale.std).astype(np.float32)  # (size + W,)
        self._windows = np.lib.stride_tricks.sliding_window_view(self._series[:-1], window)
        self._targets = self._series[window:, None]  # (size, 1)

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, index: int | np.ndarray) -> Batch:
        """One sample, or one batch for an int64 array of indices, as from a SineDataset."""
        window, target = self._windows[index, :, None], self._targets[index]
        return torch.from_numpy(window.copy()), torch.from_numpy(target.copy())

    def fingerprint(self) -> str:
        """SHA-256 of all values, their scale and their number, hexadecimal."""
        parts = (self._series.tobytes(), str((self.scale, self._windows.shape)).encode())
        return hashlib.sha256(b"".join(parts)).hexdigest()


@dataclass(frozen=True)
class Series:
    """The values of a file, divided into a train and a test part.

    Args:
        values: (N,) float64, in the user's units.
        train_start: index of the train part's first value.
        test_start: index of the test part's first value; the train part ends there.
        settings: of the data.
    """

    values: np.ndarray
    train_start: int
    test_start: int
    settings: Data

    def fit(self) -> Scale:
        """The scale of the train part alone.

        Raises:
            ConfigError: all its values are the same, or float32 cannot hold their scale.
        """
        part = self.values[self.train_start : self.test_start]
        where = f"data.source={self.settings.source}: the {counted(len(part), 'value')} to train on"
        if part.min() == part.max():
            raise ConfigError(f"{where} are all {part[0]:g}: there is nothing to learn")
        with np.errstate(over="ignore", invalid="ignore"):
            exact = _mean(part)
            mean, variance = np.float32(exact), _mean((part - exact) ** 2)
            std = np.float32(math.sqrt(variance))
        if not (math.isfinite(mean) and 0 < std < math.inf):
            raise ConfigError(
                f"{where} lie between {part.min():g} and {part.max():g}, and float32 cannot hold "
                "their mean and deviation: give them in another unit"
            )
        return Scale(float(mean), float(std))

    def train(self, scale: Scale) -> SeriesDataset:
        """The train windows."""
        part = self.values[self.train_start : self.test_start]
        return SeriesDataset(part, window=self.settings.window, scale=scale)

    def test(self, scale: Scale) -> SeriesDataset:
        """The test windows."""
        part = self.values[self.test_start :]
        return SeriesDataset(part, window=self.settings.window, scale=scale)

    def before_targets(self, scale: Scale, *, steps: int) -> SeriesDataset:
        """Windows of one value: the one that came `steps` before each test window's target.

        Raises:
            ConfigError: the series begins too late for that.
        """
        start = self.test_start + self.settings.window - steps
        if start < 0:
            raise ConfigError(
                f"data.period={self.settings.period:g}: {self.settings.source} begins less than "
                "that before its first test target: set a shorter period"
            )
        part = self.values[start : start + self.settings.test_size + 1]
        return SeriesDataset(part, window=1, scale=scale)


def _mean(values: np.ndarray) -> float:
    """The mean, with the same bits on any CPU: numpy adds in another order on each kind."""
    try:
        return math.fsum(values) / len(values)
    except OverflowError:
        return math.inf


def open_series(settings: Data) -> Series:
    """Read the file that `settings.source` names, and divide it.

    Raises:
        ConfigError: the file cannot be read, or holds too few values or values that are no numbers.
    """
    values = read_column(
        settings.source,
        settings.column,
        time=settings.time,
        gaps=settings.gaps,
        encoding=settings.encoding,
    ).values
    window, sizes = settings.window, settings.train_size + settings.test_size
    if len(values) < sizes + 2 * window:
        raise ConfigError(
            f"data.source={settings.source} holds {counted(len(values), 'value')}: "
            f"data.train_size={settings.train_size} and data.test_size={settings.test_size} "
            f"windows of data.window={window} steps need {sizes + 2 * window:,}"
            f"{_advice(len(values) - 2 * window)}"
        )
    test_start = len(values) - settings.test_size - window
    return Series(values, test_start - settings.train_size - window, test_start, settings)


def _advice(num_windows: int) -> str:
    if num_windows < 2:
        return ": a shorter window, or a longer series"
    test_size = max(1, num_windows // 5)
    return f"; set them to {num_windows - test_size} and {test_size}, for instance"
