"""Training state to and from a folder: complete or not there, and never trusted unread.

A checkpoint is a folder `step-NNNNNNNN` of safetensors and JSON, and a manifest with the size and
SHA-256 of each file. It is written under another name, synced, and renamed; so what has the name
is whole. It holds nothing that depends on the number of processes.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from sinlstm_dist.run import files, state
from sinlstm_dist.run.files import NotAFile
from sinlstm_dist.run.state import NewerVersion

Tensors = dict[str, torch.Tensor]

WEIGHTS, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
)
FILES = (WEIGHTS, OPTIMIZER, STATE, MANIFEST)
REMOVED = ".removed-"
SHOWN = 6  # differences between two models


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


@dataclass(frozen=True)
class Layout:
    """What the checkpoints of a run hold; see `check_layout`.

    Args:
        weights: dtype and shape by name, as `shapes` tells them.
        optimizer: the same after a step; before the first the optimizer has no tensors.
        num_steps: in an epoch.
        samples: in a step that is not the last of its epoch.
    """

    weights: Mapping[str, str]
    optimizer: Mapping[str, str]
    num_steps: int
    samples: int


def shapes(tensors: Tensors) -> dict[str, str]:
    """{"w": "float32 [5, 3]"}"""
    return {
        name: f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        for name, value in tensors.items()
    }


def write(root: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Publish `checkpoint` below `root`, then remove all but the `keep` newest.

    Returns:
        its folder. A checkpoint of the same step that is already there is left as it is: the
        same step of the same run is the same state.

    Raises:
        OSError: it could not be written; what was published before is untouched.
    """
    folder = root / f"step-{checkpoint.state['step']:08d}"
    if files.kind_of(root) == "a link":
        raise NotAFile(errno.ELOOP, "is a link", str(root))
    if folder.exists():
        return folder
    if not root.exists():
        root.mkdir()
        files.sync(root.parent)
    unfinished = root / f"{files.UNFINISHED}{folder.name}"
    unfinished.mkdir()
    try:
        for name, content in _files(checkpoint).items():
            files.write_synced(unfinished / name, content)
        files.sync(unfinished)
        unfinished.rename(folder)
    except OSError:
        with contextlib.suppress(OSError):
            _remove(unfinished)  # a full disk gets its space back
        raise
    files.sync(root)
    _prune(root, keep=keep)
    return folder


def _files(checkpoint: Checkpoint) -> dict[str, bytes]:
    contents = {
        WEIGHTS: save(checkpoint.weights),
        OPTIMIZER: save(checkpoint.optimizer),
        STATE: _json_bytes({**checkpoint.state, "format": state.FORMAT}),
    }
    return {**contents, MANIFEST: _manifest(contents)}


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint whose every byte is what was written.

    Raises:
        DamagedCheckpoint: anything is missing or altered; nothing of it is used.
        NewerVersion: it is whole, and of a newer version of this program.
        OSError: it cannot be read now, which is no damage.
    """
    _refuse_newer(folder)
    contents = {}
    for name in FILES:
        try:
            contents[name] = files.read(folder / name)
        except (FileNotFoundError, NotADirectoryError, NotAFile) as error:
            raise DamagedCheckpoint(f"{folder / name}: {error.strerror}") from error
    manifest = contents.pop(MANIFEST)
    if manifest != _manifest(contents):  # every byte of the manifest follows from the other files
        differing = folder / _differing_file(manifest, contents)
        raise DamagedCheckpoint(f"{differing}: is damaged (it does not match {MANIFEST})")
    return _parse(folder, contents)


def _refuse_newer(folder: Path) -> None:
    """Refuse a newer format, of which the set of files and their content may be another."""
    try:
        content = files.read(folder / STATE)
        vouched = files.parse_json(files.read(folder / MANIFEST))[STATE]["sha256"]
        number = files.parse_json(content)["format"]
    except (FileNotFoundError, NotADirectoryError, NotAFile, ValueError, LookupError, TypeError):
        return  # damaged, or of the first format
    if vouched == hashlib.sha256(content).hexdigest() and type(number) is int:
        try:
            state.refuse_newer(number)
        except NewerVersion as error:
            raise NewerVersion(f"{folder / STATE} {error}") from error


def _parse(folder: Path, contents: Mapping[str, bytes]) -> Checkpoint:
    found = {}
    for name, parse in ((STATE, state.parse), (WEIGHTS, load), (OPTIMIZER, load)):
        try:
            found[name] = parse(contents[name])
        except NewerVersion as error:
            raise NewerVersion(f"{folder / name} {error}") from error
        except MemoryError:
            raise
        except Exception as error:  # whatever safetensors finds in bytes that it did not write
            raise DamagedCheckpoint(
                f"{folder / name}: was not written by this program: {error}"
            ) from error
    return Checkpoint(found[STATE], found[WEIGHTS], found[OPTIMIZER])


def check_layout(found: Checkpoint, layout: Layout, folder: Path) -> None:
    """See that a checkpoint holds what this very run would write.

    torch trusts its optimizer's state: a tensor of another shape makes it write beyond it.

    Raises:
        DamagedCheckpoint: it does not.
    """
    step, in_epoch = found.state["step"], found.state["step_in_epoch"]
    samples = found.state["totals"]["samples"]
    if in_epoch >= layout.num_steps or step != found.state["epoch"] * layout.num_steps + in_epoch:
        raise DamagedCheckpoint(f"{folder / STATE}: step, epoch and step_in_epoch do not agree")
    if samples != in_epoch * layout.samples:
        raise DamagedCheckpoint(f"{folder / STATE}: totals are of another number of samples")
    if is_name(folder.name) and step != step_of(folder):
        raise DamagedCheckpoint(f"{folder / STATE}: is of step {step}")
    for name, tensors, wanted in (
        (WEIGHTS, found.weights, layout.weights),
        (OPTIMIZER, found.optimizer, layout.optimizer if step else {}),
    ):
        if problem := unlike(tensors, wanted):
            raise DamagedCheckpoint(f"{folder / name}: {problem}")


def unlike(tensors: Tensors, wanted: Mapping[str, str]) -> str:
    """What differs in tensors that should be `wanted`, as `shapes` tells it; "" if nothing does."""
    present = shapes(tensors)
    problems = [
        f"{name!r:.80} is {present.get(name, 'missing')}, needed {wanted.get(name, 'not')}"
        for name in sorted({*present, *wanted})
        if present.get(name) != wanted.get(name)
    ] or [f"{name} has values that are not finite" for name in not_finite(tensors)]
    return "; ".join(problems[:SHOWN])


def not_finite(tensors: Tensors) -> list[str]:
    """The names of tensors with an infinite value or a nan, with which nothing can go on."""
    return [name for name, value in tensors.items() if not torch.isfinite(value).all()]


def find(root: Path) -> list[Path]:
    """The published checkpoints below `root`, newest first.

    Raises:
        OSError: the folder cannot be read.
    """
    folders = [root / name for name in files.names_in(root) if is_name(name)]
    return sorted(folders, key=step_of, reverse=True)


def is_name(name: str) -> bool:
    """Whether a published checkpoint's folder is called so."""
    return re.fullmatch(r"step-[0-9]{8,15}", name) is not None


def step_of(folder: Path) -> int:
    """The number of optimizer steps that a checkpoint's name tells."""
    return int(folder.name.rpartition("-")[2])


def set_aside(folder: Path, why: str) -> Path:
    """Rename what is no longer to be used, without losing it. `why` is one word."""
    names = (f"{why}-{folder.name}", *(f"{why}-{folder.name}-{n}" for n in range(2, 10_000)))
    aside = next(a for name in names if not os.path.lexists(a := folder.with_name(name)))
    return folder.rename(aside)


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _manifest(contents: Mapping[str, bytes]) -> bytes:
    return _json_bytes(
        {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in contents.items()
        }
    )


def _differing_file(manifest: bytes, contents: Mapping[str, bytes]) -> str:
    """The first file that is not what the manifest says; the manifest if it says nothing."""
    try:
        stored, actual = files.parse_json(manifest), json.loads(_manifest(contents))
        return next((name for name in contents if stored.get(name) != actual[name]), MANIFEST)
    except (ValueError, AttributeError):
        return MANIFEST


def _prune(root: Path, *, keep: int) -> None:
    for folder in find(root)[keep:]:
        # Renamed first: a kill in the middle of the removal must not leave half a checkpoint.
        _remove(folder.rename(root / f"{REMOVED}{folder.name}"))


def remove_leftovers(root: Path) -> None:
    """Remove what an earlier process was writing or removing when it was killed."""
    for name in files.names_in(root):
        is_ours = name.startswith((f"{files.UNFINISHED}step-", f"{REMOVED}step-"))
        if is_ours and files.kind_of(root / name) == "a folder":
            _remove(root / name)


def _remove(folder: Path) -> None:
    """Remove a checkpoint's files; a folder that holds more, which is not ours, is kept."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        set_aside(folder, "kept")
