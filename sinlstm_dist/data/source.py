"""The data sets that the `[data]` table of a configuration describes."""

import functools

import numpy as np

from sinlstm_dist.config import SINE, Data
from sinlstm_dist.data.series import Scale, SeriesDataset, open_series
from sinlstm_dist.data.sine import TEST_NOISE, TRAIN_NOISE, SineDataset

WindowDataset = SineDataset | SeriesDataset


def describe_source(settings: Data) -> str:
    """Where the windows come from, in words."""
    if settings.source == SINE:
        return f"noise {settings.noise:g}"
    return f"{settings.column or 'values'} of {settings.source}"


def datasets(settings: Data, scale: Scale | None = None) -> tuple[WindowDataset, WindowDataset]:
    """Train and test windows.

    Those of the sine differ by phase and by stream of noise; those of a series follow each other in
    time.

    Args:
        scale: of a series; None for the scale of its train part.

    Raises:
        ConfigError: the series cannot be used. The functions below raise it too.
    """
    if settings.source != SINE:
        series = open_series(settings)
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


def period_ago(settings: Data, scale: Scale | None) -> WindowDataset:
    """Windows of one value: the one observed a period before each test window's target."""
    steps = max(1, round(settings.period))
    if scale:
        return open_series(settings).before_targets(scale, steps=steps)
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
    settings: Data, scale: Scale | None, *, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first test window, and the `steps` values that follow it, or as many as there are.

    Returns:
        window (W,) and values, float32, in the model's units; only the window has noise.
    """
    if not scale:
        settings = settings.model_copy(update={"test_size": steps})
    _, test = datasets(settings, scale)
    known = np.arange(min(steps, len(test)))
    return test[0][0][:, 0].numpy(), test[known][1][:, 0].numpy()
