"""The data sets that the `[data]` table of a configuration describes."""

import functools
from collections.abc import Sequence

import numpy as np

from sinlstm_dist.config import SINE, Data
from sinlstm_dist.data.reading import Column
from sinlstm_dist.data.series import Series, SeriesDataset, open_series
from sinlstm_dist.data.sine import TEST_NOISE, TRAIN_NOISE, SineDataset
from sinlstm_dist.differences import Scale

WindowDataset = SineDataset | SeriesDataset


def describe_source(settings: Data, series: Series | None) -> str:
    """Where the windows come from, in words, and what the reader of a file did.

    Args:
        series: what `open_source` returns.
    """
    if not series:
        return f"noise {settings.noise:g}"
    name, note = series.column.name or settings.column or "values", series.column.note
    source = f"{name} of {settings.source}{f' ({note})' if note else ''}"
    if settings.difference:
        return f"differences at lag {settings.difference:,} of {source}"
    return source


def open_source(settings: Data) -> Series | None:
    """The series from a file; None for the sine.

    Raises:
        ConfigError: the series cannot be used.
    """
    return None if settings.source == SINE else open_series(settings)


def datasets(
    settings: Data, series: Series | None, scale: Scale | None = None
) -> tuple[WindowDataset, WindowDataset]:
    """Train and test windows.

    Those of the sine differ by phase and by stream of noise; those of a series follow each other in
    time.

    Args:
        series: what `open_source` returns.
        scale: of a series; None for the scale of its train part.

    Raises:
        ConfigError: the train part has no scale.
    """
    if series:
        scale = scale or series.fit()
        return series.train(scale), series.test(scale)
    make = functools.partial(
        SineDataset,
        window=settings.window,
        period=settings.period,
        noise=settings.noise,
        seed=settings.seed,
    )
    return (
        make(size=settings.train_size, stream=TRAIN_NOISE),
        make(size=settings.test_size, stream=TEST_NOISE, phase=settings.test_phase),
    )


def last_values(test: WindowDataset) -> WindowDataset:
    """The same targets, each with a window that ends with the value just before it.

    A window of differences does not: it holds that value's difference.
    """
    return test.last_values() if isinstance(test, SeriesDataset) else test


def period_ago(settings: Data, series: Series | None, scale: Scale | None) -> WindowDataset:
    """Windows of one value: the one observed a period before each test window's target.

    Raises:
        ConfigError: the series is too short for that.
    """
    steps = settings.season
    if series and scale:
        return series.before_targets(scale, steps=steps)
    return SineDataset(
        size=settings.test_size,
        window=1,
        period=settings.period,
        noise=settings.noise,
        seed=settings.seed,
        stream=TEST_NOISE,
        phase=settings.test_phase + settings.window - steps,
    )


def continuation(
    settings: Data, series: Series | None, *, from_end: bool, steps: int
) -> tuple[np.ndarray, np.ndarray, Sequence[str]]:
    """The values that a forecast reads, and the `steps` values that follow them, if known.

    Args:
        series: what `open_source` returns.
        from_end: for a file, its last values, at least `steps`, and not the first test window.

    Returns:
        known values, with a difference of n at least (n + W,), and those that follow, in the
        user's units; only the known ones have noise. And the times of all of them and of the
        forecast, or () if the file has none.
    """
    if not series:
        _, test = datasets(settings.model_copy(update={"test_size": steps}), None)
        return test[0][0][:, 0].numpy(), test[np.arange(steps)][1][:, 0].numpy(), ()
    values = series.column.values
    first, end = series.test_start, series.test_start + settings.context
    if from_end:
        # More than the model reads: the picture shows them
        first, end = max(0, len(values) - max(settings.context, steps)), len(values)
    times = _times(series.column, first, end - first + steps)
    return values[first:end], values[end : end + steps], times


def _times(column: Column, first: int, number: int) -> Sequence[str]:
    """The times of `number` values of a file from the index `first` on, also after its end."""
    if column.times is None:
        return ()
    known = range(first, min(first + number, len(column.values)))
    texts = [column.times.text(index) for index in known]
    return [*texts, *column.times.following(number - len(texts))]
