"""Find and check the point from which a start of a run continues."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli
from pydantic import ValidationError

from sinlstm_dist.config import Config, unknown_keys
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.run import checkpoint, files, identity
from sinlstm_dist.run.checkpoint import Checkpoint, DamagedCheckpoint
from sinlstm_dist.run.layout import Layout, check_layout
from sinlstm_dist.run.record import (
    CHECKPOINTS,
    CONFIG,
    METRICS,
    SUMMARY,
    WEIGHTS,
    Summary,
    read_epoch,
    read_summary,
    whole_lines,
)
from sinlstm_dist.words import first_of


@dataclass(frozen=True)
class Start:
    """The folder's answer to a start of a run; a JSON value by `asdict`.

    Args:
        state: of the checkpoint from which the run continues; None for a start from step 0.
        history: metrics of the epochs that are finished there.
        notes: lines for the user.
        ended: the summary of a run in which nothing is left to do: its files are left alone.
    """

    state: Mapping[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ended: Mapping[str, Any] | None = None

    @property
    def step(self) -> int:
        """Optimizer steps that are done there."""
        return self.state["step"] if self.state else 0


class Search:
    """Looks for the point where a start continues; it changes only names of damaged checkpoints.

    Args:
        path: the run folder.
        config: the resolved configuration of this start.
        layout: of the checkpoints that it writes.
        fingerprint: of its data sets.
    """

    def __init__(
        self, path: Path, *, config: dict[str, Any], layout: Layout, fingerprint: str
    ) -> None:
        self._path, self._checkpoints = path, path / CHECKPOINTS
        self._config, self._layout, self._fingerprint = config, layout, fingerprint
        self._resume: str = config["checkpoint"]["resume"]
        self._notes: list[str] = []

    def start(self) -> tuple[Start, Checkpoint | None]:
        """Find where this start begins, and the checkpoint there.

        Raises:
            ConfigError: the folder holds another run, or a run of a newer version.
            OSError: a file cannot be read now.
        """
        published = checkpoint.find(self._checkpoints)
        if self._resume == "never":
            self._refuse_a_run(published)
            return Start(), None
        if self._resume != "auto" and not self._has_continued(published):
            whole = self._named(Path(self._resume), published)
        else:
            whole = self._newest(published)
        if whole is None:
            self._note_restart(published)
            return Start(notes=self._notes), None
        folder, content = whole
        metrics = folder.resolve().parent.parent / METRICS
        history = self._history(metrics, epochs=content.state["epoch"])
        # Another run goes on in its own curves: this one needs a tracker id of its own.
        other = {} if self._is_own(folder) else {"tracker_id": ""}
        return Start({**content.state, **other}, history, self._notes), content

    def _refuse_a_run(self, published: list[Path]) -> None:
        kept = (METRICS, SUMMARY, WEIGHTS)
        if published or any(files.kind_of(self._path / name) for name in kept):
            raise ConfigError(
                f"output.dir={self._path} already holds a run and checkpoint.resume=never: "
                "choose another folder, or resume=auto to continue"
            )

    def _note_restart(self, published: list[Path]) -> None:
        has_begun = self._check_restart()
        if published or has_begun:
            self._notes.append("no whole checkpoint is left: the run starts from step 0")
        if files.kind_of(self._path / WEIGHTS):
            self._notes.append("its weights and records so far are kept as abandoned-*")

    def _newest(self, published: list[Path]) -> tuple[Path, Checkpoint] | None:
        """The newest whole checkpoint; damaged ones are reported and set aside."""
        for folder in published:
            try:
                return folder, self._read(folder)
            except DamagedCheckpoint as damage:
                aside = checkpoint.set_aside(folder, "damaged")
                self._notes.append(f"{damage}; set aside as {aside.name}")
        return None

    def _has_continued(self, published: list[Path]) -> bool:
        """Whether an earlier start of the same command began at `resume` and has saved since."""
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
            content = self._read(folder)
        except DamagedCheckpoint as damage:
            raise ConfigError(f"checkpoint.resume={folder}: {damage}") from damage
        if published and not self._is_own(folder):
            raise ConfigError(
                f"output.dir={self._path} already holds a run: choose another folder to continue "
                f"{folder} in"
            )
        return folder, content

    def _is_own(self, folder: Path) -> bool:
        """Whether a checkpoint lies in this run's folder."""
        return folder.resolve().parent == self._checkpoints.resolve()

    def _read(self, folder: Path) -> Checkpoint:
        """A checkpoint that is whole, that this run can continue, and has its layout."""
        content = checkpoint.read(folder)
        self._check_continues(folder, content.state)  # first: another run's layout is no damage
        try:
            check_layout(content, self._layout, folder)
        except DamagedCheckpoint as other:
            if not self._config["task"]["build"]:
                raise
            raise ConfigError(  # the user's code has changed; the checkpoint is whole
                f"{other}: task.build makes another model or optimizer than this run's: restore "
                "its code, or choose another output.dir"
            ) from other
        return content

    def _history(self, path: Path, *, epochs: int) -> list[dict[str, Any]]:
        """Metrics of the finished epochs, without lines that this program did not write."""
        records: list[dict[str, Any]] = []
        for line in whole_lines(path):
            with contextlib.suppress(ValueError):
                record = read_epoch(line)
                if (records[-1]["epoch"] if records else 0) < record["epoch"] <= epochs:
                    records.append(record)
        if len(records) < epochs:
            self._notes.append(f"{path} lacks epochs of its run; they stay missing")
        return records

    def _check_restart(self) -> bool:
        """Refuse to start over in the folder of another run that has results.

        Returns:
            whether the folder holds results of this run.
        """
        has_weights = files.kind_of(self._path / WEIGHTS)
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
        if differing := identity.changed_keys(before, self._config):
            raise ConfigError(
                f"output.dir={self._path} holds another run than this configuration: "
                f"{first_of(differing)} (in {where}); choose another output.dir, or the same "
                "settings"
            )

    def _check_continues(self, folder: Path, state: Mapping[str, Any]) -> None:
        self._refuse_another(state["config"], folder)
        epochs = self._config["train"]["epochs"]
        trained = state["epoch"] + bool(state["step_in_epoch"])
        if trained > epochs:
            raise ConfigError(
                f"train.epochs={epochs} is fewer than the {trained} that {folder} has begun: set "
                "at least as many, or choose another output.dir"
            )
        identity.refuse_other_data(folder, state, self._config, self._fingerprint)
        identity.refuse_other_schedule(folder, state, self._config, self._layout)


def ended_summary(path: Path, config: Mapping[str, Any]) -> Summary | None:
    """The summary of the run in a folder if it has done all that `config` asks for, else None.

    Raises:
        ConfigError: a newer version of this program wrote the run.
        OSError: a file cannot be read now.
    """
    if files.kind_of(path / WEIGHTS) != "a file" or _config_in(path) != config:
        return None
    try:
        summary = read_summary(path / SUMMARY)
    except ValueError:  # not ours: the run continues, and writes it again
        return None
    if summary is None or not (summary.outcome == "completed" or summary.below_target):
        return None
    return summary if summary.vouches_for(files.read(path / WEIGHTS)) else None


def _config_in(path: Path) -> dict[str, Any] | None:
    """The configuration in a run folder, with defaults for missing keys; None if it has none."""
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
    except ValidationError:  # damaged: the checkpoints hold the configuration too
        return None
