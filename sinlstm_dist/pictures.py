"""All that is drawn, with matplotlib, which is imported when the first picture is.

A picture is drawn on a Figure of its own: no window, no display, no state shared between pictures.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sinlstm_dist.config import ConfigError
from sinlstm_dist.rollout import Cycle

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which people with any kind of colour vision tell apart.
BLUE, ORANGE, GREEN, RED, SKY, PURPLE = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7",
)  # fmt: skip
GREY = "#777777"
SHOWN_CYCLES = 12  # of a forecast, as a wave; more would be a solid band
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


def check_matplotlib() -> None:
    """Find out whether pictures can be drawn, without importing what draws them.

    Raises:
        ConfigError: they cannot.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError("a picture needs matplotlib: pip install 'sinlstm-dist[plot]'")


def forecast_picture(
    path: Path,
    *,
    window: np.ndarray,
    forecast: np.ndarray,
    truth: np.ndarray,
    cycles: Sequence[Cycle],
    period: float,
) -> None:
    """Draw a closed-loop forecast over the truth, and below it how its error grows.

    Args:
        path: the picture's file; its ending says the format.
        window: (W,), the values that the forecast started from.
        forecast: (steps,).
        truth: (steps,), or as much as is known.
        cycles: the quality of each.
        period: steps in a cycle.
    """
    shown = min(len(forecast), round(SHOWN_CYCLES * period))
    with _drawing(path, rows=2, heights=(3, 2), size=(8, 4.6)) as (waves, errors):
        steps = np.arange(1, shown + 1)
        waves.plot(np.arange(1 - len(window), 1), window, color=GREEN, label="seed window")
        waves.plot(steps[: len(truth)], truth[:shown], color=GREY, linewidth=3, alpha=0.5,
                   label="truth")  # fmt: skip
        waves.plot(steps, forecast[:shown], color=BLUE, label="forecast")
        waves.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        waves.set_ylabel("value")
        waves.margins(x=0.01)
        part = f", first {SHOWN_CYCLES} cycles" if shown < len(forecast) else ""
        _legend(waves, title=f"closed-loop forecast of {len(forecast):,} steps{part}")
        # The first step alone, then whole cycles: a part of one is not like the others.
        whole = [cycle for cycle in cycles if not cycle.number or np.isfinite(cycle.amplitude)]
        ends = [cycle.last for cycle in whole]
        for values, color, style, label in (
            ([c.largest for c in whole], RED, "--", "largest in a cycle"),
            ([c.mean_error for c in whole], BLUE, "-", "mean of a cycle"),
        ):
            marker = "." if len(ends) <= 40 else ""
            errors.plot(ends, values, color=color, linestyle=style, marker=marker, label=label)
        errors.margins(x=0.01, y=0.1)
        errors.set_ylim(bottom=0)
        errors.set_ylabel("absolute error")
        errors.set_xlabel("time steps after the seed window")
        _legend(errors)


class _drawing:
    """A figure with its axes, one below the other, written to a file at the end."""

    def __init__(
        self, path: Path, *, rows: int, heights: Sequence[float], size: tuple[float, float]
    ) -> None:
        check_matplotlib()
        self._path, self._rows, self._heights, self._size = path, rows, heights, size

    def __enter__(self) -> "Sequence[Axes]":
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        self._context = rc_context(STYLE)
        self._context.__enter__()
        self._figure: Figure = Figure(figsize=self._size, dpi=100, layout="constrained")
        axes = self._figure.subplots(self._rows, 1, height_ratios=self._heights, squeeze=False)
        return list(axes[:, 0])

    def __exit__(self, *error: Any) -> None:
        try:
            if error[0] is None:
                self._save()
        finally:
            self._context.__exit__(*error)

    def _save(self) -> None:
        try:
            self._figure.savefig(self._path)
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be written: {error.strerror}") from error
        except ValueError as error:  # an ending that stands for no format
            raise ConfigError(f"{self._path}: {error}") from error


def _legend(axes: "Axes", *, title: str = "") -> None:
    """A legend above the axes, where it hides nothing, and the title on its left."""
    if title:
        axes.set_title(title, loc="left", fontsize=10)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=4, borderaxespad=0.2, handlelength=1.8,
        columnspacing=1.2,
    )  # fmt: skip
