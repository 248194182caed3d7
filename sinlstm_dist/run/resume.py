"""Find and check what a start of a run continues from."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli
from pydantic import ValidationError

from sinlstm_dist.config import KEYS, SECTIONS, SINE, Config, show_value, unknown_keys
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.run import checkpoint, files
from sinlstm_dist.run.checkpoint import Checkpoint, DamagedCheckpoint, Layout
from sinlstm_dist.run.record import (
    CHECKPOINTS,
    CONFIG,
    METRICS,
    SUMMARY,
    Summary,
    read_epoch,
    read_summary,
    whole_lines,
)

# Keys that a resumed run may change: they decide when and where, not what is computed.
MAY_CHANGE = {
    "train.epochs", "train.target_accuracy", "train.timeout_s",
    "checkpoint.every_epochs", "checkpoint.every_steps", "checkpoint.keep", "checkpoint.resume",
    "output.dir", "output.plots", "output.trackers",
}  # fmt: skip


@dataclass(frozen=True)
class Beginning:
    """Where a start of a run begins.

    Args:
        found: the checkpoint's content; None for a start from the beginning.
        history: the metrics of the epochs that are finished there.
        notes: lines for the user.
    """

    found: Checkpoint | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Search:
    """Looks for what a start continues from; changes nothing but the names of damaged checkpoints.

    Args:
        path: the run folder.
        config: the resolved configuration of this start.
        layout: of the checkpoints that it writes.
        fingerprint: of its data set.
    """

    def __init__(
        self, path: Path, *, config: dict[str, Any], layout: Layout, fingerprint: str
    ) -> None:
        self._path, self._checkpoints = path, path / CHECKPOINTS
        self._config, self._layout, self._fingerprint = config, layout, fingerprint
        self._resume: str = config["checkpoint"]["resume"]
        self._notes: list[str] = []

    def beginning(self) -> Beginning:
        """Where this start begins.

        Raises:
            ConfigError: the folder's run is another one, or of a newer version.
            OSError: a file cannot be read now.
        """
        published = checkpoint.find(self._checkpoints)
        if self._resume == "never":
            kept = (METRICS, SUMMARY, checkpoint.WEIGHTS)
            if published or any(files.kind_of(self._path / name) for name in kept):
                raise ConfigError(
                    f"output.dir={self._path} already holds a run and checkpoint.resume=never: "
                    "choose another folder, or resume=auto to continue"
                )
            return Beginning()
        if self._resume != "auto" and not self._has_continued(published):
            whole = self._named(Path(self._resume), published)
        else:
            whole = self._newest(published)
        if whole is None:
            has_begun = self._check_restarts()
            if published or has_begun:
                self._notes.append("no whole checkpoint is left: the run starts from its beginning")
            if files.kind_of(self._path / checkpoint.WEIGHTS):
                self._notes.append("its weights and records so far are kept as abandoned-*")
            return Beginning(notes=self._notes)
        folder, found = whole
        history = folder.resolve().parent.parent / METRICS
        records = self._records(history, epochs=found.state["epoch"])
        return Beginning(found, records, self._notes)

    def _newest(self, published: list[Path]) -> tuple[Path, Checkpoint] | None:
        """The newest whole checkpoint; damaged ones are named and set aside."""
        for folder in published:
            try:
                return folder, self._read(folder)
            except DamagedCheckpoint as damage:
                aside = checkpoint.set_aside(folder, "damaged")
                self._notes.append(f"{damage}; set aside as {aside.name}")
        return None

    def _has_continued(self, published: list[Path]) -> bool:
        """Whether an earlier start of the same command began at `resume` and got further."""
        for folder in published:
            with contextlib.suppress(DamagedCheckpoint):
                config = checkpoint.read(folder).state["config"]
                return bool(config["checkpoint"]["resume"] == self._resume)
        return False

    def _named(self, folder: Path, published: list[Path]) -> tuple[Path, Checkpoint] | None:
        if not folder.is_dir():
            raise ConfigError(
                f'checkpoint.resume={folder} is not "auto", "never" or a checkpoint folder'
            )
        try:
            found = self._read(folder)
        except DamagedCheckpoint as damage:
            raise ConfigError(f"checkpoint.resume={folder}: {damage}") from damage
        own = folder.resolve().parent == self._checkpoints.resolve()
        if published and not own:
            raise ConfigError(
                f"output.dir={self._path} already holds a run: choose another folder to continue "
                f"{folder} in"
            )
        return folder, found

    def _read(self, folder: Path) -> Checkpoint:
        """A checkpoint that is whole, of this run, and what this run would write."""
        found = checkpoint.read(folder)
        self._check_continues(folder, found.state)  # first: another run's layout is no damage
        checkpoint.check_layout(found, self._layout, folder)
        return found

    def _records(self, path: Path, *, epochs: int) -> list[dict[str, Any]]:
        """The finished epochs' metrics, without lines that this program did not write."""
        records: list[dict[str, Any]] = []
        for line in whole_lines(path):
            with contextlib.suppress(ValueError):
                record = read_epoch(line)
                if (records[-1]["epoch"] if records else 0) < record["epoch"] <= epochs:
                    records.append(record)
        if len(records) < epochs:
            self._notes.append(f"{path} lacks epochs of its run: they stay missing")
        return records

    def _check_restarts(self) -> bool:
        """Refuse to start over in the folder of another run that has something to lose.

        Returns:
            whether the folder holds a run that has something to lose: this one.
        """
        has_weights = files.kind_of(self._path / checkpoint.WEIGHTS)
        if not has_weights and not whole_lines(self._path / METRICS):
            return False
        before = _config_in(self._path)
        if before is None:
            raise ConfigError(
                f"output.dir={self._path} holds a run without a whole checkpoint and without a "
                f"readable {CONFIG}: choose another output.dir"
            )
        self._refuse_another(before, self._path / CONFIG)
        return True

    def _refuse_another(self, before: Mapping[str, Any], where: Path) -> None:
        if differing := changed_keys(before, self._config):
            raise ConfigError(
                f"output.dir={self._path} holds another run than this configuration: "
                f"{', '.join(differing)} (in {where}); choose another output.dir, or the same "
                "settings"
            )

    def _check_continues(self, folder: Path, state: Mapping[str, Any]) -> None:
        self._refuse_another(state["config"], folder)
        epochs, source = self._config["train"]["epochs"], self._config["data"]["source"]
        trained = state["epoch"] + bool(state["step_in_epoch"])
        if trained > epochs:
            raise ConfigError(
                f"train.epochs={epochs} is fewer than the {trained} that {folder} has begun: set "
                "at least as many, or choose another output.dir"
            )
        if state["data"] != self._fingerprint and source != SINE:
            raise ConfigError(
                f"{folder} was trained on other values than {source} holds now: restore the file, "
                "or choose another output.dir"
            )
        if state["data"] != self._fingerprint:
            raise ConfigError(
                f"{folder} was trained on other data than this installation makes from the same "
                "configuration: continue it with the versions in its summary.json"
            )


def ended_summary(path: Path, config: Mapping[str, Any]) -> Summary | None:
    """The summary of a run that has done all that `config` asks for; None if there is none.

    Raises:
        ConfigError: a newer version of this program has written the run.
        OSError: a file cannot be read now.
    """
    if files.kind_of(path / checkpoint.WEIGHTS) != "a file" or _config_in(path) != config:
        return None
    try:
        summary = read_summary(path / SUMMARY)
    except ValueError:  # not ours: the run is continued, and writes it again
        return None
    if summary is None or not (summary.outcome == "completed" or summary.below_target):
        return None
    return summary if summary.vouches_for(files.read(path / checkpoint.WEIGHTS)) else None


def _config_in(path: Path) -> dict[str, Any] | None:
    """A run folder's configuration, with defaults for what it does not know; None without one."""
    file = path / CONFIG
    try:
        values = tomli.loads(files.read(file).decode())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    if unknown := unknown_keys(values):
        raise ConfigError(
            f"{file} was written by a newer version of this program: this one does not know "
            f"{', '.join(unknown[:5])}"
        )
    try:
        return Config.model_validate(values, strict=True).model_dump(mode="json")
    except ValidationError:  # damaged: the checkpoints know the configuration too
        return None


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What makes `after` another run than `before`: `key was X and is Y`, one for each key.

    What `before` does not hold has its default: an older version wrote it.
    """
    changes = []
    for name in KEYS:
        section, key = name.split(".")
        default = SECTIONS[section].model_fields[key].default
        old, new = before.get(section, {}).get(key, default), after[section][key]
        if name not in MAY_CHANGE and old != new:
            changes.append(f"{name} was {show_value(old)} and is {show_value(new)}")
    return changes
