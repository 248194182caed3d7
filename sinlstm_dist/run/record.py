"""The record of a run in its folder: configuration, metrics, and how the run ended."""

import functools
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sinlstm_dist.config import Config, read_config
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.problems import first_problem
from sinlstm_dist.run import files

WEIGHTS, METRICS, STARTS, SUMMARY, CONFIG, STOP, LOCK = (
    "model.safetensors",
    "metrics.jsonl",
    "starts.jsonl",
    "summary.json",
    "config.toml",
    "STOP",
    ".lock",
)
CURVES, WINDOWS, FORECAST = "curves.png", "windows.png", "forecast.png"
CHECKPOINTS, TENSORBOARD = "checkpoints", "tensorboard"
# All names in a run folder, and what each is.
WRITTEN = dict.fromkeys(
    (WEIGHTS, METRICS, STARTS, SUMMARY, CONFIG, STOP, LOCK, CURVES, WINDOWS, FORECAST), "a file"
) | dict.fromkeys((CHECKPOINTS, TENSORBOARD), "a folder")

Count = Annotated[int, Field(ge=0, le=2**53)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Loss = Annotated[float, Field(allow_inf_nan=False)]  # a task's own may be negative


class Epoch(BaseModel):
    """A line of metrics.jsonl, for checking lines that are read.

    A task that counts no correct predictions leaves the accuracies out.
    """

    model_config = ConfigDict(strict=True)

    epoch: Annotated[Count, Field(ge=1)]
    step: Annotated[Count, Field(ge=1)]
    train_loss: Loss
    train_accuracy: Amount = 0.0
    test_loss: Loss
    test_accuracy: Amount = 0.0
    train_samples: Count
    test_samples: Count
    epoch_s: Amount
    samples_per_s: Amount


class NoRun(ConfigError):
    """A folder that holds no run."""


class DataRecord(BaseModel):
    """What a run folder keeps about the series that the run is trained on.

    Args:
        values: of the file.
        sha256: of those that the run uses.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    values: Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Start(BaseModel):
    """A line of starts.jsonl; one of the sine or of an older version has no `data`."""

    model_config = ConfigDict(strict=True)

    step: Count
    data: DataRecord | None = None


@dataclass(frozen=True)
class Summary:
    """How a run ended; the content of summary.json.

    Args:
        outcome: "completed", "stopped" or "failed".
        reason: why the run ended so, for people.
        epochs: finished epochs.
        step: optimizer steps.
        metrics: of the last finished epoch, as in metrics.jsonl; empty before the first.
        best: metrics of the epoch with the lowest test loss.
        world_size: processes.
        device: such as "cpu" or "cuda".
        reduction: "ordered" or "ddp".
        wall_s: seconds since this start of the run.
        versions: of Python and of the packages that compute.
        below_target: whether the run ended below `target_accuracy`.
        weights_sha256: of model.safetensors; "" without that file, or from an older version.
    """

    outcome: str
    reason: str
    epochs: Count
    step: Count
    metrics: Mapping[str, Any]
    best: Mapping[str, Any]
    world_size: Count
    device: str
    reduction: str
    wall_s: Amount
    versions: Mapping[str, str]
    below_target: bool = False
    weights_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""

    def vouches_for(self, weights: bytes) -> bool:
        """Whether a model.safetensors with this content can be this run's."""
        return self.weights_sha256 in ("", hashlib.sha256(weights).hexdigest())


@dataclass(frozen=True)
class RunRecord:
    """The content of a run folder; see `read_run`.

    Args:
        config: the resolved configuration.
        history: metrics of the finished epochs, as in metrics.jsonl.
        summary: how the run ended; None if it has not, or was killed.
        resumed_after: the steps after which it was resumed.
    """

    config: Config
    history: list[dict[str, Any]]
    summary: Summary | None
    resumed_after: list[int]


def read_run(path: Path) -> RunRecord:
    """Read a run folder; the run may have ended or not.

    Raises:
        NoRun: there is no folder, or it holds no run.
        ConfigError: a file in it cannot be read.
    """
    if not os.path.isdir(path):
        raise NoRun(f"{path} is not a run folder: it is not a folder; name the output.dir of a run")
    if not os.path.isfile(path / CONFIG):
        raise NoRun(f"{path} is not a run folder: it has no {CONFIG}; name the output.dir of a run")
    config = read_config(path / CONFIG)
    try:
        file = path / METRICS
        history = [read_epoch(line) for line in whole_lines(file)]
        file = path / SUMMARY
        summary = read_summary(file)
        file = path / STARTS
        steps = {start.step for start in _read_starts(file)}
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from error
    except ValueError as error:
        what = first_problem(error) if isinstance(error, ValidationError) else error
        raise ConfigError(f"{file} is damaged: {what}") from error
    return RunRecord(config, history, summary, sorted(steps - {0}))


def read_epoch(line: bytes) -> dict[str, Any]:
    """The metrics of a finished epoch, from its line of metrics.jsonl.

    Raises:
        ValueError: this program did not write the line.
    """
    record = files.parse_json(line)
    Epoch.model_validate(record)
    return dict(record)


def read_summary(path: Path) -> Summary | None:
    """A summary.json; None if there is no such file.

    Raises:
        ValueError: this program did not write it.
        OSError: it cannot be read.
    """
    try:
        content = files.read(path)
    except FileNotFoundError:
        return None
    files.parse_json(content)
    summary = _summaries().validate_json(content, strict=True)
    for record in (summary.metrics, summary.best):
        if record or summary.outcome == "completed":
            Epoch.model_validate(record)
    return summary


@functools.cache
def _summaries() -> TypeAdapter[Summary]:
    return TypeAdapter(Summary)


def read_data(path: Path) -> dict[str, Any] | None:
    """What the folder of a run, or of one of its checkpoints, keeps about the run's series.

    Returns:
        a `DataRecord` as a JSON value; None if the folder keeps nothing, or has been taken out of
        its run's folder.
    """
    is_checkpoint = path.resolve().parent.name == CHECKPOINTS
    folder = path.resolve().parent.parent if is_checkpoint else path
    try:
        starts = _read_starts(folder / STARTS)
    except (OSError, ValueError):
        return None
    data = starts[-1].data if starts else None
    return data.model_dump() if data else None


def _read_starts(path: Path) -> list[_Start]:
    return [_Start.model_validate(files.parse_json(line)) for line in whole_lines(path)]


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a .jsonl file, without a line that a crash cut; empty if there is no file."""
    try:
        lines = files.read(path).splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [line for line in lines if line.endswith(b"\n") and not line.startswith(b"\0")]
