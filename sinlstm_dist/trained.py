"""A trained model, read back for use: its configuration and its weights.

It is named by the folder of a finished run, or by one of the run's checkpoints.
"""

import contextlib
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load

from sinlstm_dist.config import SINE, Config, named_build, override
from sinlstm_dist.data.series import Series
from sinlstm_dist.data.source import continuation, open_source
from sinlstm_dist.differences import DIFFERENCE, MEAN, STD, Scale
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.horizons import Backtest, compare_forecasts, last_horizon, starts
from sinlstm_dist.model import Predictor
from sinlstm_dist.rollout import Forecast, continue_series
from sinlstm_dist.run import checkpoint, files
from sinlstm_dist.run.checkpoint import DamagedCheckpoint, Tensors
from sinlstm_dist.run.layout import shapes, unlike
from sinlstm_dist.run.record import (
    CHECKPOINTS,
    CONFIG,
    SUMMARY,
    WEIGHTS,
    Summary,
    read_data,
    read_run,
)
from sinlstm_dist.seen import Seen


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Args:
        config: of the run, with the user's overrides.
        weights: by parameter name, on the CPU.
        seen: what it was trained on.
    """

    config: Config
    weights: Tensors
    seen: Seen

    @functools.cached_property
    def series(self) -> Series | None:
        """The series of its configuration's file, read once; None for the sine.

        Raises:
            ConfigError: the series cannot be used.
        """
        return open_source(self.config.data)

    @property
    def notes(self) -> list[str]:
        """What a reader of figures about its test windows must know."""
        return self.seen.notes(self.series) if self.series else []

    @property
    def scale(self) -> Scale | None:
        """The scale of the series that it was trained on; None for the sine."""
        if MEAN not in self.weights:
            return None
        return Scale(float(self.weights[MEAN]), float(self.weights[STD]))

    @property
    def difference(self) -> int:
        """Time steps between the two values of the differences that it has learned; 0 if none."""
        return int(self.weights.get(DIFFERENCE, 0))

    def forecast(self, *, from_end: bool = False, steps: int | None = None) -> Forecast:
        """Feed the model its own predictions, in the user's units.

        Args:
            from_end: begin at the end of a file, with a fan, and not at the first test window.
            steps: values to predict, at least 1; None for ten cycles, or two from the end.

        Raises:
            ConfigError: the series cannot be used.
        """
        settings = self.config.data
        steps = steps or max(1, round((2 if from_end else 10) * settings.period))
        known, truth, times = continuation(settings, self.series, from_end=from_end, steps=steps)
        window = known[None, -settings.context :]
        (values,) = continue_series(self._arrays, window, steps=steps)
        tested = self.backtest(steps=steps) if from_end else None
        return Forecast(
            known,
            values,
            truth,
            period=settings.period,
            times=times,
            from_end=tested is not None,
            fan=tested.fan(values) if tested else None,
        )

    def backtest(self, *, steps: int) -> Backtest | None:
        """Forecast from many windows of a series' test part; None for the sine.

        Args:
            steps: values in each forecast, at most.

        Raises:
            ConfigError: the series cannot be used.
        """
        settings, series = self.config.data, self.series
        if not series:
            return None
        steps = min(steps, last_horizon(settings.test_size))
        values = series.column.values
        ends = series.test_start + settings.context - 1 + starts(settings.test_size)
        windows = values[ends[:, None] + np.arange(1 - settings.context, 1)]
        return compare_forecasts(
            values,
            continue_series(self._arrays, windows, steps=steps),
            ends=ends,
            train=self.seen.train_part(series),
            period=settings.season,
        )

    @property
    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: value.float().numpy() for name, value in self.weights.items()}


def read_saved(path: Path) -> tuple[Config, Tensors]:
    """Read the configuration and the weights of a finished run, or of a checkpoint.

    Args:
        path: its folder.

    Raises:
        ConfigError: there is no such run, it has not finished, or a file is damaged.
    """
    if any(os.path.lexists(path / name) for name in (checkpoint.STATE, checkpoint.MANIFEST)):
        return _read_checkpoint(path)
    record = read_run(path)
    return record.config, _read_final_weights(path, record.summary)


def read_trained(path: Path, overrides: Mapping[str, Any] | None = None) -> Trained:
    """Read a trained model of the built-in task; arguments and errors as for `to_trained`."""
    data = read_data(path)
    return to_trained(*read_saved(path), overrides or {}, origin=path, data=data)


def to_trained(
    config: Config,
    weights: Tensors,
    overrides: Mapping[str, Any],
    *,
    origin: Path,
    data: Mapping[str, Any] | None = None,
) -> Trained:
    """The trained model with this configuration and these weights.

    Args:
        config: of its run.
        weights: by name.
        overrides: dotted configuration keys to values, as for `load_config`.
        origin: the folder that they come from.
        data: what that folder keeps about the run's series.

    Raises:
        ConfigError: they do not fit together, or are not of the built-in task.
    """
    if config.task.build:
        raise ConfigError(
            f"{origin} is a run of task.build={config.task.build}: only the command evaluate tests "
            "such a model"
        )
    _check(weights, config, origin=origin)
    trained = Trained(override(config, overrides), weights, Seen(config.data, data))
    source = trained.config.data.source
    if (source == SINE) != (trained.scale is None):
        raise ConfigError(
            f"data.source={source}: {origin} was trained on {config.data.source}; a model trained "
            "on the sine has no units for a series (and vice versa)"
        )
    if (asked := trained.config.data.difference) != trained.difference:
        raise ConfigError(
            f"data.difference={asked}: the model in {origin} was trained with {trained.difference}"
        )
    return trained


def refuse_task(path: Path, what: str) -> None:
    """Refuse the folder of a run, or of a checkpoint, of the user's own model.

    Args:
        path: the folder.
        what: what only the built-in task has, such as "a forecast".

    Raises:
        ConfigError: it is one.
    """
    build = named_build(path / CONFIG)
    if (path / checkpoint.STATE).exists():
        with contextlib.suppress(DamagedCheckpoint, OSError):  # for the caller to report
            build = checkpoint.read(path).state["config"]["task"]["build"]
    if build:
        raise ConfigError(
            f"{path} is a run of task.build={build}: only the built-in task has {what}"
        )


def _read_checkpoint(path: Path) -> tuple[Config, Tensors]:
    try:
        whole = checkpoint.read(path)
    except DamagedCheckpoint as damage:
        raise ConfigError(str(damage)) from damage
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from error
    return Config.model_validate(whole.state["config"]), whole.weights


def _check(weights: Tensors, config: Config, *, origin: Path) -> None:
    """Refuse weights that do not fit the model of the run's configuration."""
    with torch.device("meta"):
        model = Predictor(
            hidden_size=config.model.hidden_size,
            num_layers=config.model.num_layers,
            scaled=config.data.source != SINE,
            difference=config.data.difference,
        )
    if problem := unlike(weights, shapes(model.state_dict())):
        raise ConfigError(f"{origin}: the weights do not fit its configuration: {problem}")


def _read_final_weights(path: Path, summary: Summary | None) -> Tensors:
    file = path / WEIGHTS
    if not os.path.exists(file):
        newest = next(iter(checkpoint.find(path / CHECKPOINTS)), None)
        instead = f", or name its newest checkpoint, {newest}" if newest else ""
        raise ConfigError(f"{path} holds a run that has not finished: continue it{instead}")
    try:
        content = files.read(file)
        if summary and not summary.vouches_for(content):
            raise ConfigError(
                f"{file}: is damaged (it does not match {SUMMARY}); run train again to restore it"
            )
        return load(content)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise ConfigError(f"{file}: is damaged: {error}") from error
