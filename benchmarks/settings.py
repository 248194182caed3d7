"""Measure twenty settings of this package against the two fastest peers, plain PyTorch and JAX.

python benchmarks/settings.py
python benchmarks/settings.py --only "batch 1" "2 layers of 64" --json settings.json
python benchmarks/settings.py --quick

A setting differs from the article's (one layer of 5 units, windows of 50, batch 100, no noise, no
momentum) in what its name says. All programs make the same steps: as many epochs of the same size.
The time of each is that of its epochs, test included, without its start and first epochs; this
package's is from its run's own record. The first round tries one thread and one per core, the
others go on with the better; JAX chooses its threads itself. `--quick` only shows that all run.
"""

import argparse
import functools
import itertools
import json
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import against_peers
from against_peers import OURS, THREADS, WARM_UP, Workload, measure, rows
from machine import machine
from rich.console import Console
from rich.table import Table

JAX = "jax_scan"
SHORT = {OURS: "ours", "plain_pytorch": "PyTorch", JAX: "JAX"}


@dataclass(frozen=True)
class Setting:
    """A row of the table.

    Args:
        name: how it differs from the article's.
        workload: what is trained; so many windows that an epoch is neither a blink nor seconds.
        reduction: this package's `train.reduction`.
    """

    name: str
    workload: Workload
    reduction: str = "ordered"


def setting(name: str, windows: int, *, reduction: str = "ordered", **values: Any) -> Setting:
    """A setting with so many train windows."""
    amounts = {"train_windows": windows, "test_windows": windows // 10}
    return Setting(name, Workload(**amounts, **values), reduction)


SETTINGS = [
    setting("batch 1", 500, batch=1),
    setting("batch 10, momentum 0.9", 3_000, batch=10, momentum=0.9),
    setting("batch 100", 10_000),
    setting("batch 100, ddp", 5_000, reduction="ddp"),
    setting("batch 1,000, noise 0.02", 20_000, batch=1000, noise=0.02),
    setting("batch 10,000", 20_000, batch=10_000),
    setting("windows of 10", 20_000, window=10),
    setting("windows of 200", 4_000, window=200),
    setting("windows of 500", 2_000, window=500),
    setting("2 layers of 5", 6_000, num_layers=2),
    setting("3 layers of 5", 4_000, num_layers=3),
    setting("16 units", 3_000, hidden_size=16),
    setting("2 layers of 32", 500, hidden_size=32, num_layers=2),
    setting("3 layers of 32", 500, hidden_size=32, num_layers=3),
    setting("64 units", 500, hidden_size=64),
    setting("2 layers of 64", 300, hidden_size=64, num_layers=2),
    setting("3 layers of 64", 200, hidden_size=64, num_layers=3),
    setting("128 units", 300, hidden_size=128),
    setting("256 units", 200, hidden_size=256),
    setting("512 units", 100, hidden_size=512),
]


def quick(workload: Workload) -> Workload:
    """One step an epoch, and one epoch that counts."""
    batch = workload.batch
    return replace(workload, epochs=WARM_UP + 1, train_windows=batch, test_windows=min(batch, 100))


def run_ours(workload: Workload, *, reduction: str, environment: Mapping[str, str]) -> float:
    """Run the ordinary command; returns the median seconds of an epoch in its record."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--train.reduction", reduction)
        against_peers.train(workload, folder, *flags, environment=environment)
        lines = Path(folder, "metrics.jsonl").read_text().splitlines()
    return statistics.median(json.loads(line)["epoch_s"] for line in lines[WARM_UP:])


def compare(
    chosen: Setting, names: list[str], *, title: str, rounds: int, console: Console
) -> list[dict[str, Any]]:
    """The rows of a setting's programs, each with its better number of threads."""
    ours = functools.partial(run_ours, reduction=chosen.reduction)
    common = {
        "workload": chosen.workload, "console": console,
        "runners": {**against_peers.RUNNERS, OURS: ours},
    }  # fmt: skip
    programs = itertools.product(names, THREADS)
    tried = [(name, count) for name, count in programs if name != JAX or count == THREADS[-1]]
    first = measure(tried, title=title, rounds=1, **common)
    better = [(row["peer"], row["threads"]) for row in rows(first)]
    more = measure(better, title=f"{title}, again", rounds=rounds - 1, **common)
    return rows({program: first[program] + more[program] for program in better})


def in_words(name: str, found: list[dict[str, Any]], names: list[str]) -> list[str]:
    """A setting's line of the table: milliseconds an epoch, and the best peer's against ours."""
    by_name = {row["peer"]: row for row in found}
    milliseconds = [f"{1e3 * by_name[peer]['epoch_s']:.1f}" for peer in names]
    best = next(row for row in found if row["peer"] != OURS)
    span = f"({best['times_ours_min']:.2f}-{best['times_ours_max']:.2f})"
    return [name, *milliseconds, SHORT[best["peer"]], f"{best['times_ours']:.2f} {span}"]


def main() -> None:
    """Measure, and print the table and the settings in which a peer is faster."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = {setting.name: setting for setting in SETTINGS}
    parser.add_argument("--only", nargs="+", choices=known, default=list(known), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6, help=f"the first {WARM_UP} do not count")
    parser.add_argument("--quick", action="store_true", help="one round of single steps")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    console = Console()
    names = against_peers.installed(SHORT, console)
    table = Table("setting", *(f"{SHORT[name]}, ms" for name in names), "best peer", "times ours")
    rounds = 1 if options.quick else options.rounds
    found, lost = {}, []
    for number, name in enumerate(options.only, start=1):
        workload = replace(known[name].workload, epochs=options.epochs)
        chosen = replace(known[name], workload=quick(workload) if options.quick else workload)
        title = f"{number} of {len(options.only)}, {name}"
        measured = compare(chosen, names, title=title, rounds=rounds, console=console)
        found[name] = {**asdict(chosen), "rows": measured}
        row = in_words(name, measured, names)
        table.add_row(*row)
        console.print(f"{title}: times ours {row[-1]}", highlight=False)
        if options.json:  # as far as it is
            figures = {"machine": machine(), "settings": found}
            options.json.write_text(json.dumps(figures, indent=1))
        lost += [name] if any(row["times_ours"] < 1 for row in measured) else []
    console.print(table)
    console.print(f"A peer is faster in {len(lost)} of {len(found)}: {'; '.join(lost) or 'none'}")


if __name__ == "__main__":
    main()
