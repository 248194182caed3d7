"""The picture of runs' curves: loss and accuracy over the training."""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinlstm_dist.screen.pictures import COLORS, GREY, MARKED_POINTS, drawing, tint, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAIN_WIDTH = 3.5  # points: a pale band, on which the test curve is a line
BASELINE = "the last value again"
BASELINE_STYLE: Any = "-."
RESUMED_STYLE: Any = (0, (1, 2))
LEGEND_LETTERS = 110  # fit into one line of the picture
ENTRY_LETTERS, TITLE_LETTERS = 60, 40  # of a line in a legend's entry, and in the title


@dataclass(frozen=True)
class Curve:
    """One run's part of a picture of curves.

    Args:
        name: the run's name in the legend.
        history: metrics of the finished epochs, as in metrics.jsonl; at least one.
        baseline: loss and accuracy of "the last value again" on the run's test windows.
        resumed_after: the steps after which the run was resumed.
        tolerance: an error below this counts as correct.
        unit: of errors and of `tolerance`, such as "std"; "" without one.
    """

    name: str
    history: Sequence[Mapping[str, Any]]
    baseline: tuple[float, float]
    resumed_after: Sequence[int]
    tolerance: float
    unit: str = ""

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps in an epoch."""
        return self.history[-1]["step"] / self.history[-1]["epoch"]


def curves_picture(path: Path, curves: Sequence[Curve]) -> None:
    """Draw loss and accuracy of one run or of several.

    The x axis counts epochs; optimizer steps if an epoch is not the same number of steps in all
    runs.

    Args:
        path: the picture's file; its ending says the format.
        curves: at least one.
    """
    in_steps = len({curve.steps_per_epoch for curve in curves}) > 1
    colored = list(zip(curves, itertools.cycle(COLORS), strict=False))
    baselines = _baselines(colored)
    with drawing(path, heights=(3, 2), size=(8, 5)) as (loss, accuracy):
        for index, (axes, quantity) in enumerate(((loss, "loss"), (accuracy, "accuracy"))):
            for curve, color in colored:
                _curve(axes, curve, quantity, color=color, in_steps=in_steps)
            for baseline, (color, _) in baselines.items():
                axes.axhline(baseline[index], color=color, linewidth=1.2, zorder=1,
                             linestyle=BASELINE_STYLE)  # fmt: skip
            axes.margins(x=0.01)
        loss.set_yscale("log")
        unit = _common([curve.unit for curve in curves])
        loss.set_ylabel("mean squared error" + (f" ({unit}²)" if unit else ""))
        accuracy.set_ylim(-0.04, 1.04)
        accuracy.set_ylabel(_accuracy_label(curves))
        whole_numbers(accuracy, "optimizer step" if in_steps else "epoch")
        _run_legend(loss, colored, baselines)


def _common(values: Sequence[Any]) -> Any:
    """The value that all of them are, or None."""
    return values[0] if len(set(values)) == 1 else None


def _accuracy_label(curves: Sequence[Curve]) -> str:
    within = _common([f"{curve.tolerance:g} {curve.unit}".strip() for curve in curves])
    return f"accuracy\n(within ±{within})" if within else "accuracy"


def _baselines(
    colored: Sequence[tuple[Curve, str]],
) -> dict[tuple[float, float], tuple[str, str]]:
    """Colour and label of each baseline, one per test data set."""
    runs: dict[tuple[float, float], list[tuple[str, str]]] = {}
    for curve, color in colored:
        runs.setdefault(curve.baseline, []).append((curve.name, color))
    if len(runs) == 1:
        return dict.fromkeys(runs, (GREY, BASELINE))
    return {
        baseline: (named[0][1], f"{BASELINE}: {', '.join(name for name, _ in named)}")
        for baseline, named in runs.items()
    }


def _curve(axes: "Axes", curve: Curve, quantity: str, *, color: str, in_steps: bool) -> None:
    places = [record["step" if in_steps else "epoch"] for record in curve.history]
    marker = "." if len(places) <= MARKED_POINTS else ""
    train, test = (
        [record[f"{kind}_{quantity}"] for record in curve.history] for kind in ("train", "test")
    )
    axes.plot(places, train, color=tint(color), linewidth=TRAIN_WIDTH, marker=marker, markersize=11,
              zorder=2, solid_capstyle="butt")  # fmt: skip
    axes.plot(places, test, color=color, marker=marker, zorder=3)
    for step in curve.resumed_after:
        place = step if in_steps else step / curve.steps_per_epoch
        axes.axvline(place, color=color, linewidth=1, linestyle=RESUMED_STYLE)


def _run_legend(
    axes: "Axes",
    colored: Sequence[tuple[Curve, str]],
    baselines: Mapping[tuple[float, float], tuple[str, str]],
) -> None:
    """The runs by colour, the lines by style, above the axes."""
    from matplotlib.lines import Line2D

    one = len(colored) == 1
    lines = [Line2D([], [], color=color, label=curve.name) for curve, color in colored if not one]
    color = COLORS[0] if one else GREY
    lines += [
        Line2D([], [], color=color, label="test"),
        Line2D([], [], color=tint(color), linewidth=TRAIN_WIDTH, label="train"),
    ]
    if any(curve.resumed_after for curve, _ in colored):
        lines.append(Line2D([], [], color=color, linestyle=RESUMED_STYLE, linewidth=1,
                            label="resumed"))  # fmt: skip
    lines += [
        Line2D([], [], color=color, linestyle=BASELINE_STYLE, linewidth=1.2, label=label)
        for color, label in baselines.values()
    ]
    if one:
        axes.set_title(textwrap.fill(colored[0][0].name, TITLE_LETTERS), loc="left", fontsize=10)
    labels = [textwrap.fill(str(line.get_label()), ENTRY_LETTERS) for line in lines]
    axes.legend(lines, labels, loc="lower right", bbox_to_anchor=(1, 1), ncols=_columns(labels),
                borderaxespad=0.2, handlelength=2.4, columnspacing=1.2)  # fmt: skip


def _columns(labels: Sequence[str]) -> int:
    """How many columns of a legend fit above the axes."""
    widths = [max(map(len, label.split("\n"))) + 6 for label in labels]
    for columns in range(len(labels), 1, -1):
        rows, longer = divmod(len(labels), columns)  # the first columns have one entry more
        heights = [rows + (column < longer) for column in range(columns)]
        ends = itertools.pairwise(itertools.accumulate(heights, initial=0))
        if sum(max(widths[first:last]) for first, last in ends) <= LEGEND_LETTERS:
            return columns
    return 1
