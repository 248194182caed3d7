"""A run's folder: one run at a time holds it, resumes it, and never silently reuses it.

All methods do file work and are called on the main process only (`World.on_main`), so no other
process needs to see the folder. Arguments and results are JSON values or tensors.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sinlstm_dist.run import checkpoint as checkpoints
from sinlstm_dist.run import files
from sinlstm_dist.run.checkpoint import Checkpoint, Tensors
from sinlstm_dist.run.hold import Hold
from sinlstm_dist.run.layout import Layout
from sinlstm_dist.run.record import (
    CHECKPOINTS,
    CONFIG,
    METRICS,
    STARTS,
    STOP,
    SUMMARY,
    WEIGHTS,
    Summary,
)
from sinlstm_dist.run.resume import Search, Start, ended_summary


class RunFolder:
    """The files of one run: call `claim`, `find` and `begin`, then the others, and at last `close`.

    Args:
        path: the folder; `claim` makes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / CHECKPOINTS
        self._stop = str(path / STOP)
        self._hold = Hold(path)
        self._has_begun = False
        self.is_open = False  # between `begin` and `end`
        self._start = Start()
        self._checkpoint: Checkpoint | None = None  # from which the run continues
        self._toml = b""

    def claim(self) -> None:
        """Make the folder and keep other runs out of it until `close`.

        Raises:
            ConfigError: it cannot be written, is in use, or holds other things than a run.
        """
        self._hold.take()

    def close(self) -> None:
        """Let other runs have the folder; remove it if no run has begun in it."""
        self._hold.release(keep=self._has_begun)

    def find(self, *, config: dict[str, Any], layout: Layout, fingerprint: str) -> dict[str, Any]:
        """Find the point from which this start of the run continues.

        Args:
            config: the resolved configuration.
            layout: of the checkpoints that this run writes.
            fingerprint: of the data sets.

        Returns:
            a `Start` as a JSON value.

        Raises:
            ConfigError: the folder holds another run, or a run of a newer version.
        """
        ended = ended_summary(self.path, config)
        if ended and config["checkpoint"]["resume"] != "never":
            self._remove_stop()  # there is nothing to stop
            return asdict(Start(ended=asdict(ended)))
        search = Search(self.path, config=config, layout=layout, fingerprint=fingerprint)
        self._start, self._checkpoint = search.start()
        return asdict(self._start)

    def begin(
        self, *, toml: str, arithmetic: Mapping[str, str], data: Mapping[str, Any] | None = None
    ) -> None:
        """Bring the files to the point that `find` has found.

        Args:
            toml: the configuration, as the folder keeps it.
            arithmetic: what decides the last bits of this start's results; recorded.
            data: of a series from a file, a `DataRecord` as a JSON value; recorded.
        """
        folder = self._held()
        self._has_begun = self.is_open = True
        self._abandon_newer()
        checkpoints.remove_leftovers(self.checkpoints)
        if not self._checkpoint:
            self._abandon_weights()
        # Remove the old summary first: next to the new config it would claim the new run is
        # complete.
        for stale in (SUMMARY, WEIGHTS):
            (folder / stale).unlink(missing_ok=True)
        files.sync(folder)
        self._toml = toml.encode()
        files.replace_synced(folder / CONFIG, self._toml)
        files.replace_synced(folder / METRICS, b"".join(map(_line, self._start.history)))
        start = {"step": self._start.step, "arithmetic": dict(arithmetic)}
        start |= {"data": dict(data)} if data else {}
        files.append(folder / STARTS, _line(start))

    def loaded(self) -> Checkpoint:
        """The checkpoint that `find` has found."""
        assert self._checkpoint is not None
        return self._checkpoint

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add a finished epoch to metrics.jsonl."""
        files.append(self._held() / METRICS, _line(record))

    def save_checkpoint(self, checkpoint: Checkpoint, *, keep: int) -> str:
        """Publish a checkpoint. Returns its folder."""
        files.sync(self._held() / METRICS)  # a checkpoint vouches for the epochs before it
        return str(checkpoints.write(self.checkpoints, checkpoint, keep=keep))

    def stop_requested(self) -> bool:
        """Whether somebody has put a STOP file into the folder."""
        # Asked at every step: a Path, or an lstat of a missing file, would take longer.
        return os.path.exists(self._stop) and self._is_stop_file()

    def end(self, summary: Summary, weights: Tensors | None) -> str:
        """Write the weights of a finished run, if given, and summary.json.

        Returns:
            the SHA-256 of the weights' file; "" without weights.
        """
        folder, digest = self._held(), ""
        if weights is not None:
            content = checkpoints.to_bytes(weights)
            digest = hashlib.sha256(content).hexdigest()
            files.replace_synced(folder / WEIGHTS, content)
        if not files.kind_of(folder / CONFIG):  # somebody removed it
            files.replace_synced(folder / CONFIG, self._toml)
        checkpoints.remove_leftovers(self.checkpoints)  # that could not be removed before
        self._write_summary(replace(summary, weights_sha256=digest))
        self.is_open = False
        return digest

    def record_failure(self, summary: Summary) -> None:
        """Write the summary.json of a run that an error has ended."""
        self._write_summary(summary)

    def _held(self) -> Path:
        """The folder; called before every write, to see that it is still the one that is held."""
        self._hold.check()
        return self.path

    def _is_stop_file(self) -> bool:
        try:
            return stat.S_ISREG(os.lstat(self._stop).st_mode)
        except OSError:
            return False

    def _remove_stop(self) -> None:
        if self._is_stop_file():
            Path(self._stop).unlink(missing_ok=True)

    def _write_summary(self, summary: Summary) -> None:
        folder = self._held()
        self._remove_stop()
        text = json.dumps(asdict(summary), indent=1) + "\n"
        files.replace_synced(folder / SUMMARY, text.encode())

    def _abandon_weights(self) -> None:
        """Set aside final weights that no checkpoint holds, and their records."""
        if files.kind_of(self.path / WEIGHTS):
            for name in (SUMMARY, METRICS, WEIGHTS):  # the weights last: a new start looks for them
                if files.kind_of(self.path / name):
                    checkpoints.set_aside(self.path / name, "abandoned")

    def _abandon_newer(self) -> None:
        """Set aside later checkpoints of the run, so that it does not continue from them."""
        if self._checkpoint:
            for other in checkpoints.find(self.checkpoints):
                if checkpoints.step_of(other) > self._start.step:
                    checkpoints.set_aside(other, "abandoned")


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"
