"""What a run's folder tells about the run: its configuration, its metrics, and how it ended."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinlstm_dist.config import Config, ConfigError, load_config

METRICS, STARTS, SUMMARY, CONFIG, STOP, LOCK = (
    "metrics.jsonl",
    "starts.jsonl",
    "summary.json",
    "config.toml",
    "STOP",
    ".lock",
)


FIGURES = ("epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy")


class NoRun(ConfigError):
    """A folder that holds no run."""


@dataclass(frozen=True)
class Summary:
    """How a run ended; the content of summary.json.

    Args:
        outcome: "completed", "stopped" or "failed".
        reason: why it ended so, for people.
        epochs: finished epochs.
        step: optimizer steps.
        metrics: the last finished epoch's, as in metrics.jsonl; empty before the first.
        best: the metrics of the epoch with the lowest test loss.
        world_size: processes.
        device: such as "cpu" or "cuda".
        reduction: "ordered" or "ddp".
        wall_s: seconds of this start of the run.
        versions: of what computes.
        below_target: whether it ended below `target_accuracy`.
    """

    outcome: str
    reason: str
    epochs: int
    step: int
    metrics: Mapping[str, Any]
    best: Mapping[str, Any]
    world_size: int
    device: str
    reduction: str
    wall_s: float
    versions: Mapping[str, str]
    below_target: bool = False


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder tells about it; see `read_run`.

    Args:
        config: the resolved configuration.
        history: the finished epochs' metrics, as in metrics.jsonl.
        summary: how it ended; None of a run that has not, or was killed.
        resumed_after: the steps after which it was continued.
    """

    config: Config
    history: list[dict[str, Any]]
    summary: Summary | None
    resumed_after: list[int]


def read_run(path: Path) -> RunRecord:
    """Read a run folder, also that of a run that has not ended.

    Raises:
        NoRun: it is a folder without a run.
        ConfigError: it is no folder, or a file of it cannot be read.
    """
    if not path.is_dir():
        raise ConfigError(
            f"{path} is not a run folder: it is no folder; name the output.dir of a run"
        )
    if not (path / CONFIG).is_file():
        raise NoRun(f"{path} is not a run folder: it has no {CONFIG}; name the output.dir of a run")
    config = load_config(path / CONFIG)
    try:
        with _written_by_us(path / METRICS):
            history = [_figures(line) for line in finished_epochs(path / METRICS)]
        with _written_by_us(path / SUMMARY):
            summary = _read_summary(path / SUMMARY)
        resumed_after = _resumed_after(path / STARTS)
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from error
    return RunRecord(config, history, summary, resumed_after)


@contextlib.contextmanager
def _written_by_us(path: Path) -> Iterator[None]:
    """Tell what is wrong with a file whose content is not as this program writes it."""
    try:
        yield
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(f"{path} was not written by this program: {error}") from error


def _figures(line: bytes) -> dict[str, Any]:
    """A finished epoch's metrics."""
    record = json.loads(line)
    _check_numbers(record, FIGURES)
    return dict(record)


def _read_summary(path: Path) -> Summary | None:
    if not path.exists():
        return None
    content = json.loads(path.read_bytes())
    summary = Summary(**content)
    _check_numbers(content, ("epochs", "step", "world_size", "wall_s"))
    if not isinstance(summary.outcome, str):
        raise TypeError("outcome is no text")
    return summary


def _check_numbers(record: Mapping[str, Any], keys: Sequence[str]) -> None:
    for key in keys:
        if not isinstance(record.get(key), int | float):
            raise TypeError(f"{key} is no number")


def _resumed_after(path: Path) -> list[int]:
    """The steps in a starts.jsonl, but those of starts from the beginning and of torn lines."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    with _written_by_us(path):
        steps = [_number(line, "step") for line in lines]
    return sorted({step for step in steps if step > 0})


def finished_epochs(path: Path, *, epochs: float = math.inf) -> list[bytes]:
    """The lines of a metrics.jsonl up to and including epoch `epochs`; torn ones are left out."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    with _written_by_us(path):
        return [line for line in lines if 1 <= _number(line, "epoch") <= epochs]


def _number(line: bytes, key: str) -> int:
    """The number under `key` in a line of JSON; 0 of a line that a crash left torn."""
    try:
        return int(json.loads(line)[key]) if line.endswith(b"\n") else 0
    except (ValueError, KeyError, TypeError):
        return 0
