"""Training state to and from a folder: complete or not there, and never trusted unread.

A checkpoint is a folder `step-NNNNNNNN` of safetensors and JSON, and a manifest with the size and
SHA-256 of each file. It is written under another name, synced, and renamed; so what has the name
is whole. It holds nothing that depends on the number of processes.

Source: Pillai et al.: All file systems are not created equal (OSDI 14), for the order of syncs.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

Tensors = dict[str, torch.Tensor]

WEIGHTS, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
)


class DamagedCheckpoint(Exception):
    """A folder that is not a whole checkpoint; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run between two steps.

    Args:
        state: what JSON can say: `step` (optimizer steps so far), the rest of the progress,
            configuration, data fingerprint.
        weights: by parameter name.
        optimizer: the optimizer's tensors by name.
    """

    state: Mapping[str, Any]
    weights: Tensors
    optimizer: Tensors


def write(root: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Publish `checkpoint` below `root`, then remove all but the `keep` newest.

    Returns:
        its folder. A checkpoint of the same step that is already there is left as it is: the
        same step of the same run is the same state.

    Raises:
        OSError: it could not be written; what was published before is untouched.
    """
    folder = root / f"step-{checkpoint.state['step']:08d}"
    if folder.exists():
        return folder
    if not root.exists():
        root.mkdir()
        sync_folder(root.parent)
    unfinished = root / f".unfinished-{folder.name}"
    unfinished.mkdir()
    files = _files(checkpoint)
    try:
        for name, content in files.items():
            write_synced(unfinished / name, content)
        sync_folder(unfinished)
        unfinished.rename(folder)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)  # a full disk gets its space back
        raise
    sync_folder(root)
    _prune(root, keep=keep)
    return folder


def _files(checkpoint: Checkpoint) -> dict[str, bytes]:
    files = {
        WEIGHTS: save(checkpoint.weights),
        OPTIMIZER: save(checkpoint.optimizer),
        STATE: _json_bytes(checkpoint.state),
    }
    files[MANIFEST] = _manifest(files)
    return files


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint whose every byte is what was written.

    Raises:
        DamagedCheckpoint: anything is missing or altered; nothing of it is used.
    """
    files = {}
    for name in (WEIGHTS, OPTIMIZER, STATE, MANIFEST):
        try:
            files[name] = (folder / name).read_bytes()
        except OSError as error:
            raise DamagedCheckpoint(f"{folder / name}: {error.strerror}") from error
    manifest = files.pop(MANIFEST)
    if manifest != _manifest(files):  # every byte of the manifest follows from the other files
        differing = folder / _differing_file(manifest, files)
        raise DamagedCheckpoint(f"{differing}: is damaged (it does not match {MANIFEST})")
    for path in folder.iterdir():
        if path.name not in (*files, MANIFEST) and not path.name.startswith("."):
            raise DamagedCheckpoint(f"{path}: does not belong there")
    try:
        return Checkpoint(json.loads(files[STATE]), load(files[WEIGHTS]), load(files[OPTIMIZER]))
    except (ValueError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{folder}: was not written by this program: {error}") from error


def find(root: Path) -> list[Path]:
    """The published checkpoints below `root`, newest first."""
    folders = [path for path in root.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(folders, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """The number of optimizer steps that a checkpoint's name tells."""
    return int(folder.name.rpartition("-")[2])


def set_aside(folder: Path, why: str) -> Path:
    """Rename a checkpoint so that it is neither used nor counted nor lost. `why` is one word."""
    aside = folder.with_name(f"{why}-{folder.name}")
    if aside.exists():
        shutil.rmtree(aside)
    return folder.rename(aside)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with naming(path), path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in an OSError from below: a full disk's does not say what was written."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def replace_synced(path: Path, content: bytes) -> None:
    """Put `content` at `path` so that at any instant the old file or the new one is there."""
    unfinished = path.with_name(f".unfinished-{path.name}")
    write_synced(unfinished, content)
    unfinished.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _manifest(files: Mapping[str, bytes]) -> bytes:
    return _json_bytes(
        {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        }
    )


def _differing_file(manifest: bytes, files: Mapping[str, bytes]) -> str:
    """The first file that is not what the manifest says; the manifest if it says nothing."""
    try:
        stored, actual = json.loads(manifest), json.loads(_manifest(files))
        return next((name for name in files if stored.get(name) != actual[name]), MANIFEST)
    except (ValueError, AttributeError):
        return MANIFEST


def _prune(root: Path, *, keep: int) -> None:
    for folder in find(root)[keep:]:
        # Renamed first: a kill in the middle of the removal must not leave half a checkpoint.
        shutil.rmtree(folder.rename(root / f".removed-{folder.name}"))


def remove_leftovers(root: Path) -> None:
    """Remove what an earlier process was writing or removing when it was killed."""
    for pattern in (".unfinished-*", ".removed-*"):
        for folder in root.glob(pattern):
            shutil.rmtree(folder)
