"""How cost grows with windows, batch, window length, hidden size and processes, with a picture.

python benchmarks/scaling.py --output scaling.png --json scaling.json

Every point is a run of the ordinary command, one thread per process, and its figure the samples
per second of the median epoch. The points of an axis are measured in turn, several rounds of them;
the table has the median round, the least and greatest, and the ratio to the axis's first point.
"""

import argparse
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from starting import train

SAMPLES = 400_000  # trained for a point, in at least three epochs, of which the first is left out

UNITS = {"batch": "samples per step", "window length": "time steps", "hidden size": "features"}
COLORS = ("#0072B2", "#D55E00", "#009E73")

Point = tuple[float, int, dict[str, Any]]  # place on the axis, processes, settings


def axes() -> dict[str, list[Point]]:
    """What is varied, and at which points; everything else is the default configuration."""
    large = {"train.global_batch_size": 10_000, "data.test_size": 1000}
    sizes = (10_000, 100_000, 1_000_000, 10_000_000)
    return {
        "windows": [(n, 1, {**large, "data.train_size": n}) for n in sizes],
        "batch": [(n, 1, {"train.global_batch_size": n}) for n in (10, 100, 1000, 10_000)],
        "window length": [(n, 1, {**large, "data.window": n}) for n in (10, 50, 200, 800)],
        "hidden size": [(n, 1, {**large, "model.hidden_size": n}) for n in (5, 16, 32, 64)],
        "processes, batch 100": [(n, n, {"train.global_batch_size": 100}) for n in (1, 2)],
        "processes, batch 10,000": [(n, n, large) for n in (1, 2)],
        "processes, 5,000 samples each": [
            (n, n, {"train.global_batch_size": 5000 * n, "data.train_size": 50_000 * n})
            for n in (1, 2)
        ],
    }


def samples_per_s(processes: int, settings: dict[str, Any]) -> float:
    """Train a little, and look at the median epoch."""
    epochs = max(3, SAMPLES // settings.get("data.train_size", 10_000))
    records = train({**settings, "train.epochs": epochs}, processes=processes)
    return statistics.median(record["samples_per_s"] for record in records[1:])


def draw(found: dict[str, dict[float, list[float]]], path: Path) -> None:
    """A small picture per quantity that varies, both of its scales logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter

    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    for name, points in found.items():
        quantity, _, given = name.partition(", ")
        panels.setdefault(quantity, {})[given] = points
    columns = min(3, len(panels))
    figure, grid = pyplot.subplots(
        -(-len(panels) // columns), columns, figsize=(8, 5), layout="constrained", sharey=True,
        squeeze=False,
    )  # fmt: skip
    for axes, (quantity, lines) in zip(grid.flat, panels.items(), strict=False):
        for (given, points), color in zip(lines.items(), COLORS, strict=False):
            rates = [statistics.median(rounds) for rounds in points.values()]
            axes.plot(list(points), rates, marker="o", color=color, label=given)
        unit = f" ({UNITS[quantity]})" if quantity in UNITS else ""
        axes.set(xscale="log", yscale="log", xticks=list(points), xlabel=f"{quantity}{unit}")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.minorticks_off()
        axes.grid(which="major", alpha=0.3)
        if len(lines) > 1:  # the last panel, with a free place on its right
            axes.legend(loc="center left", bbox_to_anchor=(1.05, 0.5)).set_in_layout(False)
    for axes in list(grid.flat)[len(panels) :]:
        axes.remove()
    figure.supylabel("samples per second", fontsize="medium")
    figure.savefig(path, dpi=200)


def main() -> None:
    """Measure point by point, then print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axes", nargs="*", choices=axes(), default=list(axes()))
    parser.add_argument("--output", type=Path, help="draw the picture here (needs matplotlib)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    console = Console()
    table = Table("axis", "at", "1000 samples/s (min-max)", "ratio")
    found: dict[str, dict[float, list[float]]] = {}  # one rate per round, by axis and place
    with console.status("") as status:
        for name, number in itertools.product(options.axes, range(options.rounds)):
            for place, processes, settings in axes()[name]:
                status.update(f"{name}: {place:,}, round {number + 1}")
                rates = found.setdefault(name, {}).setdefault(place, [])
                rates.append(samples_per_s(processes, settings))
    for name, points in found.items():
        first = next(iter(points.values()))
        for place, rates in points.items():
            ratios = [rate / other for rate, other in zip(rates, first, strict=True)]
            least, usual, most = (f(rates) / 1000 for f in (min, statistics.median, max))
            spread = f"{usual:,.0f} ({least:,.0f}-{most:,.0f})"
            table.add_row(name, f"{place:,}", spread, f"{statistics.median(ratios):.2f}")
        table.add_section()
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    if options.output:
        draw(found, options.output)


if __name__ == "__main__":
    main()
