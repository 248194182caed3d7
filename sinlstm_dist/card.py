"""The model card: how a trained model is used, what it was measured to do, how it was trained.

It is meant to be published, so it names no folders of this machine.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from sinlstm_dist.config import SINE, Config, read_config
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.run import files, state
from sinlstm_dist.run.record import CONFIG, SUMMARY, Summary, read_summary
from sinlstm_dist.run.state import STATE, NewerVersion
from sinlstm_dist.words import counted

CARD = "README.md"
PATHS = {"data.source", "train.init_from", "checkpoint.resume"}  # and the settings of [task]


def find_config(folder: Path) -> Config | None:
    """The configuration of the run, or of the checkpoint, in a folder; None if it is not known."""
    try:
        if (folder / STATE).exists():
            return Config.model_validate(state.parse(files.read(folder / STATE))["config"])
        return read_config(folder / CONFIG)
    except (ConfigError, NewerVersion, OSError, ValueError):  # no run, or not of this program
        return None


def find_card(weights: Path, *, sizes: Mapping[str, Any], std: float, config: Config | None) -> str:
    """The model card for a file with weights: the one in its folder, or one made of its run.

    Args:
        weights: the file.
        sizes: as for `write_card`.
        std: as for `write_card`.
        config: as for `write_card`.
    """
    folder = weights.parent
    if (folder / CARD).exists():
        return (folder / CARD).read_text(encoding="utf-8")
    try:
        return write_card(sizes=sizes, std=std, config=config, ended=read_summary(folder / SUMMARY))
    except (OSError, ValueError):
        return write_card(sizes=sizes, std=std, config=config)


def write_card(
    *,
    sizes: Mapping[str, Any],
    std: float = 1.0,
    config: Config | None = None,
    ended: Summary | None = None,
) -> str:
    """A model card in Markdown.

    Args:
        sizes: arguments of the `Predictor`.
        std: standard deviation that the model divides by; 1 for the sine.
        config: the run's configuration; None if it is not known.
        ended: the run's summary; None if it is not known.
    """
    parts = [_HEAD + _usage(sizes, config)]
    if config and ended and ended.metrics:
        parts += [
            f"## Measured after epoch {ended.metrics['epoch']}\n",
            _measured(config, ended, std),
        ]
        versions = ", ".join(f"{name} {value}" for name, value in ended.versions.items())
        parts.append(
            f"Trained on {counted(ended.world_size, 'process')}, {ended.device}, with {versions}.\n"
        )
    if config:
        parts.append(f"## Configuration\n\n```toml\n{_without_folders(config)}```\n")
    return "\n".join(parts)


_HEAD = """---
library_name: sinlstm-dist
pipeline_tag: time-series-forecasting
tags: [lstm, time-series]
---

# An LSTM that predicts the next value of a series

"""


def _usage(sizes: Mapping[str, Any], config: Config | None) -> str:
    """Code that runs in the model's folder, and the units of its numbers."""
    window, features = config.data.window if config else 50, sizes["input_size"]
    steps = f"{window} + {sizes['difference']}" if sizes["difference"] else str(window)
    shape = f"(batch, {steps if config else 'window'}, {features})"
    ahead = (
        "forecasts = model.forecast(windows, steps=12)  # (batch, 12), from its own predictions\n"
    )
    if not sizes["scaled"] or not features == sizes["output_size"] == 1:
        ahead = ""
    code = f"""```python
import numpy as np
from sinlstm_dist.model import Predictor

model = Predictor.from_pretrained(".")  # this folder, or its name on the Hub
windows = np.zeros((1, {steps}, {features}))  # your values here: {shape}, oldest first
predictions = model.predict(windows)  # (batch, {sizes["output_size"]})
{ahead}```
"""
    if not sizes["scaled"]:
        return code
    series = "the series that it was trained on"
    if config and config.data.source != SINE:
        column = f"`{config.data.column}` of " if config.data.column else ""
        series = f"{column}`{_name(config.data.source)}`"
    return f"{code}\n`windows` and `predictions` are in the units of {series}.\n"


def _measured(config: Config, ended: Summary, std: float) -> str:
    """The metrics of the last epoch, with their units; accuracies only if they were counted."""
    metrics, is_own = ended.metrics, bool(config.task.build)
    is_series = config.data.source != SINE
    kinds = ["train", "test"]
    columns = {"windows": kinds}
    losses = [metrics[f"{kind}_loss"] for kind in kinds]
    if is_series:
        columns["root mean squared error"] = [f"{math.sqrt(loss) * std:.4g}" for loss in losses]
    columns["loss" if is_own else "mean squared error"] = [f"{loss:.4e}" for loss in losses]
    if all(f"{kind}_accuracy" in metrics for kind in kinds):
        columns["accuracy"] = [f"{metrics[f'{kind}_accuracy']:.4f}" for kind in kinds]
    columns["number"] = [f"{metrics[f'{kind}_samples']:,}" for kind in kinds]
    rows = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    if not is_series:
        return table
    what = "differences" if config.data.difference else "values"
    return (
        f"{table}\nThe root mean squared error is in the units of the series. The mean squared "
        f"error is in\nsquared standard deviations of the {what} of the train part ({std:.6g} "
        f"units each); a prediction\ncounts as correct if its error is below "
        f"{config.train.tolerance:g} of them.\n"
    )


def _without_folders(config: Config) -> str:
    """The configuration as TOML, without [output] and without the folders of its files."""
    tables = config.model_dump(exclude={"output"})
    for section, table in tables.items():
        for key, value in table.items():
            if section == "task" or f"{section}.{key}" in PATHS:
                table[key] = _name(value)
    return tomli_w.dumps(tables)


def _name(value: Any) -> Any:
    """The last part of a path, here or on Windows; any other value as it is."""
    if isinstance(value, list):
        return [_name(item) for item in value]
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if isinstance(value, str) else value
