"""Draw the curves of runs, or the windows of a data set.

python -m sinlstm_dist.plot runs/default
python -m sinlstm_dist.plot runs/one runs/two --output both.png
python -m sinlstm_dist.plot data --config configs/noisy.toml
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sinlstm_dist import forecast, metrics, program
from sinlstm_dist.command import exit_code_of
from sinlstm_dist.command_line import Parser, add_key_flags, parse_overrides
from sinlstm_dist.config import KEYS, SINE, Config, Data, load_config
from sinlstm_dist.data.series import NO_SCALE, SeriesDataset
from sinlstm_dist.data.source import datasets
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.model import Persistence
from sinlstm_dist.processes.launcher import is_speaker
from sinlstm_dist.run.checkpoint import WEIGHTS
from sinlstm_dist.run.record import CURVES, FORECAST, SUMMARY, WINDOWS, RunRecord, read_run
from sinlstm_dist.run.trained import read_trained
from sinlstm_dist.screen.console import show_text
from sinlstm_dist.screen.pictures import Curve, check_matplotlib, curves_picture, windows_picture

BASELINE_SAMPLES = 100_000  # at most, of test windows: more would not move a line in a picture
SETTABLE = [key for key in KEYS if key.startswith("data.")]
EXAMPLE_NOISE = 0.05  # of the picture with noise, where the data have none


def draw_curves(paths: Sequence[Path], output: Path) -> None:
    """Draw the curves of runs, finished or not, into one picture.

    Raises:
        ConfigError: a folder holds no run or no finished epoch, or the picture cannot be written.
    """
    runs = [read_run(path) for path in paths]
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    for path, run in zip(paths, runs, strict=True):
        if not run.history:
            raise ConfigError(f"{path} has not finished an epoch yet: there is nothing to draw")
    curves_picture(output, [_curve(name, run) for name, run in zip(names, runs, strict=True)])


def _curve(name: str, run: RunRecord) -> Curve:
    last = run.history[-1]
    return Curve(
        name=name,
        history=run.history,
        baseline=_baseline(run.config),
        resumed_after=[step * last["epoch"] / last["step"] for step in run.resumed_after],
        tolerance=run.config.train.tolerance,
    )


def _baseline(config: Config) -> tuple[float, float]:
    """Loss and accuracy of "the last value again" on the test windows."""
    _, test = datasets(config.data)
    windows, targets = test[np.arange(min(len(test), BASELINE_SAMPLES))]
    totals = metrics.count(Persistence()(windows), targets, tolerance=config.train.tolerance)
    squared_error, correct, samples = totals.tolist()
    return squared_error / samples, correct / samples


def draw_windows(settings: Data, output: Path) -> None:
    """Draw train windows, the next value marked; of the sine without and with noise.

    Raises:
        ConfigError: the picture cannot be written.
    """
    noise = settings.noise or EXAMPLE_NOISE
    example = "" if settings.noise else " (an example: these data have none)"
    panels = {"windows without noise": 0.0, f"with noise {noise:g}{example}": noise}
    if settings.source != SINE:
        panels = {"windows of the series": 0.0}
    windows_picture(
        output,
        {
            title: _windows(settings.model_copy(update={"noise": amount}))
            for title, amount in panels.items()
        },
    )


def _windows(settings: Data) -> list[tuple[int, np.ndarray, float]]:
    """Three windows, a third of a cycle apart, or as many as there are; in the user's units."""
    train, _ = datasets(settings)
    starts = dict.fromkeys(round(settings.period * i / 3) for i in range(3))
    samples = {first: train[first] for first in starts if first < len(train)}
    scale = train.scale if isinstance(train, SeriesDataset) else NO_SCALE
    return [
        (first, scale.undo(window[:, 0].numpy()), scale.undo(target.numpy()).item())
        for first, (window, target) in samples.items()
    ]


def draw_run(path: Path) -> list[str]:
    """Draw all pictures of a run into its folder; returns the names of the files.

    Raises:
        ConfigError: one cannot be written.
    """
    run, drawn = read_run(path), [WINDOWS]
    draw_windows(run.config.data, path / WINDOWS)
    if run.history:
        draw_curves([path], path / CURVES)
        drawn.append(CURVES)
    if (path / WEIGHTS).exists():
        steps = forecast.ten_cycles(run.config.data)
        forecast.draw(forecast.forecast(read_trained(path), steps=steps), path / FORECAST)
        drawn.append(FORECAST)
    return drawn


def draw_missing(path: Path) -> list[str]:
    """As `draw_run`, but nothing if the pictures are newer than the end of the run.

    Raises:
        ConfigError: one cannot be written.
    """
    last, ended = path / FORECAST, path / SUMMARY
    is_drawn = last.exists() and last.stat().st_mtime_ns >= ended.stat().st_mtime_ns
    return [] if is_drawn else draw_run(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    if not is_speaker():
        return 0  # one process is enough
    return exit_code_of(functools.partial(_run, arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser = Parser(
        prog="sinlstm_dist.plot",
        description="Draw the curves of runs, or the windows of a data set.",
    )
    parser.add_argument("what", nargs="+", metavar="RUN_DIR|data", help='run folders, or "data"')
    parser.add_argument(
        "--output", metavar="PNG", help=f"default: {CURVES} in the run's folder, or here"
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file; for data only")
    add_key_flags(parser, SETTABLE)
    options, overrides = parse_overrides(parser, arguments)
    check_matplotlib()
    if options.what == ["data"]:
        output = Path(options.output or WINDOWS)
        draw_windows(load_config(options.config, overrides).data, output)
    elif options.config or overrides:
        raise ConfigError("--config and --data.* are for plot data: a run has its own settings")
    else:
        paths = [Path(what) for what in options.what]
        output = Path(options.output or (paths[0] / CURVES if len(paths) == 1 else CURVES))
        draw_curves(paths, output)
    show_text(f"written: {output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(program.run(main))
