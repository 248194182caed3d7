"""Each writer of a run's files, when a link or another folder appears just before it writes."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from launching import content

from sinlstm_dist.run import files
from sinlstm_dist.run.checkpoint import Checkpoint
from sinlstm_dist.run.folder import RunFolder
from sinlstm_dist.run.record import Summary

EPOCH = {"epoch": 1}
ENDED = Summary(
    outcome="stopped", reason="", epochs=0, step=0, metrics={}, best={}, world_size=1,
    device="cpu", reduction="ordered", wall_s=0.0, versions={},
)  # fmt: skip
WEIGHTS = {"w": torch.ones(3)}
WRITERS: dict[str, Callable[[RunFolder], object]] = {
    "begin": lambda run: run.begin(toml="", arithmetic={}),
    "append_metrics": lambda run: run.append_metrics(EPOCH),
    "save_checkpoint": lambda run: run.save_checkpoint(
        Checkpoint({"step": 1}, WEIGHTS, {}), keep=2
    ),
    "end": lambda run: run.end(ENDED, WEIGHTS),
    "record_failure": lambda run: run.record_failure(ENDED),
}


@pytest.fixture
def claimed(tmp_path: Path) -> Iterator[RunFolder]:
    """A run's folder that this process has claimed."""
    with contextlib.closing(RunFolder(tmp_path / "run")) as run:
        run.claim()
        yield run


@pytest.mark.parametrize("writer", WRITERS)
def test_each_writer_sees_another_folder_in_its_place(claimed, trained_run, tmp_path, writer):
    if writer != "begin":
        claimed.begin(toml="", arithmetic={})
    claimed.path.rename(tmp_path / "moved")
    shutil.copytree(trained_run, claimed.path)
    before = content(tmp_path)
    with pytest.raises(OSError, match="was moved away or replaced"):
        WRITERS[writer](claimed)
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("writer", "name"),
    [
        ("begin", ".unfinished-config.toml"),
        ("begin", ".unfinished-metrics.jsonl"),
        ("begin", "starts.jsonl"),
        ("append_metrics", "metrics.jsonl"),
        ("save_checkpoint", "checkpoints"),
        ("end", ".unfinished-model.safetensors"),
        ("end", ".unfinished-summary.json"),
        ("record_failure", ".unfinished-summary.json"),
    ],
)
def test_each_writer_follows_no_link(claimed, tmp_path, writer: str, name: str) -> None:
    """One that somebody puts there while the run is going on."""
    if writer != "begin":
        claimed.begin(toml="", arithmetic={})
    victim = tmp_path / "victim"
    victim.mkdir() if name == "checkpoints" else victim.write_text("precious")
    (claimed.path / name).unlink(missing_ok=True)
    (claimed.path / name).symlink_to(victim)
    with pytest.raises(files.NotAFile, match="is a link"):
        WRITERS[writer](claimed)
    assert victim.is_dir() or victim.read_text() == "precious"
    assert not victim.is_dir() or list(victim.iterdir()) == []
