"""The picture of runs' curves: loss and accuracy over the training."""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinlstm_dist.screen.pictures import (
    COLORS,
    GREY,
    MARKED_POINTS,
    drawing,
    literal,
    tint,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAIN_WIDTH = 3.5  # points: a pale band, on which the test curve is a line
BASELINE_STYLE: Any = {"linestyle": "-.", "linewidth": 1.2}
RESUMED_STYLE: Any = {"linestyle": (0, (1, 2)), "linewidth": 1}
NAME_LETTERS = 30  # in one line of a run's name


@dataclass(frozen=True)
class Curve:
    """One run's part of a picture of curves.

    Args:
        name: the run's name in the legend.
        history: metrics of the finished epochs, as in metrics.jsonl; at least one.
        resumed_after: the steps after which the run was resumed.
        baseline: loss and accuracy of "the last value again" on the run's test windows; None for a
            task of the user's own.
        tolerance: an error below this counts as correct; None for a task of the user's own.
        unit: of errors and of `tolerance`, such as "std"; "" without one.
    """

    name: str
    history: Sequence[Mapping[str, Any]]
    resumed_after: Sequence[int]
    baseline: tuple[float, float] | None = None
    tolerance: float | None = None
    unit: str = ""

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps in an epoch."""
        return self.history[-1]["step"] / self.history[-1]["epoch"]


def curves_picture(path: Path, curves: Sequence[Curve]) -> None:
    """Draw loss and accuracy of one run or of several; no accuracy if no run has one.

    The x axis counts epochs; optimizer steps if an epoch is not the same number of steps in all
    runs.

    Args:
        path: the picture's file; its ending says the format.
        curves: at least one.
    """
    in_steps = len({curve.steps_per_epoch for curve in curves}) > 1
    colored = list(zip(curves, itertools.cycle(COLORS), strict=False))
    has_accuracy = any(_has(curve, "accuracy") for curve in curves)
    with drawing(path, heights=(3, 2) if has_accuracy else (1,), size=(8, 5)) as (loss, *others):
        quantities = zip((loss, *others), ("loss", "accuracy"), strict=False)
        for index, (axes, quantity) in enumerate(quantities):
            for curve, color in colored:
                if _has(curve, quantity):
                    _curve(axes, curve, quantity, color=color, in_steps=in_steps)
            for baseline, color in _baselines(colored).items():
                axes.axhline(baseline[index], color=color, zorder=1, **BASELINE_STYLE)
            axes.margins(x=0.01)
        if all(_is_positive(curve) for curve in curves):
            loss.set_yscale("log")
        loss.set_ylabel(_loss_label(curves))
        for accuracy in others:
            accuracy.set_ylim(-0.04, 1.04)
            accuracy.set_ylabel(_accuracy_label(curves))
        whole_numbers([loss, *others][-1], "optimizer step" if in_steps else "epoch")
        _legend_of_styles(loss, curves)
        _legend_of_runs(loss, colored)


def _has(curve: Curve, quantity: str) -> bool:
    """Whether all of a run's epochs have a loss, or an accuracy."""
    names = (f"train_{quantity}", f"test_{quantity}")
    return all(name in record for record in curve.history for name in names)


def _is_positive(curve: Curve) -> bool:
    """Whether a logarithmic scale can show something of a run's losses."""
    losses = (record[name] for record in curve.history for name in ("train_loss", "test_loss"))
    return curve.tolerance is not None or min(losses) > 0


def _loss_label(curves: Sequence[Curve]) -> str:
    if any(curve.tolerance is None for curve in curves):
        return "loss"
    unit = _common([curve.unit for curve in curves])
    return "mean squared error" + (f" ({unit}²)" if unit else "")


def _common(values: Sequence[Any]) -> Any:
    """The value that all of them are, or None."""
    return values[0] if len(set(values)) == 1 else None


def _accuracy_label(curves: Sequence[Curve]) -> str:
    if any(curve.tolerance is None for curve in curves):
        return "accuracy"
    within = _common([f"{curve.tolerance:g} {curve.unit}".strip() for curve in curves])
    return f"accuracy\n(within ±{within})" if within else "accuracy"


def _baselines(colored: Sequence[tuple[Curve, str]]) -> dict[tuple[float, float], str]:
    """The colour of each baseline: grey if there is one, else that of its first run."""
    colors: dict[tuple[float, float], str] = {}
    for curve, color in colored:
        if curve.baseline is not None:
            colors.setdefault(curve.baseline, color)
    return colors if len(colors) > 1 else dict.fromkeys(colors, GREY)


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
        axes.axvline(place, color=color, **RESUMED_STYLE)


def _legend_of_styles(axes: "Axes", curves: Sequence[Curve]) -> None:
    """What each style of line means, above the axes."""
    from matplotlib.lines import Line2D

    styles: dict[str, Any] = {"test": {}, "train": {"color": tint(GREY), "linewidth": TRAIN_WIDTH}}
    if any(curve.resumed_after for curve in curves):
        styles["resumed"] = RESUMED_STYLE
    if any(curve.baseline for curve in curves):
        styles["the last value again"] = BASELINE_STYLE
    lines = [
        Line2D([], [], **{"color": GREY, **style}, label=label) for label, style in styles.items()
    ]
    axes.legend(handles=lines, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(lines))


def _legend_of_runs(axes: "Axes", colored: Sequence[tuple[Curve, str]]) -> None:
    """The colour of each run, above the axes and the other legend."""
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=color, label=literal(textwrap.fill(curve.name, NAME_LETTERS)))
        for curve, color in colored
    ]
    axes.figure.legend(handles=lines, loc="outside upper right", ncols=3)
