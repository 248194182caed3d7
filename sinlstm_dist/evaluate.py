"""Test a trained model and, if it is the built-in one, compare it with two baselines.

    python -m sinlstm_dist.evaluate runs/default/checkpoints/step-00010000
    python -m sinlstm_dist.evaluate runs/default --data.noise 0.1
    python -m sinlstm_dist.evaluate runs/own --task.build my_task.py:build
    torchrun --nproc-per-node 2 --local-addr 127.0.0.1 -m sinlstm_dist.evaluate runs/default

The numbers are the same on any number of processes.
"""

import functools
import math
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sinlstm_dist import user_code
from sinlstm_dist.blame import blamed
from sinlstm_dist.command import as_program, command
from sinlstm_dist.config import Config, override
from sinlstm_dist.data.source import describe_source
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.horizons import HORIZONS, MODEL, Backtest, again
from sinlstm_dist.metrics import Totals
from sinlstm_dist.new_task import trained_task
from sinlstm_dist.piece_rows import PieceRows
from sinlstm_dist.processes.joining import join_world
from sinlstm_dist.processes.world import World
from sinlstm_dist.quality import SECTORS, Evaluation, evaluate_trained
from sinlstm_dist.reduction import totals_over
from sinlstm_dist.run.checkpoint import Tensors
from sinlstm_dist.run.record import read_data
from sinlstm_dist.screen.console import show_facts, show_sentence, show_table, show_text
from sinlstm_dist.splits import deal_out_test, prepared
from sinlstm_dist.task import counts_of
from sinlstm_dist.trained import Trained, read_saved, to_trained
from sinlstm_dist.words import counted, decimals, first_of


def share_saved(path: Path, *, world: World) -> tuple[Config, Tensors, dict[str, Any] | None]:
    """Read a run on the main process for all: no other process needs to see the folder.

    Raises:
        ConfigError: as `read_saved`.

    Collective: yes.
    """
    read = functools.cache(lambda: read_saved(path))
    config = world.on_main(lambda: read()[0].model_dump(mode="json"))
    weights = world.tensors_from_main(lambda: read()[1])
    data = world.on_main(lambda: read_data(path))
    return Config.model_validate(config), weights, data


def evaluate_task(config: Config, weights: Tensors, *, world: World) -> Totals:
    """Test a user's own model on its test data.

    Args:
        config: its `task.build` is loaded.
        weights: by name.

    Raises:
        ConfigError: the weights are of another model, or the user's code fails.

    Collective: yes.
    """
    task = trained_task(config, weights, world)
    split = deal_out_test(task, config, world, num_pieces=config.train.virtual_shards)
    split = prepared(split, world)
    with blamed(config.task.build, at=task.totals):
        (piece,) = world.to_device(split.some(np.arange(1), [1]))
        counts = counts_of(task.totals(task.model.eval(), piece))
    rows = PieceRows(task, counts, seed=config.train.seed, device=world.device, num_threads=1)
    return totals_over(rows, split, peers=world)


def facts(path: Path, trained: Trained) -> dict[str, str]:
    """The facts that the command shows first: the run and its test windows."""
    config = trained.config
    shown = {
        "run": str(path),
        "data": f"{counted(config.data.test_size, 'test window')} of "
        f"{counted(config.data.window, 'step')}, "
        f"{describe_source(config.data, trained.series)}",
        "correct": f"an error below {config.train.tolerance:g}",
    }
    if trained.scale:
        shown["correct"] += (
            f" standard deviations ({config.train.tolerance * trained.scale.std:.4g})"
        )
        of = "'s differences" if trained.difference else ""
        shown["units"] = (
            f"errors are in those of the series; loss and correctness in {trained.scale.std:.4g} "
            f"of them, the standard deviation of the train part{of}"
        )
    return shown


def overall(evaluation: Evaluation, *, period: int) -> list[dict[str, str]]:
    """Rows of the table of model and baselines."""
    named = {MODEL: evaluation.model, again(1): evaluation.last_value}
    if evaluation.period_ago:
        named[f"the value {counted(period, 'step')} ago"] = evaluation.period_ago
    form = decimals(max(quality.largest.max() for quality in named.values()), below=1e9)
    return [
        {
            "prediction": name,
            "loss": f"{quality.totals.loss:.4e}",
            "accuracy": f"{quality.totals.accuracy:.4f}",
            "mean\nerror": f"{quality.mean_error:{form}}",
            "largest": f"{quality.largest.max():{form}}",
            "model's\n/ this": _ratio(evaluation.model.mean_error, quality.mean_error),
        }
        for name, quality in named.items()
    ]


def by_position(evaluation: Evaluation) -> list[dict[str, str]]:
    """Rows of the table of errors by the target's place in the cycle."""
    model, last = evaluation.model, evaluation.last_value
    width, samples = 360 // SECTORS, model.samples
    form = decimals(max(model.largest.max(), last.largest.max()), below=1e9)
    return [
        {
            "target at": f"{i * width:>3}° to {(i + 1) * width:>3}°",
            "samples": f"{samples[i]:,.0f}",
            "mean\nerror": f"{model.errors[i] / samples[i]:{form}}",
            "largest": f"{model.largest[i]:{form}}",
            "last value again": f"{last.errors[i] / samples[i]:{form}}",
            "model's\n/ this": _ratio(model.errors[i], last.errors[i]),
        }
        for i in range(SECTORS)
        if samples[i]
    ]


def by_horizon(backtest: Backtest) -> list[dict[str, str]]:
    """Rows of the table of forecasts several steps ahead; empty if too few end in the test part."""
    scores = backtest.scores()
    form = decimals(max((score.rmse for score in scores), default=0), below=1e9)
    return [
        {
            "steps\nahead": f"{score.horizon:,}" if score.prediction == MODEL else "",
            "forecast": score.prediction,
            "forecasts": f"{score.num_forecasts:,}" if score.prediction == MODEL else "",
            "MAE": f"{score.mae:{form}}",
            "RMSE": f"{score.rmse:{form}}",
            "MASE": f"{score.mase:.3f}",
        }
        for score in scores
    ]


def _ratio(model: float, baseline: float) -> str:
    ratio = model / baseline if baseline else math.inf
    return f"{ratio:.2f}" if ratio < 1000 else "over 1000"


@command("evaluate")
def main(options: Namespace) -> int:
    """Test a trained model."""
    path, timeout_s = Path(options.path), options.config.train.timeout_s
    with join_world(timeout_s=timeout_s, one_thread=True) as world:
        config, weights, data = share_saved(path, world=world)
        if config.task.build:
            config = _with_code(config, options.keys, origin=path)
            totals = evaluate_task(config, weights, world=world)
        else:
            trained = to_trained(config, weights, options.keys, origin=path, data=data)
            evaluation = evaluate_trained(trained, world=world)
    if world.is_main and config.task.build:  # and not while others wait: the screen may be slow
        _show_task(path, config, totals)
    elif world.is_main:
        _show(path, trained, evaluation)
    return 0


def _with_code(config: Config, keys: Mapping[str, Any], *, origin: Path) -> Config:
    """The configuration of a run of the user's own model, with the code that the user names now."""
    if "task.build" not in keys:
        raise ConfigError(
            f"{origin} is a run of task.build={config.task.build}: name its code with "
            "--task.build FILE.py:FUNCTION"
        )
    if others := [key for key in keys if key.startswith(("data.", "model."))]:
        raise ConfigError(f"{others[0]} is for the built-in task; {origin} is a run of another one")
    code = user_code.load(keys["task.build"])
    if found := code.findings(config.task.settings(), strict=False):
        differing = list(dict.fromkeys(".".join(finding["loc"][:2]) for finding in found))
        raise ConfigError(
            f"{origin} is a run of {config.task.build}; {code.spec} has other settings "
            f"({first_of(differing)})"
        )
    return override(config, keys)


def _show_task(path: Path, config: Config, totals: Totals) -> None:
    samples = counted(totals.samples, "test sample")
    show_facts({"run": str(path), "data": f"{samples} of {config.task.build}"})
    row = {"loss": f"{totals.loss:.4e}"}
    if totals.accuracy is not None:
        row["accuracy"] = f"{totals.accuracy:.4f}"
    show_text("\n")
    show_table([row], numbers=list(row))


def _show(path: Path, trained: Trained, evaluation: Evaluation) -> None:
    backtest = trained.backtest(steps=HORIZONS[-1])
    shown = facts(path, trained)
    if backtest:
        shown["MASE"] = (
            f"MAE relative to {backtest.unit:.4g}, that of {backtest.naive} in the train part"
        )
    show_facts(shown)
    for note in evaluation.notes:
        show_sentence(f"note: {note}")
    tables = [overall(evaluation, period=trained.config.data.season), by_position(evaluation)]
    tables += [by_horizon(backtest)] if backtest else []
    for rows in filter(None, tables):
        show_text("\n")
        show_table(rows, numbers=set(rows[0]) - {"prediction", "target at", "forecast"})


if __name__ == "__main__":
    sys.exit(as_program(main))
