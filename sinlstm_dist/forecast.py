"""Forecast far ahead: feed a trained model its own predictions.

    python -m sinlstm_dist.forecast runs/default --steps 600
    python -m sinlstm_dist.forecast runs/sunspots --csv future.csv
    python -m sinlstm_dist.forecast runs/sunspots --from test --steps 53 --output sunspots.png

The forecast of a series starts from the end of its file, that of the sine from the first test
window.
"""

import csv
import io
import sys
from argparse import Namespace
from itertools import zip_longest
from pathlib import Path

import numpy as np

from sinlstm_dist.command import as_program, command
from sinlstm_dist.data.source import describe_source
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.gallery import draw_forecast
from sinlstm_dist.horizons import BOUNDS, LEAST_ERRORS, Fan
from sinlstm_dist.rollout import Forecast
from sinlstm_dist.screen.console import show_facts, show_sentence, show_table, show_text
from sinlstm_dist.screen.pictures import check_matplotlib
from sinlstm_dist.trained import Trained, read_trained, refuse_task
from sinlstm_dist.words import counted, decimals, significant

LISTED_CYCLES = (0, 1, 2, 5, 10, 20, 50)  # and these times ten, a hundred, ...
FIRST_STEPS = 12  # of a forecast into the future, that are all listed


def to_csv(forecast: Forecast) -> str:
    """A forecast as CSV, one line per step; see `columns`.

    Nine digits tell the numbers apart, as many as float32 has: that is what the model computes in.
    """
    digits = significant(*_extent(forecast), digits=9)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    shown = columns(forecast, form=f".{digits}g")
    writer.writerow(shown)
    writer.writerows(zip_longest(*shown.values(), fillvalue=""))
    return text.getvalue()


def columns(forecast: Forecast, *, form: str) -> dict[str, list[str]]:
    """A forecast as columns of text: the later steps have no truth, or no fan, if it is unknown.

    Returns:
        `step`, from 1; `time`, if the file has times; `forecast`; `truth`, if any is known; of a
        forecast with a fan `lower_80`, `lower_50`, `upper_50` and `upper_80`.
    """

    def numbers(values: np.ndarray) -> list[str]:
        return [f"{value:{form}}" for value in values]

    found = {"step": [str(step) for step in range(1, len(forecast.values) + 1)]}
    if forecast.times:
        found["time"] = list(forecast.times[len(forecast.known) :])
    found["forecast"] = numbers(forecast.values)
    if len(forecast.truth):
        found["truth"] = numbers(forecast.truth)
    if forecast.fan:
        found |= dict(zip(BOUNDS, map(numbers, forecast.fan.bounds), strict=True))
    return found


def _extent(forecast: Forecast) -> tuple[float, float]:
    """The largest absolute value of a forecast's numbers, and the range of all."""
    bounds = forecast.fan.bounds.ravel() if forecast.fan else forecast.truth
    numbers = np.concatenate((forecast.values, forecast.truth, bounds), dtype=np.float64)
    return float(np.abs(numbers).max()), float(np.ptp(numbers))


def growth(forecast: Forecast) -> list[dict[str, str]]:
    """Rows of the table that shows how the error grows; empty if no truth is known."""
    listed = {number * 10**i for number in LISTED_CYCLES for i in range(6)}
    listed |= {cycle.number for cycle in forecast.cycles[-1:]}
    held = np.abs(forecast.known[-1] - forecast.truth)
    form = decimals(max((c.largest for c in forecast.cycles), default=0), below=1e9)
    return [
        {
            "cycle": str(cycle.number or ""),
            "steps": f"{cycle.first:,} to {cycle.last:,}" if cycle.number else "1",
            "mean\nerror": f"{cycle.mean_error:{form}}",
            "largest": f"{cycle.largest:{form}}",
            "last\nheld": f"{held[cycle.first - 1 : cycle.last].mean():{form}}",
            "amplitude": _known(f"{cycle.amplitude:.3f}"),
            "ahead\nby": _known(f"{cycle.phase:+.1f}°"),
            "in\nsteps": _known(f"{cycle.phase / 360 * forecast.period:+.2f}"),
        }
        for cycle in forecast.cycles
        if cycle.number in listed
    ]


def _known(text: str) -> str:
    return "" if "nan" in text else text


def future(forecast: Forecast) -> list[dict[str, str]]:
    """Rows of the table of a forecast into the future: its first steps, some later, the last."""
    largest, spread = _extent(forecast)
    shown = columns(forecast, form=decimals(largest, spread=spread))
    names = [name for name in shown if "_50" not in name]
    listed = {number * 10**i for number in LISTED_CYCLES for i in range(6)}
    listed |= {*range(1, FIRST_STEPS + 1), len(forecast.values)}
    rows = zip_longest(*(shown[name] for name in names), fillvalue="")
    return [
        dict(zip(names, row, strict=True)) for step, row in enumerate(rows, 1) if step in listed
    ]


@command("forecast", by_one=True)
def main(options: Namespace) -> int:
    """Forecast by a trained model's own predictions."""
    if options.output:
        check_matplotlib()
    if options.steps is not None and options.steps < 1:
        raise ConfigError(f"--steps {options.steps}: at least 1 is needed")
    refuse_task(Path(options.path), "a forecast")
    trained = read_trained(Path(options.path), options.keys)
    if options.start == "end" and not trained.series:
        raise ConfigError("--from end: the sine has no end: leave it out, or give --from test")
    from_end = options.start != "test" and trained.series is not None
    forecast = trained.forecast(from_end=from_end, steps=options.steps)
    if options.csv:  # the files that were asked for come before the screen
        _write(Path(options.csv), to_csv(forecast))
    if options.output:
        draw_forecast(forecast, trained.series, Path(options.output))
    show_facts(facts(options.path, trained, forecast))
    for note in (*trained.notes, *fan_notes(forecast)):
        show_sentence(f"note: {note}")
    if rows := future(forecast) if from_end else growth(forecast):
        show_text("\n")
        show_table(rows, numbers=set(rows[0]) - {"time"})
    written = [file for file in (options.csv, options.output) if file]
    if written:
        show_text(f"\nwritten: {', '.join(written)}\n")
    return 0


def facts(path: str, trained: Trained, forecast: Forecast) -> dict[str, str]:
    """The facts above the table: the run, and how the forecast was made."""
    data, steps = trained.config.data, len(forecast.values)
    start = f"after the end of {data.source}" if forecast.from_end else "from the first test window"
    shown = {"run": path}
    if trained.series:
        shown["data"] = describe_source(data, trained.series)
    cycles = ""
    if steps >= data.period:
        number = counted(steps / data.period, "cycle", ".3g")
        cycles = f", {number} of {counted(data.period, 'step', 'g')}"
    shown |= {
        "forecast": f"{counted(steps, 'step')} {start}{cycles}",
        "memory": f"each prediction reads only the last {counted(data.context, 'value')}, "
        "as in training",
    }
    if forecast.fan:
        shown["fan"] = _describe(forecast.fan, steps=steps)
    return shown


def _describe(fan: Fan, *, steps: int) -> str:
    tests, reached = counted(fan.num_forecasts, "forecast"), fan.bounds.shape[1]
    if not reached:
        return f"none: the test part has only {tests}, and {LEAST_ERRORS} are needed"
    text = f"holds 50 % and 80 % of the errors of {tests} in the test part"
    if reached < steps:
        text += f"; none after step {reached:,}, where fewer than {LEAST_ERRORS} have ended"
    return text


def fan_notes(forecast: Forecast) -> list[str]:
    """What a reader must know whose forecast lies outside of its own fan."""
    if not forecast.fan:
        return []
    (lower_80, *_, upper_80), values = forecast.fan.bounds, forecast.values
    values = values[: len(lower_80)]
    counts = {"low": (values < lower_80).sum(), "high": (values > upper_80).sum()}
    return [
        f"in the test part over 90 % of the forecasts were too {how} at {count:,} of "
        f"{counted(len(values), 'step')}: there the forecast lies outside its own fan"
        for how, count in counts.items()
        if count
    ]


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(as_program(main))
