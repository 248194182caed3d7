"""A user's series: read from a file, and cut into windows like the sine.

    python -m sinlstm_dist.train --data.source FILE.csv --data.column NAME \\
        --data.train_size 200 --data.test_size 50

The file's last values are the test part, the values before them the train part; no window has
values of both. The model sees the values minus the train part's mean, divided by its standard
deviation. With `data.difference = n` it sees their differences at a lag of n time
steps, scaled in this way.
"""

import copy
import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from sinlstm_dist.config import Data
from sinlstm_dist.data.reading import Column, read_column
from sinlstm_dist.data.sine import Batch
from sinlstm_dist.differences import Scale, differences
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.words import counted


class SeriesDataset(Dataset[Batch]):
    """Windows of a series, each with the value that follows it.

    Sample i is the window values[i : i + window], scaled; its target is values[i + window]. With a
    difference of n, these are the differences at that lag in place of the values.

    Args:
        values: (n + window + size,) float64, in the user's units.
        window: time steps in a window.
        scale: of the values, or of their differences.
        difference: n; 0 for the values themselves.
    """

    by_array = True  # see data/steps.py

    def __init__(
        self, values: np.ndarray, *, window: int, scale: Scale, difference: int = 0
    ) -> None:
        self.scale, self._values, self._difference = scale, values, difference
        self._series = scale.apply(differences(values, difference))  # (W + size,)
        self._windows = np.lib.stride_tricks.sliding_window_view(self._series[:-1], window)
        self._targets = self._series[window:, None]  # (size, 1)

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, index: int | np.ndarray) -> Batch:
        """One sample, or one batch for an int64 array of indices, as from a SineDataset."""
        index = np.asarray(index)  # see SineDataset
        window, target = self._windows[index], self._targets[index]
        return torch.from_numpy(window).unsqueeze(-1), torch.from_numpy(target)

    def values(self, index: int) -> np.ndarray:
        """The values of one sample, in the user's units: n + window, and then its target's."""
        return self._values[index : len(self._values) - len(self) + index + 1]

    def with_inputs(self, values: np.ndarray) -> "SeriesDataset":
        """The same targets, each with a window of one value.

        Args:
            values: (size,), in the user's units; with a difference of n, a window has this
                value minus the one n time steps before the target.
        """
        other, size = copy.copy(self), len(self)
        if self._difference:
            first = len(self._values) - size - self._difference
            values = values - self._values[first : first + size]
        other._windows = self.scale.apply(values)[:, None]
        return other

    def last_values(self) -> "SeriesDataset":
        """The same targets, each with the value just before it."""
        return self.with_inputs(self._values[-1 - len(self) : -1])

    def fingerprint(self) -> str:
        """SHA-256 of all values, their scale and their number, hexadecimal."""
        parts = [self._series.tobytes(), str((self.scale, self._windows.shape)).encode()]
        if self._difference:  # they stay the same if all values change alike
            parts.append(self._values.tobytes())
        return hashlib.sha256(b"".join(parts)).hexdigest()


@dataclass(frozen=True)
class Series:
    """The values of a file, divided into a train and a test part.

    Args:
        column: of the file.
        train_start: index of the train part's first value.
        test_start: index of the test part's first value; the train part ends there.
        settings: of the data.
    """

    column: Column
    train_start: int
    test_start: int
    settings: Data

    def record(self) -> dict[str, Any]:
        """What a run folder keeps about its series: see `DataRecord` in run/record.py."""
        number = len(self.column.values)
        return {"values": number, "sha256": self.sha256(self.train_start, number)}

    def sha256(self, first: int, end: int) -> str:
        """SHA-256 of the values from `first` to before `end`, hexadecimal."""
        return hashlib.sha256(self.column.values[first:end].tobytes()).hexdigest()

    def fit(self) -> Scale:
        """The scale of the train part alone.

        Raises:
            ConfigError: all its values are the same, or float32 cannot hold their scale.
        """
        n, values = self.settings.difference, self._train_values
        with np.errstate(over="ignore", invalid="ignore"):
            part = differences(values, n)
            # Differences of values that were rounded vary a little even if they are all the same.
            rounding = 4 * np.spacing(np.abs(values).max()) if n else 0.0
            what = counted(len(part), "difference") if n else counted(len(part), "value")
            where = f"data.source={self.settings.source}: the {what} to train on"
            if part.max() - part.min() <= rounding:
                raise ConfigError(f"{where} are all {part[0]:g}: there is nothing to learn")
            exact = _mean(part)
            mean, variance = np.float32(exact), _mean((part - exact) ** 2)
            std = np.float32(math.sqrt(variance))
        if not (math.isfinite(mean) and 0 < std < math.inf):
            raise ConfigError(
                f"{where} lie between {part.min():g} and {part.max():g}, and float32 cannot hold "
                "their mean and deviation: give them in another unit"
            )
        return Scale(float(mean), float(std))

    def suggested_difference(self) -> int:
        """The lag, of 0, 1 and a period, whose differences deviate least in the train part.

        Those that are all the same have nothing to teach.
        """
        values = self._train_values
        candidates = [n for n in (0, 1, self.settings.season) if n < len(values)]
        return min(candidates, key=lambda n: differences(values, n).std() or math.inf)

    @property
    def _train_values(self) -> np.ndarray:
        return self.column.values[self.train_start : self.test_start]

    def train(self, scale: Scale) -> SeriesDataset:
        """The train windows."""
        return self._dataset(self._train_values, scale)

    def test(self, scale: Scale) -> SeriesDataset:
        """The test windows."""
        return self._dataset(self.column.values[self.test_start :], scale)

    def _dataset(self, values: np.ndarray, scale: Scale) -> SeriesDataset:
        window, difference = self.settings.window, self.settings.difference
        return SeriesDataset(values, window=window, scale=scale, difference=difference)

    def before_targets(self, scale: Scale, *, steps: int) -> SeriesDataset:
        """The test targets, each with a window of one value: the one `steps` before it.

        Raises:
            ConfigError: the series begins too late for that.
        """
        size, values = self.settings.test_size, self.column.values
        start = len(values) - size - steps
        if start < 0:
            raise ConfigError(
                f"data.period={self.settings.period:g}: {self.settings.source} begins less than "
                "that before its first test target, so the value one period ago is not known"
            )
        return self.test(scale).with_inputs(values[start : start + size])


def _mean(values: np.ndarray) -> float:
    """The mean, with the same bits on any CPU: numpy adds in another order on each kind."""
    try:
        return math.fsum(values) / len(values)
    except (OverflowError, ValueError):  # the latter of inf - inf
        return math.inf


def open_series(settings: Data) -> Series:
    """Read the file that `settings.source` names, and divide it.

    Raises:
        ConfigError: the file cannot be read, or holds too few values or values that are no numbers.
    """
    column = read_column(
        settings.source,
        settings.column,
        time=settings.time,
        gaps=settings.gaps,
        encoding=settings.encoding,
    )
    number = len(column.values)
    train_start, test_start = split(number, settings)
    if train_start < 0:
        needed = number - train_start
        n = settings.difference
        raise ConfigError(
            f"data.source={settings.source} holds {counted(number, 'value')}: "
            f"data.train_size={settings.train_size} and data.test_size={settings.test_size} "
            f"windows of data.window={settings.window} steps need {needed:,}"
            f"{f' with data.difference={n}' if n else ''}"
            f"{_sizes_that_fit(number - 2 * settings.context)}"
        )
    return Series(column, train_start, test_start, settings)


def split(number: int, settings: Data) -> tuple[int, int]:
    """The indices of the first value of the train part and of the test part.

    Args:
        number: of the series' values; with too few, the first index is negative.
    """
    test_start = number - settings.test_size - settings.context
    return test_start - settings.train_size - settings.context, test_start


def _sizes_that_fit(num_windows: int) -> str:
    if num_windows < 2:
        return ": a shorter window, or a longer series"
    test_size = max(1, num_windows // 5)
    return f"; set them to {num_windows - test_size} and {test_size}, for instance"
