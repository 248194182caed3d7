"""A run's folder: claimed by one run at a time, continued, and never silently reused.

All methods do file work and are called on the main process only (`World.on_main`); so no other
process needs to see the folder. What they take and give is what JSON can say, or tensors.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save

from sinlstm_dist.run import checkpoint, files
from sinlstm_dist.run.checkpoint import Checkpoint, Layout, Tensors
from sinlstm_dist.run.hold import Claim
from sinlstm_dist.run.record import CHECKPOINTS, CONFIG, METRICS, STARTS, STOP, SUMMARY, Summary
from sinlstm_dist.run.resume import Beginning, Search, ended_summary


class RunFolder:
    """The files of one run: `claim`, `find`, `begin`, then the rest, at last `close`.

    Args:
        path: the folder; made by `claim`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / CHECKPOINTS
        self._stop = str(path / STOP)
        self._claim = Claim(path)
        self._has_begun = False
        self.is_open = False  # between `begin` and `end`
        self._beginning = Beginning()
        self._toml = b""

    def claim(self) -> None:
        """Make the folder and keep other runs out of it until `close`.

        Raises:
            ConfigError: it cannot be written, is in use, or holds other things than a run.
        """
        self._claim.take()

    def close(self) -> None:
        """Let other runs have the folder; remove it if no run was begun."""
        self._claim.release(keep=self._has_begun)

    def find(self, *, config: dict[str, Any], layout: Layout, fingerprint: str) -> dict[str, Any]:
        """Find what this start of the run continues from.

        Args:
            config: the resolved configuration.
            layout: of the checkpoints that this run writes.
            fingerprint: of the data set.

        Returns:
            "state": the checkpoint's, or None for a fresh start; "notes": lines for the user;
            "history": the finished epochs' metrics; "summary": that of a run which this very
            configuration has already ended, whose files are left alone, or None.

        Raises:
            ConfigError: the folder's run is another one, or of a newer version.
        """
        ended = ended_summary(self.path, config)
        if ended and config["checkpoint"]["resume"] != "never":
            self._remove_stop()  # there is nothing to stop
            return {"state": None, "notes": [], "history": [], "summary": asdict(ended)}
        search = Search(self.path, config=config, layout=layout, fingerprint=fingerprint)
        self._beginning = search.beginning()
        found = self._beginning.found
        return {
            "state": dict(found.state) if found else None,
            "notes": self._beginning.notes,
            "history": self._beginning.history,
            "summary": None,
        }

    def begin(self, *, toml: str, arithmetic: Mapping[str, str]) -> None:
        """Set the files to the point that `find` found.

        Args:
            toml: the configuration as it is kept in the folder.
            arithmetic: what decides the last bits of this start's results; recorded.
        """
        self._claim.check()
        self._has_begun = self.is_open = True
        begins_at = self._beginning
        self._abandon_newer()
        checkpoint.remove_leftovers(self.checkpoints)
        if not begins_at.found:
            self._abandon_weights()
        # Remove the old summary first: next to the new configuration it would claim that the new
        # run is complete.
        for stale in (SUMMARY, checkpoint.WEIGHTS):
            (self.path / stale).unlink(missing_ok=True)
        files.sync(self.path)
        self._toml = toml.encode()
        files.replace_synced(self.path / CONFIG, self._toml)
        lines = b"".join(json.dumps(record).encode() + b"\n" for record in begins_at.history)
        files.replace_synced(self.path / METRICS, lines)
        step = begins_at.found.state["step"] if begins_at.found else 0
        start = {"step": step, "arithmetic": dict(arithmetic)}
        files.append(self.path / STARTS, json.dumps(start).encode() + b"\n")

    def loaded(self) -> Checkpoint:
        """The checkpoint that `find` found."""
        assert self._beginning.found is not None
        return self._beginning.found

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add a finished epoch to metrics.jsonl."""
        self._claim.check()
        files.append(self.path / METRICS, json.dumps(record).encode() + b"\n")

    def save_checkpoint(self, found: Checkpoint, *, keep: int) -> str:
        """Publish a checkpoint. Returns its folder."""
        self._claim.check()
        files.sync(self.path / METRICS)  # a checkpoint vouches for the epochs before it
        return str(checkpoint.write(self.checkpoints, found, keep=keep))

    def stop_requested(self) -> bool:
        """Whether someone put a STOP file into the folder."""
        # Once a step: a Path, or a look at what is not there, would take longer.
        return os.path.exists(self._stop) and self._is_stop_file()

    def end(self, summary: Summary, weights: Tensors | None) -> str:
        """Write summary.json and, of a finished run, the weights. Returns their SHA-256 or ""."""
        self._claim.check()
        digest = ""
        if weights is not None:
            content = save(weights)
            digest = hashlib.sha256(content).hexdigest()
            files.replace_synced(self.path / checkpoint.WEIGHTS, content)
        if not files.kind_of(self.path / CONFIG):  # somebody removed it
            files.replace_synced(self.path / CONFIG, self._toml)
        self._write_summary(replace(summary, weights_sha256=digest))
        self.is_open = False
        return digest

    def record_failure(self, summary: Summary) -> None:
        """Write the summary.json of a run that was cut short."""
        self._claim.check()
        self._write_summary(summary)

    def _is_stop_file(self) -> bool:
        try:
            return stat.S_ISREG(os.lstat(self._stop).st_mode)
        except OSError:
            return False

    def _remove_stop(self) -> None:
        if self._is_stop_file():
            Path(self._stop).unlink(missing_ok=True)

    def _write_summary(self, summary: Summary) -> None:
        self._remove_stop()
        text = json.dumps(asdict(summary), indent=1) + "\n"
        files.replace_synced(self.path / SUMMARY, text.encode())

    def _abandon_weights(self) -> None:
        """Set aside final weights that no checkpoint holds, and what was recorded of them."""
        if files.kind_of(self.path / checkpoint.WEIGHTS):
            for name in (SUMMARY, METRICS, checkpoint.WEIGHTS):  # last what a new start looks for
                if files.kind_of(self.path / name):
                    checkpoint.set_aside(self.path / name, "abandoned")

    def _abandon_newer(self) -> None:
        """Set aside what the run did later, so that it is not continued from there."""
        found = self._beginning.found
        for other in checkpoint.find(self.checkpoints):
            if found and checkpoint.step_of(other) > found.state["step"]:
                checkpoint.set_aside(other, "abandoned")
