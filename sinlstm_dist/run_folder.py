"""A run's folder: claimed by one run at a time, continued, and never silently reused.

All methods do file work and are called on the main process only (`World.on_main`); so no other
process needs to see the folder. What they take and give is what JSON can say, or tensors.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save

from sinlstm_dist import checkpoint
from sinlstm_dist.checkpoint import Checkpoint, DamagedCheckpoint, Tensors
from sinlstm_dist.config import SINE, ConfigError, changed_keys, load_config
from sinlstm_dist.run_record import (
    CONFIG,
    LOCK,
    METRICS,
    STARTS,
    STOP,
    SUMMARY,
    Summary,
    finished_epochs,
)  # fmt: skip


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; made by `claim`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._stop = str(path / STOP)
        self._lock: Any = None
        self._is_new = False
        self._is_open = False  # between `begin` and `end`
        self._loaded: Checkpoint | None = None

    def claim(self) -> None:
        """Make the folder and keep other runs out of it until this process ends.

        Raises:
            ConfigError: it cannot be written, is in use, or holds other things than a run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"output.dir={self.path} is a file: choose a folder")
        try:
            is_new = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            others = [entry.name for entry in self.path.iterdir()]
            if set(others) - {STOP} and not {CONFIG, LOCK} & set(others):
                raise ConfigError(
                    f"output.dir={self.path} is not empty and holds no run: choose another folder"
                )
            self._lock = (self.path / LOCK).open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._is_new = is_new  # of two that start at once, only the one that has the lock
        except BlockingIOError as error:
            raise ConfigError(
                f"output.dir={self.path} is in use by a run that has not ended: "
                "wait for it, or choose another folder"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"output.dir={self.path} cannot be written: {error.strerror}"
            ) from error

    def close(self) -> None:
        """Let other runs have the folder; one that was made for nothing goes."""
        if not self._lock:
            return
        if self._is_new and not (self.path / CONFIG).exists():
            shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()

    def begin(
        self,
        *,
        config: dict[str, Any],
        toml: str,
        fingerprint: str,
        arithmetic: Mapping[str, str],
    ) -> dict[str, Any]:
        """Find what this start of the run continues from, and set the files to that point.

        Args:
            config: the resolved configuration.
            toml: the same as it is kept in the folder.
            fingerprint: of the data set.
            arithmetic: what decides the last bits of this start's results; recorded.

        Returns:
            "state": the checkpoint's, or None for a fresh start; "notes": lines for the user;
            "history": the finished epochs' metrics; "summary": that of a run which this very
            configuration has already ended, whose files are left alone, or None.

        Raises:
            ConfigError: the folder's run is another one.
        """
        ended = self._ended_summary(toml)
        if ended and config["checkpoint"]["resume"] != "never":
            (self.path / STOP).unlink(missing_ok=True)  # there is nothing to stop
            return {"state": None, "notes": [], "history": [], "summary": ended}
        notes: list[str] = []
        found = self._find_checkpoint(config["checkpoint"]["resume"], notes)
        history = self.path
        if found is not None:
            self._loaded = checkpoint.read(found)
            self._check_continues(found, self._loaded.state, config, fingerprint)
            self._abandon_newer(found)
            history = found.resolve().parent.parent
        else:
            self._check_restarts(config, notes)
        state = self._loaded.state if self._loaded else None
        lines = finished_epochs(history / METRICS, epochs=state["epoch"] if state else 0)
        if state and len(lines) < state["epoch"]:
            notes.append(f"{history / METRICS} lacks epochs of its run: they stay missing")
        self._is_open = True
        checkpoint.remove_leftovers(self.checkpoints)
        # First of all what says that a run has ended: beside the new configuration it would say
        # that all of that was done.
        for stale in (SUMMARY, checkpoint.WEIGHTS):
            (self.path / stale).unlink(missing_ok=True)
        checkpoint.sync_folder(self.path)
        checkpoint.replace_synced(self.path / CONFIG, toml.encode())
        checkpoint.replace_synced(self.path / METRICS, b"".join(lines))
        self._note_start(step=state["step"] if state else 0, arithmetic=arithmetic)
        records = [json.loads(line) for line in lines]
        return {"state": state, "notes": notes, "history": records, "summary": None}

    def loaded_tensors(self) -> tuple[Tensors, Tensors]:
        """Weights and optimizer tensors of the checkpoint that `begin` found."""
        assert self._loaded is not None
        return self._loaded.weights, self._loaded.optimizer

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add a finished epoch to metrics.jsonl."""
        if not self.path.exists():
            raise FileNotFoundError(2, "the run folder was removed", str(self.path))
        with checkpoint.naming(self.path / METRICS), (self.path / METRICS).open("ab") as file:
            file.write(json.dumps(record).encode() + b"\n")

    def save_checkpoint(self, found: Checkpoint, *, keep: int) -> str:
        """Publish a checkpoint. Returns its folder."""
        with checkpoint.naming(self.path / METRICS), (self.path / METRICS).open("ab") as file:
            os.fsync(file.fileno())  # a checkpoint vouches for the epochs before it
        return str(checkpoint.write(self.checkpoints, found, keep=keep))

    def stop_requested(self) -> bool:
        """Whether someone put a STOP file into the folder."""
        return os.path.exists(self._stop)  # once a step: building a Path would take longer

    def end(self, summary: Summary, weights: Tensors | None) -> None:
        """Write summary.json and, of a finished run, the weights."""
        if weights is not None:
            checkpoint.replace_synced(self.path / checkpoint.WEIGHTS, save(weights))
        self._write_summary(summary)
        self._is_open = False

    def record_failure(self, summary: Summary) -> None:
        """Write the summary.json of a run that was cut short, if this process had begun it."""
        if self._is_open:
            self._write_summary(summary)

    def _note_start(self, *, step: int, arithmetic: Mapping[str, str]) -> None:
        start = {"step": step, "arithmetic": dict(arithmetic)}
        with checkpoint.naming(self.path / STARTS), (self.path / STARTS).open("ab") as file:
            file.write(json.dumps(start).encode() + b"\n")

    def _ended_summary(self, toml: str) -> dict[str, Any] | None:
        """The summary of a run that has done all that `toml` asks for; None if there is none."""
        files = [self.path / name for name in (CONFIG, SUMMARY, checkpoint.WEIGHTS)]
        if not all(file.exists() for file in files) or files[0].read_text() != toml:
            return None
        try:
            summary = Summary(**json.loads(files[1].read_bytes()))
        except (ValueError, TypeError):  # not ours: the run is continued, and writes it anew
            return None
        return asdict(summary) if summary.outcome == "completed" or summary.below_target else None

    def _write_summary(self, summary: Summary) -> None:
        (self.path / STOP).unlink(missing_ok=True)
        text = json.dumps(asdict(summary), indent=1) + "\n"
        checkpoint.replace_synced(self.path / SUMMARY, text.encode())

    def _find_checkpoint(self, resume: str, notes: list[str]) -> Path | None:
        """The checkpoint folder that `resume` means; damaged ones are named and set aside."""
        published = checkpoint.find(self.checkpoints)
        if resume == "never":
            if published or (self.path / METRICS).exists():
                raise ConfigError(
                    f"output.dir={self.path} already holds a run and checkpoint.resume=never: "
                    "choose another folder, or resume=auto to continue"
                )
            return None
        if resume != "auto" and not self._has_continued_from(resume, published):
            return self._named_checkpoint(Path(resume), published)
        for folder in published:
            try:
                checkpoint.read(folder)
            except DamagedCheckpoint as damage:
                aside = checkpoint.set_aside(folder, "damaged")
                notes.append(f"{damage}; set aside as {aside.name}")
            else:
                return folder
        if published:
            notes.append("no whole checkpoint is left: the run starts from its beginning")
        return None

    def _has_continued_from(self, resume: str, published: list[Path]) -> bool:
        """Whether an earlier start of the same command began at `resume` and got further."""
        for folder in published:
            with contextlib.suppress(DamagedCheckpoint):
                return bool(
                    checkpoint.read(folder).state["config"]["checkpoint"]["resume"] == resume
                )
        return False

    def _named_checkpoint(self, folder: Path, published: list[Path]) -> Path:
        if not folder.is_dir():
            raise ConfigError(
                f'checkpoint.resume={folder} is not "auto", "never" or a checkpoint folder'
            )
        try:
            checkpoint.read(folder)
        except DamagedCheckpoint as damage:
            raise ConfigError(f"checkpoint.resume={folder}: {damage}") from damage
        own = folder.resolve().parent == self.checkpoints.resolve()
        if published and not own:
            raise ConfigError(
                f"output.dir={self.path} already holds a run: choose another folder to continue "
                f"{folder} in"
            )
        return folder

    def _abandon_newer(self, folder: Path) -> None:
        """Set aside what the run did after `folder`, so that it is not continued from later."""
        for other in checkpoint.find(self.checkpoints):
            if checkpoint.step_of(other) > checkpoint.step_of(folder):
                checkpoint.set_aside(other, "abandoned")

    def _check_restarts(self, config: dict[str, Any], notes: list[str]) -> None:
        """Refuse to begin anew in the folder of another run that has something to lose."""
        has_weights = (self.path / checkpoint.WEIGHTS).exists()
        if not has_weights and not finished_epochs(self.path / METRICS):
            return
        self._refuse_another(
            load_config(self.path / CONFIG).model_dump(mode="json"), config, CONFIG
        )
        notes.append("there is no checkpoint to continue from: the run starts from its beginning")

    def _refuse_another(self, before: Any, config: dict[str, Any], where: object) -> None:
        if differing := changed_keys(before, config):
            raise ConfigError(
                f"output.dir={self.path} holds another run than this configuration: "
                f"{', '.join(differing)} (in {where}); choose another output.dir, or the same "
                "settings"
            )

    def _check_continues(
        self, folder: Path, state: Mapping[str, Any], config: dict[str, Any], fingerprint: str
    ) -> None:
        self._refuse_another(state["config"], config, folder)
        epochs, trained = config["train"]["epochs"], state["epoch"] + bool(state["step_in_epoch"])
        if trained > epochs:
            raise ConfigError(
                f"train.epochs={epochs} is fewer than the {trained} that {folder} has begun: set "
                "at least as many, or choose another output.dir"
            )
        if state["data"] != fingerprint and config["data"]["source"] != SINE:
            raise ConfigError(
                f"{folder} was trained on other values than {config['data']['source']} holds now: "
                "restore the file, or choose another output.dir"
            )
        if state["data"] != fingerprint:
            raise ConfigError(
                f"{folder} was trained on other data than this installation makes from the same "
                "configuration: continue it with the versions in its summary.json"
            )
