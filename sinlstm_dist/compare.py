"""Show several runs in one table: how each ended, and the settings that differ from the first's.

    sinlstm-dist compare runs/one runs/two
    sinlstm-dist compare runs/sweep-*

A folder without a run is a row of its own. A wide terminal gets more figures.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sinlstm_dist.command import as_program, command
from sinlstm_dist.config import OF_THE_SINE, flat
from sinlstm_dist.problems import show_value
from sinlstm_dist.run.record import NoRun, RunRecord, read_run
from sinlstm_dist.screen.console import show_table, width_of_output

FIGURES = (
    "epochs", "train loss", "test loss", "test acc", "best epoch", "processes", "seconds"
)  # fmt: skip
WIDE = 130  # columns that a table with all figures needs
DECIDE_NOTHING = ("checkpoint.", "output.", "train.timeout_s", "train.num_workers")
IF_WIDE = {"train loss", "best epoch", "processes", "seconds"}


def differing_keys(runs: Sequence[RunRecord]) -> list[str]:
    """The configuration keys in which `runs` differ, but for those that decide no result."""
    keys = dict.fromkeys(key for run in runs for key in flat(run.config))
    may_decide = [key for key in keys if not key.startswith(DECIDE_NOTHING)]
    return [key for key in may_decide if len({_setting(run, key) for run in runs}) > 1]


def _setting(run: RunRecord, key: str) -> str:
    return show_value(flat(run.config).get(key))  # another run's task may have other settings


def _settings(run: RunRecord, keys: Sequence[str]) -> str:
    """A line for each of the keys that the run's task has."""
    values = flat(run.config)
    has_none = OF_THE_SINE if run.config.task.build else ["task.build"]
    shown = [key for key in keys if key in values and key not in has_none]
    return "\n".join(f"{key}={show_value(values[key])}" for key in shown)


def _row(path: str, run: RunRecord, *, keys: Sequence[str]) -> dict[str, str]:
    """One row of the table, which shows these keys; cells of what has not happened are empty."""
    last: dict[str, Any] = run.history[-1] if run.history else {}
    best: dict[str, Any] = min(run.history, key=lambda record: record["test_loss"], default={})
    ended = run.summary
    return {
        "run": path,
        "outcome": ended.outcome if ended else "unfinished",
        "epochs": str(len(run.history)),
        "train loss": f"{last['train_loss']:.2e}" if last else "",
        "test loss": f"{last['test_loss']:.2e}" if last else "",
        "test acc": f"{last['test_accuracy']:.4f}" if "test_accuracy" in last else "",
        "best epoch": str(best["epoch"]) if best else "",
        "processes": str(ended.world_size) if ended else "",
        "seconds": f"{ended.wall_s:.1f}" if ended else "",
        "settings": _settings(run, keys),
    }


@command("compare", by_one=True)
def main(options: Namespace) -> int:
    """Show several runs in one table."""
    runs: dict[str, RunRecord] = {}
    problems: list[NoRun] = []
    for path in options.runs:
        try:
            runs[path] = read_run(Path(path))
        except NoRun as error:  # the other runs are shown
            problems.append(error)
    if not runs:
        raise problems[0]
    first, *others = runs
    rows = {first: _row(first, runs[first], keys=differing_keys(list(runs.values())))}
    for path in others:
        keys = differing_keys([runs[first], runs[path]])
        rows[path] = _row(path, runs[path], keys=keys)
    blank = dict.fromkeys(rows[first], "") | {"outcome": "no run"}
    left_out = set() if width_of_output() >= WIDE else set(IF_WIDE)
    if not any(row["test acc"] for row in rows.values()):  # tasks that count no correct predictions
        left_out.add("test acc")
    shown = [rows.get(path, blank | {"run": path}) for path in options.runs]
    cells = [{name: row[name] for name in row if name not in left_out} for row in shown]
    show_table(cells, numbers=FIGURES, wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(as_program(main))
