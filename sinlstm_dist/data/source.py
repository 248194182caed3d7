"""The data sets that the `[data]` table of a configuration describes."""

import functools

import numpy as np

from sinlstm_dist.config import SINE, Data
from sinlstm_dist.data.series import Scale, Series, SeriesDataset, open_series
from sinlstm_dist.data.sine import TEST_NOISE, TRAIN_NOISE, SineDataset
from sinlstm_dist.words import counted

WindowDataset = SineDataset | SeriesDataset


def describe_source(settings: Data) -> str:
    """Where the windows come from, in words."""
    if settings.source == SINE:
        return f"noise {settings.noise:g}"
    source = f"{settings.column or 'values'} of {settings.source}"
    if settings.difference:
        return f"changes over {counted(settings.difference, 'step')} of {source}"
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

    A window of changes does not: what it says of that value is its change.
    """
    return test.last_values() if isinstance(test, SeriesDataset) else test


def period_ago(settings: Data, series: Series | None, scale: Scale | None) -> WindowDataset:
    """Windows of one value: the one observed a period before each test window's target.

    Raises:
        ConfigError: the series is too short for that.
    """
    steps = max(1, round(settings.period))
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
    settings: Data, series: Series | None, *, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first test window, and the `steps` values that follow it, or as many as there are.

    Returns:
        the window, with a difference of n (n + W,), and values, in the user's units; only the
        window has noise.
    """
    if series:
        values, used_up = series.column.values[series.test_start :], settings.used_up
        return values[:used_up], values[used_up : used_up + steps]
    _, test = datasets(settings.model_copy(update={"test_size": steps}), None)
    return test[0][0][:, 0].numpy(), test[np.arange(steps)][1][:, 0].numpy()
