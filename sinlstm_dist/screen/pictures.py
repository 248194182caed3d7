"""The pictures, drawn with matplotlib, which is imported for the first one.

Each picture has its own Figure: no window, no display, no state shared between pictures.
"""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
GREY = "#777777"
COLORS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY)  # in the order of use
TRAIN_STYLE: Any = (0, (4, 1.5))
BASELINE_STYLE: Any = "-."
RESUMED_STYLE: Any = (0, (1, 2))
LEGEND_LETTERS = 110  # fit into one line
SHOWN_CYCLES = 12  # of a forecast's wave; more would be a solid band
MARKED_POINTS = 40  # of a curve; more points would hide the line
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


@dataclass(frozen=True)
class Curve:
    """One run's part of a picture of curves.

    Args:
        name: the run's name in the legend.
        history: metrics of the finished epochs, as in metrics.jsonl.
        baseline: loss and accuracy of "the last value again" on the run's test windows.
        resumed_after: the epochs after which the run was resumed, with fractions.
        tolerance: an error below this counts as correct.
    """

    name: str
    history: Sequence[Mapping[str, Any]]
    baseline: tuple[float, float]
    resumed_after: Sequence[float]
    tolerance: float


def curves_picture(path: Path, curves: Sequence[Curve]) -> None:
    """Draw loss and accuracy over the epochs, of one run or of several.

    Args:
        path: the picture's file; its ending says the format.
        curves: at least one.
    """
    with _drawing(path, heights=(3, 2), size=(8, 5)) as (loss, accuracy):
        accuracy.sharex(loss)
        for index, (axes, quantity) in enumerate(((loss, "loss"), (accuracy, "accuracy"))):
            same = len({curve.baseline[index] for curve in curves}) == 1
            for curve, color in zip(curves, itertools.cycle(COLORS), strict=False):
                _curve(axes, curve, quantity, color=color)
                axes.axhline(curve.baseline[index], color=GREY if same else color, linewidth=1.2,
                             linestyle=BASELINE_STYLE, zorder=1)  # fmt: skip
            axes.margins(x=0.01)
        loss.set_yscale("log")
        loss.set_ylabel("mean squared error")
        loss.tick_params(labelbottom=False)
        accuracy.set_ylim(-0.04, 1.04)
        accuracy.set_ylabel(_accuracy_label(curves))
        accuracy.set_xlabel("epoch")
        _run_legend(loss, curves)


def _accuracy_label(curves: Sequence[Curve]) -> str:
    tolerances = {curve.tolerance for curve in curves}
    return f"accuracy (within ±{tolerances.pop():g})" if len(tolerances) == 1 else "accuracy"


def _curve(axes: "Axes", curve: Curve, quantity: str, *, color: str) -> None:
    epochs = [record["epoch"] for record in curve.history]
    marker = "." if len(epochs) <= MARKED_POINTS else ""
    for kind, style in (("train", TRAIN_STYLE), ("test", "-")):
        values = [record[f"{kind}_{quantity}"] for record in curve.history]
        axes.plot(epochs, values, color=color, linestyle=style, marker=marker)
    for epoch in curve.resumed_after:
        axes.axvline(epoch, color=color, linewidth=1, linestyle=RESUMED_STYLE)


def _run_legend(axes: "Axes", curves: Sequence[Curve]) -> None:
    """The runs by colour, the lines by style, above the axes."""
    from matplotlib.lines import Line2D

    one = len(curves) == 1
    lines = [
        Line2D([], [], color=color, label=curve.name)
        for curve, color in zip(curves, itertools.cycle(COLORS), strict=False)
        if not one
    ]
    color = COLORS[0] if one else GREY
    lines += [
        Line2D([], [], color=color, label="test"),
        Line2D([], [], color=color, linestyle=TRAIN_STYLE, label="train"),
        Line2D([], [], color=GREY, linestyle=BASELINE_STYLE, label="the last value again"),
    ]
    if any(curve.resumed_after for curve in curves):
        lines.append(Line2D([], [], color=color, linestyle=RESUMED_STYLE, linewidth=1,
                            label="resumed"))  # fmt: skip
    widest = max(len(str(line.get_label())) for line in lines)
    columns = max(1, LEGEND_LETTERS // (widest + 6))
    if one:
        axes.set_title(curves[0].name, loc="left", fontsize=10)
    axes.legend(handles=lines, loc="lower right", bbox_to_anchor=(1, 1), ncols=columns,
                borderaxespad=0.2, handlelength=2.4, columnspacing=1.2)  # fmt: skip


def windows_picture(
    path: Path, panels: Mapping[str, Sequence[tuple[int, np.ndarray, float]]]
) -> None:
    """Draw windows of a data set, each with the value to predict marked after it.

    Args:
        path: the picture's file; its ending says the format.
        panels: title to a list of (first step, window (W,), next value).
    """
    with _drawing(path, heights=[1] * len(panels), size=(8, 5)) as axes:
        for axis, (title, windows) in zip(axes, panels.items(), strict=True):
            for (first, window, target), color in zip(windows, COLORS, strict=False):
                axis.plot(range(len(window)), window, color=color, marker=".", markersize=4,
                          linewidth=1, label=f"from step {first:,}")  # fmt: skip
                axis.plot(len(window), target, color=color, marker="*", markersize=12,
                          markeredgecolor="black", markeredgewidth=0.6, linestyle="")  # fmt: skip
            axis.plot([], [], color="white", marker="*", markersize=12, linestyle="",
                      markeredgecolor="black", markeredgewidth=0.6, label="next value")  # fmt: skip
            axis.set_ylabel("value")
            axis.margins(x=0.02)
            axis.set_title(title, loc="left", fontsize=10)
        _legend(axes[0])
        axes[-1].set_xlabel("time steps within the window")


def forecast_picture(path: Path, forecast: Forecast) -> None:
    """Draw a closed-loop forecast over the truth, and below it how its error grows.

    Args:
        path: the picture's file; its ending says the format.
    """
    with _drawing(path, heights=(3, 2), size=(8, 4.6)) as (waves, errors):
        _waves(waves, forecast)
        _errors(errors, forecast.cycles)


def _waves(axes: "Axes", forecast: Forecast) -> None:
    window, values, truth = forecast.window, forecast.values, forecast.truth
    shown = min(len(values), round(SHOWN_CYCLES * forecast.period))
    steps = np.arange(1, shown + 1)
    axes.plot(np.arange(1 - len(window), 1), window, color=GREEN, label="seed window")
    axes.plot(steps[: len(truth)], truth[:shown], color=GREY, linewidth=3, alpha=0.5,
              label="truth")  # fmt: skip
    axes.plot(steps, values[:shown], color=BLUE, label="forecast")
    axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_ylabel("value")
    axes.margins(x=0.01)
    part = f", first {SHOWN_CYCLES} cycles" if shown < len(values) else ""
    _legend(axes, title=f"closed-loop forecast of {len(values):,} steps{part}")


def _errors(axes: "Axes", cycles: Sequence[Cycle]) -> None:
    # The first step alone, then whole cycles: a part of a cycle is not comparable with them.
    whole = [cycle for cycle in cycles if not cycle.number or np.isfinite(cycle.amplitude)]
    ends = [cycle.last for cycle in whole]
    marker = "." if len(ends) <= MARKED_POINTS else ""
    for values, color, style, label in (
        ([cycle.largest for cycle in whole], RED, "--", "largest in a cycle"),
        ([cycle.mean_error for cycle in whole], BLUE, "-", "mean of a cycle"),
    ):
        axes.plot(ends, values, color=color, linestyle=style, marker=marker, label=label)
    axes.margins(x=0.01, y=0.1)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("absolute error")
    axes.set_xlabel("time steps after the seed window")
    _legend(axes)


@contextlib.contextmanager
def _drawing(
    path: Path, *, heights: Sequence[float], size: tuple[float, float]
) -> "Iterator[Sequence[Axes]]":
    """A figure's axes, one below the other; the figure is written to `path` at the end."""
    check_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=size, dpi=100, layout="constrained")
        axes = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)
        yield list(axes[:, 0])
        try:
            figure.savefig(path, format=None if path.suffix else "png")  # or it would add one
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
        except ValueError as error:  # the file's ending stands for no format
            raise ConfigError(f"{path}: {error}") from error


def _legend(axes: "Axes", *, title: str = "") -> None:
    """A legend above the axes, where it hides nothing, and the title on its left."""
    if title:
        axes.set_title(title, loc="left", fontsize=10)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=4, borderaxespad=0.2, handlelength=1.8,
        columnspacing=1.2,
    )  # fmt: skip
