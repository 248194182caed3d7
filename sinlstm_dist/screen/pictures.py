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
from sinlstm_dist.words import counted

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
AXIS_CHARACTERS = 100  # of all labels along an x axis
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "legend.frameon": False,
    "legend.borderaxespad": 0.2,
    "legend.handlelength": 2.4,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.6,
}


def check_matplotlib() -> None:
    """Find out whether pictures can be drawn, without importing matplotlib.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingPackage("a picture", package="matplotlib", install="sinlstm-dist[plot]")


def literal(text: str) -> str:
    """A text of the user's for a picture: matplotlib would read mathematics between dollars."""
    return text.replace("$", r"\$")


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
        ConfigError: matplotlib is not installed, the file cannot be written, or its ending
            is no kind of picture.
    """
    check_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        ending = path.suffix.removeprefix(".").lower() or "png"
        if ending not in figure.canvas.get_supported_filetypes():
            raise ConfigError(f"{path}: .{ending} is no kind of picture: name a .png, .svg or .pdf")
        yield list(
            figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False).flat
        )
        try:
            figure.savefig(path, format=ending)  # without it, a name would get an ending
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def whole_numbers(axes: "Axes", label: str) -> None:
    """An x axis that counts something."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel(label)


def _legend(axes: "Axes") -> None:
    """A legend above the axes, right of the title, where it hides nothing."""
    legend = axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4)
    for line in legend.get_lines():
        line.set_linewidth(max(1.6, line.get_linewidth()))


def windows_picture(
    path: Path, panels: Mapping[str, Sequence[tuple[int, np.ndarray, float]]], *, quantity: str
) -> None:
    """Draw windows of a data set, each with the value to predict marked after it.

    Args:
        path: the picture's file; its ending says the format.
        panels: title to a list of (first step, window (W,), next value).
        quantity: what the values are, such as "sunspots".
    """
    with drawing(path, heights=[1] * len(panels), size=(8, 5)) as all_axes:
        for axes, (title, windows) in zip(all_axes, panels.items(), strict=True):
            for (first, window, target), color in zip(windows, COLORS, strict=False):
                axes.plot(range(len(window)), window, color=color, marker=".", markersize=4,
                          linewidth=1, label=f"from step {first:,}")  # fmt: skip
                axes.plot(len(window), target, color=color, marker="*", markersize=12,
                          markeredgecolor="black", markeredgewidth=0.6, linestyle="")  # fmt: skip
            axes.plot([], [], color="white", marker="*", markersize=12, linestyle="",
                      markeredgecolor="black", markeredgewidth=0.6, label="next value")  # fmt: skip
            axes.set_ylabel(literal(quantity))
            axes.margins(x=0.02)
            axes.set_title(title)
        _legend(all_axes[0])
        whole_numbers(all_axes[-1], "time steps within the window")


def forecast_picture(path: Path, forecast: Forecast, *, quantity: str) -> None:
    """Draw a closed-loop forecast: over the truth, and below how its error grows; or with its fan.

    Args:
        path: the picture's file; its ending says the format.
        quantity: what the values are, such as "sunspots".
    """
    title = f"forecast of {counted(len(forecast.values), 'step')}"
    if not forecast.cycles:
        with drawing(path, heights=[1], size=(8, 3.6)) as (axes,):
            draw_waves(axes, forecast, title=title, quantity=quantity)
            time_axis(axes, forecast)
        return
    with drawing(path, heights=(3, 2), size=(8, 4.6)) as (waves, errors):
        draw_waves(waves, forecast, title=f"{title} from its own predictions", quantity=quantity)
        _errors(errors, forecast.cycles[1:])
        errors.set_ylabel("absolute error")
        time_axis(errors, forecast)


def time_axis(axes: "Axes", forecast: Forecast) -> None:
    """The x axis of a forecast: the times of the file, or time steps."""
    start = "end of the file" if forecast.from_end else "seed window"
    whole_numbers(axes, "" if forecast.times else f"time steps after the {start}")
    if forecast.times:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        times, first = forecast.times, 1 - len(forecast.known)
        fitting = AXIS_CHARACTERS // (max(map(len, times)) + 3)
        axes.xaxis.set_major_locator(MaxNLocator(max(1, min(9, fitting)), integer=True))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda x, _: times[int(x) - first] if 0 <= x - first < len(times) else "")
        )


def draw_waves(axes: "Axes", forecast: Forecast, *, title: str, quantity: str) -> None:
    """Draw a forecast over the truth or its fan, after the values that it started from."""
    thin = max(0.3, min(1.0, DRAWN_CYCLES * forecast.period / len(forecast.values)))
    known = "known values" if forecast.from_end else "seed window"
    for first, values, color, width, label in (
        (1 - len(forecast.known), forecast.known, GREEN, 1.6, known),
        (1, forecast.truth, PALE, 3, "truth"),
        (1, forecast.values, BLUE, 1.6, "forecast"),
    ):
        if len(values):
            marker = "." if first == 1 and len(values) <= MARKED_POINTS else ""
            axes.plot(range(first, first + len(values)), values, color=color,
                      linewidth=width * thin, marker=marker, markersize=4 * width,
                      label=label)  # fmt: skip
    if forecast.fan:
        lower_80, lower_50, upper_50, upper_80 = forecast.fan.bounds
        for lower, upper, color, label in (
            (lower_80, upper_80, tint(SKY), "80 %"),
            (lower_50, upper_50, SKY, "50 %"),
        ):
            axes.fill_between(range(1, len(lower) + 1), lower, upper, color=color, linewidth=0,
                              label=label)  # fmt: skip
    axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_ylabel(literal(quantity))
    axes.margins(x=0.01)
    axes.set_title(title)
    _legend(axes)


def _errors(axes: "Axes", cycles: Sequence[Cycle]) -> None:
    edges = [cycles[0].first - 0.5, *(cycle.last + 0.5 for cycle in cycles)]
    axes.stairs([cycle.largest for cycle in cycles], edges, baseline=None, color=RED,
                linewidth=1.6, linestyle="--", zorder=2, label="largest in each cycle")  # fmt: skip
    axes.stairs([cycle.mean_error for cycle in cycles], edges, facecolor=tint(BLUE), edgecolor=BLUE,
                linewidth=1.6, fill=True, label="mean of each cycle")  # fmt: skip
    axes.margins(x=0.01, y=0.1)
    axes.set_ylim(bottom=0)
    _legend(axes)
