"""Forecast far ahead: feed a trained model its own predictions.

    python -m sinlstm_dist.forecast runs/default --steps 600
    python -m sinlstm_dist.forecast runs/default --steps 10000 --output far.svg --csv far.csv

The forecast starts from the first test window.
"""

import sys
from argparse import Namespace
from itertools import zip_longest
from pathlib import Path

import numpy as np

from sinlstm_dist.command import as_program, command
from sinlstm_dist.config import Config
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.gallery import draw_forecast
from sinlstm_dist.rollout import Forecast
from sinlstm_dist.screen.console import show_facts, show_table, show_text
from sinlstm_dist.screen.pictures import check_matplotlib
from sinlstm_dist.trained import read_trained, refuse_task
from sinlstm_dist.words import counted

LISTED_CYCLES = (0, 1, 2, 5, 10, 20, 50)  # and these times ten, a hundred, ...


def to_csv(forecast: Forecast) -> str:
    """A forecast as CSV: `step` (from 1), `forecast`, and `truth` where it is known."""
    rows = zip_longest(forecast.values, forecast.truth)
    lines = [
        f"{step},{value:.9g},{'' if true is None else format(true, '.9g')}"
        for step, (value, true) in enumerate(rows, start=1)
    ]
    return "\n".join(["step,forecast,truth", *lines]) + "\n"


def growth(forecast: Forecast) -> list[dict[str, str]]:
    """Rows of the table that shows how the error grows; empty if no truth is known."""
    listed = {number * 10**i for number in LISTED_CYCLES for i in range(6)}
    listed |= {cycle.number for cycle in forecast.cycles[-1:]}
    held = np.abs(forecast.window[-1] - forecast.truth)
    return [
        {
            "cycle": str(cycle.number or ""),
            "steps": f"{cycle.first:,} to {cycle.last:,}" if cycle.number else "1",
            "mean\nerror": f"{cycle.mean_error:.4f}",
            "largest": f"{cycle.largest:.4f}",
            "last\nheld": f"{held[cycle.first - 1 : cycle.last].mean():.4f}",
            "amplitude": _known(f"{cycle.amplitude:.3f}"),
            "ahead\nby": _known(f"{cycle.phase:+.1f}°"),
            "in\nsteps": _known(f"{cycle.phase / 360 * forecast.period:+.2f}"),
        }
        for cycle in forecast.cycles
        if cycle.number in listed
    ]


def _known(text: str) -> str:
    return "" if "nan" in text else text


@command("forecast", by_one=True)
def main(options: Namespace) -> int:
    """Forecast from the first test window on, by a trained model's own predictions."""
    if options.output:
        check_matplotlib()
    if options.steps is not None and options.steps < 1:
        raise ConfigError(f"--steps {options.steps}: at least 1 is needed")
    refuse_task(Path(options.path), "a forecast")
    trained = read_trained(Path(options.path), options.keys)
    forecast = trained.forecast(steps=options.steps)
    if options.csv:  # the files that were asked for come before the screen
        _write(Path(options.csv), to_csv(forecast))
    if options.output:
        draw_forecast(forecast, trained.config.data, Path(options.output))
    show_facts(facts(options.path, trained.config, steps=len(forecast.values)))
    if rows := growth(forecast):
        show_text("\n")
        show_table(rows, numbers=list(rows[0]))
    written = [file for file in (options.csv, options.output) if file]
    if written:
        show_text(f"\nwritten: {', '.join(written)}\n")
    return 0


def facts(path: str, config: Config, *, steps: int) -> dict[str, str]:
    """The facts above the table: the run, and how the forecast was made."""
    return {
        "run": path,
        "forecast": f"{counted(steps, 'step')} from the first test window, "
        f"{counted(steps / config.data.period, 'cycle', '.3g')} of "
        f"{counted(config.data.period, 'step', 'g')}",
        "memory": "each prediction reads only the last "
        f"{counted(config.data.window, 'value')}, as in training",
    }


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(as_program(main))
