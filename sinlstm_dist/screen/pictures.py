"""The pictures, drawn with matplotlib, which is imported for the first one.

Each picture has its own Figure: no window, no display, no state shared between pictures.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sinlstm_dist.errors import ConfigError, MissingPackage
from sinlstm_dist.rollout import Cycle, Forecast

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The palette of Okabe and Ito: people with any kind of colour vision can tell its colours apart.
BLUE, ORANGE, GREEN, RED, SKY, PURPLE = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7",
)  # fmt: skip
GREY, PALE = "#777777", "#bbbbbb"
COLORS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY)  # in the order of use
DPI = 200  # twice a web page's, for screens of high resolution
MARKED_POINTS = 40  # of a curve; more points would hide the line
DRAWN_CYCLES = 24  # of a wave in lines of full width; more cycles have thinner lines
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
    """Find out whether pictures can be drawn, without importing matplotlib.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingPackage("a picture", package="matplotlib", install="sinlstm-dist[plot]")


def tint(color: str) -> str:
    """A paler colour, "#rrggbb" like `color`.

    >>> tint("#000000")
    '#999999'
    """
    parts = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - 0.4 * (255 - part)):02x}" for part in parts)


@contextlib.contextmanager
def drawing(
    path: Path, *, heights: Sequence[float], size: tuple[float, float]
) -> "Iterator[Sequence[Axes]]":
    """A figure's axes, one below the other on one x axis; it is written to `path` at the end.

    Args:
        path: the picture's file; its ending says the format.
        heights: of the axes, relative to each other.
        size: width and height in inches.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    check_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)
        yield list(axes[:, 0])
        try:
            figure.savefig(path, format=None if path.suffix else "png")  # or it would add one
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
        except ValueError as error:  # the file's ending stands for no format
            raise ConfigError(f"{path}: {error}") from error


def whole_numbers(axes: "Axes", label: str) -> None:
    """An x axis that counts something."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel(label)


def _legend(axes: "Axes", *, title: str = "") -> None:
    """A legend above the axes, where it hides nothing, and the title on its left."""
    if title:
        axes.set_title(title, loc="left", fontsize=10)
    legend = axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=4, borderaxespad=0.2, handlelength=1.8,
        columnspacing=1.2,
    )  # fmt: skip
    for line in legend.get_lines():
        line.set_linewidth(max(1.6, line.get_linewidth()))


def windows_picture(
    path: Path, panels: Mapping[str, Sequence[tuple[int, np.ndarray, float]]], *, quantity: str
) -> None:
    """Draw windows of a data set, each with the value to predict marked after it.

    Args:
        path: the picture's file; its ending says the format.
        panels: title to a list of (first step, window (W,), next value).
        quantity: what the values are, such as "sunspots"; "" for nothing in particular.
    """
    with drawing(path, heights=[1] * len(panels), size=(8, 5)) as axes:
        for axis, (title, windows) in zip(axes, panels.items(), strict=True):
            for (first, window, target), color in zip(windows, COLORS, strict=False):
                axis.plot(range(len(window)), window, color=color, marker=".", markersize=4,
                          linewidth=1, label=f"from step {first:,}")  # fmt: skip
                axis.plot(len(window), target, color=color, marker="*", markersize=12,
                          markeredgecolor="black", markeredgewidth=0.6, linestyle="")  # fmt: skip
            axis.plot([], [], color="white", marker="*", markersize=12, linestyle="",
                      markeredgecolor="black", markeredgewidth=0.6, label="next value")  # fmt: skip
            axis.set_ylabel(quantity or "value")
            axis.margins(x=0.02)
            axis.set_title(title, loc="left", fontsize=10)
        _legend(axes[0])
        whole_numbers(axes[-1], "time steps within the window")


def forecast_picture(path: Path, forecast: Forecast, *, quantity: str) -> None:
    """Draw a closed-loop forecast over the truth, and below it how its error grows.

    Args:
        path: the picture's file; its ending says the format.
        quantity: what the values are, such as "sunspots"; "" for nothing in particular.
    """
    number = len(forecast.values)
    title = f"closed-loop forecast of {number:,} step{'' if number == 1 else 's'}"
    with drawing(path, heights=(3, 2), size=(8, 4.6)) as (waves, errors):
        draw_waves(waves, forecast, title=title, quantity=quantity)
        if forecast.cycles:
            _errors(errors, forecast.cycles[1:])
        errors.set_ylabel("absolute error" + (f"\n({quantity})" if quantity else ""))
        whole_numbers(errors, "time steps after the seed window")


def draw_waves(axes: "Axes", forecast: Forecast, *, title: str, quantity: str) -> None:
    """Draw a forecast over the truth, after the window that it started from."""
    thin = max(0.3, min(1.0, DRAWN_CYCLES * forecast.period / len(forecast.values)))
    for first, values, color, width, label in (
        (1 - len(forecast.window), forecast.window, GREEN, 1.6, "seed window"),
        (1, forecast.truth, PALE, 3, "truth"),
        (1, forecast.values, BLUE, 1.6, "forecast"),
    ):
        marker = "." if first == 1 and len(values) <= MARKED_POINTS else ""
        axes.plot(range(first, first + len(values)), values, color=color, linewidth=width * thin,
                  marker=marker, markersize=4 * width, label=label)  # fmt: skip
    axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_ylabel(quantity or "value")
    axes.margins(x=0.01)
    _legend(axes, title=title)


def _errors(axes: "Axes", cycles: Sequence[Cycle]) -> None:
    edges = [cycles[0].first - 0.5, *(cycle.last + 0.5 for cycle in cycles)]
    axes.stairs([cycle.largest for cycle in cycles], edges, baseline=None, color=RED,
                linewidth=1.6, linestyle="--", zorder=2, label="largest in each cycle")  # fmt: skip
    axes.stairs([cycle.mean_error for cycle in cycles], edges, facecolor=tint(BLUE), edgecolor=BLUE,
                linewidth=1.6, fill=True, label="mean of each cycle")  # fmt: skip
    axes.margins(x=0.01, y=0.1)
    axes.set_ylim(bottom=0)
    _legend(axes)
