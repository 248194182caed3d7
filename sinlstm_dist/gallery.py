"""Draws the pictures of a run from its folder, and those of a data set from its configuration."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sinlstm_dist.config import SINE, Config, Data
from sinlstm_dist.data.series import Series, SeriesDataset
from sinlstm_dist.data.source import WindowDataset, datasets, last_values, open_source
from sinlstm_dist.errors import CommandError, ConfigError, said
from sinlstm_dist.model import Persistence
from sinlstm_dist.rollout import Forecast
from sinlstm_dist.run.record import CURVES, FORECAST, SUMMARY, WEIGHTS, WINDOWS, RunRecord, read_run
from sinlstm_dist.screen.curves import Curve, curves_picture
from sinlstm_dist.screen.pictures import check_matplotlib, forecast_picture, windows_picture
from sinlstm_dist.sine import totals
from sinlstm_dist.trained import read_trained

WHY_CHARACTERS = 200  # of what matplotlib says, where it fails
BASELINE_SAMPLES = 100_000  # test windows at most: more would not move a line in a picture
EXAMPLE_NOISE = 0.05  # in the picture with noise, if the data have no noise


class Pictures:
    """A run's pictures, drawn into its folder; not enabled, it does nothing.

    Args:
        enabled: whether the run is to have pictures.
        folder: the run folder.
    """

    def __init__(self, *, enabled: bool, folder: Path) -> None:
        self._enabled, self._folder = enabled, folder

    def check(self) -> None:
        """Find out before the training whether pictures can be drawn.

        Raises:
            ConfigError: matplotlib is not installed.
        """
        if self._enabled:
            check_matplotlib()

    def draw(self, *, only_missing: bool = False) -> str:
        """Draw the data, the finished epochs and a forecast of the final weights.

        Of the user's own model only the epochs are drawn.

        Args:
            only_missing: draw nothing if the pictures are newer than the end of the run.

        Returns:
            a line for the user: which were drawn, or why they cannot be; "" if nothing was to do.

        Raises:
            ConfigError: a picture cannot be written.
        """
        if not self._enabled:
            return ""
        try:
            drawn = self._draw(only_missing=only_missing)
        except CommandError:
            raise
        except Exception as error:  # matplotlib's are of many kinds; the run has ended well
            why = textwrap.shorten(said(error), WHY_CHARACTERS, placeholder=" ...")
            return f"pictures cannot be drawn: {why}"
        return f"pictures: {', '.join(drawn)}" if drawn else ""

    def _draw(self, *, only_missing: bool) -> list[str]:
        """Draw them; returns the names of the files."""
        folder, run, drawn = self._folder, read_run(self._folder), []
        is_users = bool(run.config.task.build)
        if only_missing and self._is_drawn(CURVES if is_users else FORECAST):
            return []
        if not is_users:
            draw_windows(run.config.data, folder / WINDOWS)
            drawn.append(WINDOWS)
        if run.history:
            draw_curves([folder], folder / CURVES)
            drawn.append(CURVES)
        if (folder / WEIGHTS).exists() and not is_users:
            trained = read_trained(folder)
            data, steps = run.config.data, None
            if trained.series:  # the truth ends with the test part
                steps = min(max(1, round(10 * data.period)), data.test_size)
            draw_forecast(trained.forecast(steps=steps), trained.series, folder / FORECAST)
            drawn.append(FORECAST)
        return drawn

    def _is_drawn(self, last: str) -> bool:
        """Whether the last of the pictures is there, and newer than the end of the run."""
        picture, end = self._folder / last, self._folder / SUMMARY
        return picture.exists() and picture.stat().st_mtime_ns >= end.stat().st_mtime_ns


def draw_curves(folders: Sequence[Path], output: Path) -> None:
    """Draw the curves of runs, finished or not, into one picture.

    Raises:
        ConfigError: a folder holds no run or no finished epoch, or the picture cannot be written.
    """
    runs = [read_run(folder) for folder in folders]
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    for folder, run in zip(folders, runs, strict=True):
        if not run.history:
            raise ConfigError(f"{folder} has not finished an epoch yet: there is nothing to draw")
    curves_picture(output, [_curve(name, run) for name, run in zip(names, runs, strict=True)])


def _curve(name: str, run: RunRecord) -> Curve:
    is_users = bool(run.config.task.build)
    return Curve(
        name=name,
        history=run.history,
        baseline=None if is_users else _baseline(run.config),
        resumed_after=run.resumed_after,
        tolerance=None if is_users else run.config.train.tolerance,
        unit="" if run.config.data.source == SINE else "std",
    )


def _baseline(config: Config) -> tuple[float, float]:
    """Loss and accuracy of "the last value again" on the test windows."""
    _, test = datasets(config.data, open_source(config.data))
    windows, targets = last_values(test)[np.arange(min(len(test), BASELINE_SAMPLES))]
    tolerance = config.train.tolerance
    squared_error, correct = totals(Persistence(), (windows, targets), tolerance=tolerance)
    return squared_error.item() / len(windows), correct.item() / len(windows)


def draw_windows(settings: Data, output: Path) -> None:
    """Draw train windows with the next value marked; for the sine without and with noise.

    Raises:
        ConfigError: the picture cannot be written.
    """
    series = open_source(settings)
    if not series:
        noise = settings.noise or EXAMPLE_NOISE
        example = "" if settings.noise else " (an example: these data have none)"
        panels = {
            "windows without noise": _with_noise(settings, 0.0),
            f"with noise {noise:g}{example}": _with_noise(settings, noise),
        }
    else:
        panels = {"windows of the series": settings}
    windows_picture(
        output,
        {title: windows_to_draw(shown, series) for title, shown in panels.items()},
        quantity=_quantity(series),
    )


def _with_noise(settings: Data, noise: float) -> Data:
    return settings.model_copy(update={"noise": noise})


def _quantity(series: Series | None) -> str:
    """What the values are: the name of a series' column, or "value" if it has no name."""
    return (series and series.column.name) or "value"


def draw_forecast(forecast: Forecast, series: Series | None, output: Path) -> None:
    """Draw a forecast and its errors.

    Args:
        forecast: in the user's units.
        series: that it continues; None for the sine.
        output: the picture's file.

    Raises:
        ConfigError: the picture cannot be written.
    """
    forecast_picture(output, forecast, quantity=_quantity(series))


def windows_to_draw(settings: Data, series: Series | None) -> list[tuple[int, np.ndarray, float]]:
    """Three train windows, a third of a cycle apart, or as many as there are.

    Args:
        settings: of the data.
        series: what `open_source` returns.

    Returns:
        first step, values of the window (W,), with a difference of n (n + W,), and next value of
        each, in the user's units.
    """
    train, _ = datasets(settings, series)
    starts = dict.fromkeys(round(settings.period * i / 3) for i in range(3))
    samples = {first: _values(train, first) for first in starts if first < len(train)}
    return [(first, values[:-1], float(values[-1])) for first, values in samples.items()]


def _values(data: WindowDataset, index: int) -> np.ndarray:
    """The values of a sample's window and of its target, in the user's units."""
    if isinstance(data, SeriesDataset):
        return data.values(index)
    window, target = data[index]
    return np.append(window[:, 0].numpy(), target.numpy())
