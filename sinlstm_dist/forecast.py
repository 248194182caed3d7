"""Forecast far ahead: feed a trained model with its own predictions.

    python -m sinlstm_dist.forecast runs/default --steps 600
    python -m sinlstm_dist.forecast runs/default --steps 10000 --output far.png --csv far.csv

The forecast starts from the first test window.
"""

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from sinlstm_dist import program
from sinlstm_dist.command import exit_code_of
from sinlstm_dist.command_line import Parser, add_key_flags, parse_overrides
from sinlstm_dist.config import KEYS, Config, Data
from sinlstm_dist.data.series import NO_SCALE
from sinlstm_dist.data.source import continuation
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.processes.launcher import is_speaker
from sinlstm_dist.rollout import Cycle, by_cycle, roll_out
from sinlstm_dist.run.trained import Trained, read_trained
from sinlstm_dist.screen.console import show_facts, show_table, show_text
from sinlstm_dist.screen.pictures import check_matplotlib, forecast_picture

SETTABLE = [key for key in KEYS if key.startswith("data.")]
LISTED_CYCLES = (0, 1, 2, 5, 10, 20, 50)  # and each of them ten, a hundred, ... times as far


@dataclass(frozen=True)
class Forecast:
    """A closed-loop forecast and what really came.

    Args:
        window: (W,), what it started from.
        values: (steps,).
        truth: (steps,), or as much as is known.
        cycles: the quality of its first step and of each cycle.
        period: steps in a cycle.
    """

    window: np.ndarray
    values: np.ndarray
    truth: np.ndarray
    cycles: list[Cycle]
    period: float


def forecast(trained: Trained, *, steps: int) -> Forecast:
    """Feed a trained model with its own predictions, from the first test window on.

    Args:
        steps: at least 1.
    """
    settings = trained.config.data
    window, truth = continuation(settings, trained.scale, steps=steps)
    weights = {name: value.float().numpy() for name, value in trained.weights.items()}
    values = roll_out(weights, window, steps=steps)
    scale = trained.scale or NO_SCALE
    window, truth, values = (scale.undo(part) for part in (window, truth, values))
    cycles = by_cycle(values[: len(truth)], truth, period=settings.period)
    return Forecast(window, values, truth, cycles, settings.period)


def ten_cycles(settings: Data) -> int:
    """Steps in ten cycles, at least one."""
    return max(1, round(10 * settings.period))


def draw(found: Forecast, path: Path) -> None:
    """Draw a forecast into a file.

    Raises:
        ConfigError: it cannot be written, or matplotlib is missing.
    """
    forecast_picture(
        path, window=found.window, forecast=found.values, truth=found.truth, cycles=found.cycles,
        period=found.period,
    )  # fmt: skip


def to_csv(found: Forecast) -> str:
    """A forecast as CSV: `step` (from 1), `forecast`, and `truth` where it is known."""
    rows = zip_longest(found.values, found.truth)
    lines = [
        f"{step},{value:.9g},{'' if true is None else format(true, '.9g')}"
        for step, (value, true) in enumerate(rows, start=1)
    ]
    return "\n".join(["step,forecast,truth", *lines]) + "\n"


def growth(found: Forecast) -> list[dict[str, str]]:
    """Rows of the table that shows how the error grows; none where no truth is known."""
    listed = {number * 10**i for number in LISTED_CYCLES for i in range(6)}
    listed |= {cycle.number for cycle in found.cycles[-1:]}
    held = np.abs(found.window[-1] - found.truth)
    return [
        {
            "cycle": str(cycle.number or ""),
            "steps": f"{cycle.first:,} to {cycle.last:,}" if cycle.number else "1",
            "mean\nerror": f"{cycle.mean_error:.4f}",
            "largest": f"{cycle.largest:.4f}",
            "last\nheld": f"{held[cycle.first - 1 : cycle.last].mean():.4f}",
            "amplitude": _known(f"{cycle.amplitude:.3f}"),
            "ahead\nby": _known(f"{cycle.phase:+.1f}°"),
            "in\nsteps": _known(f"{cycle.phase / 360 * found.period:+.2f}"),
        }
        for cycle in found.cycles
        if cycle.number in listed
    ]


def _known(text: str) -> str:
    return "" if "nan" in text else text


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    if not is_speaker():
        return 0  # one process is enough
    return exit_code_of(functools.partial(_run, arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser = Parser(
        prog="sinlstm_dist.forecast",
        description="Feed a trained model with its own predictions, from the first test window on.",
    )
    parser.add_argument("path", metavar="RUN_DIR", help="a finished run's folder, or a checkpoint")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="values to forecast (default: ten cycles)"
    )
    parser.add_argument("--output", metavar="PNG", help="draw truth, seed window and forecast")
    parser.add_argument("--csv", metavar="FILE", help="write step, forecast and truth")
    add_key_flags(parser, SETTABLE)
    options, overrides = parse_overrides(parser, arguments)
    if options.output:
        check_matplotlib()
    trained = read_trained(Path(options.path), overrides)
    steps = ten_cycles(trained.config.data) if options.steps is None else options.steps
    if steps < 1:
        raise ConfigError(f"--steps {steps}: at least 1 is needed")
    found = forecast(trained, steps=steps)
    if options.csv:  # what is asked for as a file comes before what the screen shows
        _write(Path(options.csv), to_csv(found))
    if options.output:
        draw(found, Path(options.output))
    show_facts(facts(options.path, trained.config, steps))
    if rows := growth(found):
        show_text("\n")
        show_table(rows, numbers=list(rows[0]))
    written = [file for file in (options.csv, options.output) if file]
    if written:
        show_text(f"\nwritten: {', '.join(written)}\n")
    return 0


def facts(path: str, config: Config, steps: int) -> dict[str, str]:
    """What was forecast, and how."""
    return {
        "run": path,
        "forecast": f"{steps:,} steps from the first test window, {steps / config.data.period:.3g} "
        f"cycles of {config.data.period:g} steps",
        "memory": f"each prediction follows from the last {config.data.window} values alone, "
        "as in training",
    }


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(program.run(main))
