"""The data sets that the `[data]` table of a configuration stands for."""

import functools

import numpy as np

from sinlstm_dist.config import SINE, Data
from sinlstm_dist.data.series import Scale, SeriesDataset, open_series
from sinlstm_dist.data.sine import TEST_NOISE, TRAIN_NOISE, SineDataset

WindowDataset = SineDataset | SeriesDataset


def describe_source(settings: Data) -> str:
    """Where the windows are from."""
    if settings.source == SINE:
        return f"noise {settings.noise:g}"
    return f"{settings.column or 'values'} of {settings.source}"


def datasets(settings: Data, scale: Scale | None = None) -> tuple[WindowDataset, WindowDataset]:
    """Train and test windows.

    Those of the sine differ by their phase and by their stream of noise, those of a series follow
    each other in time.

    Args:
        scale: what a series is scaled by; None for its train part's.

    Raises:
        ConfigError: the series cannot be used; so do the functions below.
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
    """WindowDataset of one value: the one observed a period before each test window's target."""
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
    """The first test window (W,), and the `steps` values that follow it, or as many as there are.

    Both float32, in the model's units; noise is on the window only.
    """
    if not scale:
        settings = settings.model_copy(update={"test_size": steps})
    _, test = datasets(settings, scale)
    known = np.arange(min(steps, len(test)))
    return test[0][0][:, 0].numpy(), test[known][1][:, 0].numpy()
