"""Write and read checkpoints: each is whole or absent, and is checked before it is used.

A checkpoint is a folder `step-NNNNNNNN` of safetensors and JSON, with a manifest of each file's
size and SHA-256. It is written under another name, synced and renamed, so a folder of that name is
whole. It holds nothing that depends on the number of processes.
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
from sinlstm_dist.run.record import WEIGHTS
from sinlstm_dist.run.state import STATE as STATE
from sinlstm_dist.run.state import NewerVersion

Tensors = dict[str, torch.Tensor]

OPTIMIZER, MANIFEST = "optimizer.safetensors", "manifest.json"
FILES = (WEIGHTS, OPTIMIZER, STATE, MANIFEST)
REMOVED = ".removed-"


class DamagedCheckpoint(Exception):
    """A folder is not a whole checkpoint; the message names the file and the problem."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run between two steps.

    Args:
        state: JSON values: `step` (optimizer steps so far), the rest of the progress, the
            configuration, the fingerprint of the data, the settings of the optimizer's groups.
        weights: parameters and buffers by name.
        optimizer: the optimizer's tensors by name.
    """

    state: Mapping[str, Any]
    weights: Tensors
    optimizer: Tensors


def write(root: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Publish `checkpoint` below `root`, then remove all but the `keep` newest.

    Returns:
        its folder. A checkpoint of the same step that is already there stays as it is: the same
        step of the same run is the same state.

    Raises:
        OSError: it could not be written; earlier checkpoints are untouched.
    """
    folder = root / f"step-{checkpoint.state['step']:08d}"
    if files.kind_of(root) == "a link":
        raise NotAFile(errno.ELOOP, "is a link", str(root))
    if folder.exists():
        return folder
    if not root.exists():
        root.mkdir()
        files.sync(root.parent)
    unfinished = _unused(root / f"{files.UNFINISHED}{folder.name}")
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
        WEIGHTS: to_bytes(checkpoint.weights),
        OPTIMIZER: to_bytes(checkpoint.optimizer),
        STATE: _json_bytes({**checkpoint.state, "format": state.FORMAT}),
    }
    return {**contents, MANIFEST: _manifest(contents)}


def to_bytes(tensors: Tensors) -> bytes:
    """The content of a safetensors file. Tied weights are in it under each of their names.

    safetensors refuses tensors that share memory or are transposed, so it gets plain copies.
    """
    return save(
        {
            name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, value in tensors.items()
        }
    )


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint, and check every byte of it.

    Raises:
        DamagedCheckpoint: something is missing or altered.
        NewerVersion: it is whole, but of a newer version of this program.
        OSError: it cannot be read now, which does not mean damage.
    """
    _refuse_newer(folder)
    contents = {}
    for name in FILES:
        try:
            contents[name] = files.read(folder / name)
        except (FileNotFoundError, NotADirectoryError, NotAFile) as error:
            raise DamagedCheckpoint(f"{folder / name}: {error.strerror}") from error
    manifest = contents.pop(MANIFEST)
    if manifest != _manifest(contents):  # the other files decide every byte of the manifest
        differing = folder / _differing_file(manifest, contents)
        raise DamagedCheckpoint(f"{differing}: is damaged (it does not match {MANIFEST})")
    return _parse(folder, contents)


def _refuse_newer(folder: Path) -> None:
    """Refuse a newer format, which may have other files with other content."""
    try:
        content = files.read(folder / STATE)
        sha256 = files.parse_json(files.read(folder / MANIFEST))[STATE]["sha256"]
        number = files.parse_json(content)["format"]
    except (FileNotFoundError, NotADirectoryError, NotAFile, ValueError, LookupError, TypeError):
        return  # damaged, or of the first format
    if sha256 == hashlib.sha256(content).hexdigest() and type(number) is int:
        try:
            state.refuse_newer(number)
        except NewerVersion as error:
            raise NewerVersion(f"{folder / STATE} {error}") from error


def _parse(folder: Path, contents: Mapping[str, bytes]) -> Checkpoint:
    parsed = {}
    for name, parse in ((STATE, state.parse), (WEIGHTS, load), (OPTIMIZER, load)):
        try:
            parsed[name] = parse(contents[name])
        except NewerVersion as error:
            raise NewerVersion(f"{folder / name} {error}") from error
        except MemoryError:
            raise
        except Exception as error:  # safetensors raises many kinds for bytes that it did not write
            raise DamagedCheckpoint(
                f"{folder / name}: was not written by this program: {error}"
            ) from error
    return Checkpoint(parsed[STATE], parsed[WEIGHTS], parsed[OPTIMIZER])


def find(root: Path) -> list[Path]:
    """The published checkpoints below `root`, newest first.

    Raises:
        OSError: the folder cannot be read.
    """
    folders = [root / name for name in files.names_in(root) if is_name(name)]
    return sorted(folders, key=step_of, reverse=True)


def is_name(name: str) -> bool:
    """Whether this is the name of a published checkpoint's folder."""
    return re.fullmatch(r"step-[0-9]{8,15}", name) is not None


def step_of(folder: Path) -> int:
    """The number of optimizer steps in a checkpoint's name."""
    return int(folder.name.rpartition("-")[2])


def set_aside(folder: Path, why: str) -> Path:
    """Rename a file or folder that is not to be used any more; `why` is one word.

    Returns:
        the new path.

    Raises:
        OSError: it has kept its name; overlayfs, for one, cannot rename an image's folders.
    """
    aside = _unused(folder.with_name(f"{why}-{folder.name}"))
    try:
        return folder.rename(aside)
    except OSError as error:
        what = f"cannot be renamed to {aside.name}: {error.strerror}"
        raise OSError(error.errno, what, str(folder)) from error


def _unused(path: Path) -> Path:
    """This path, or the first with a number after it that nothing is at."""
    numbered = (path.with_name(f"{path.name}-{n}") for n in range(2, 10_000))
    return next(p for p in (path, *numbered) if not os.path.lexists(p))


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
    """The first file that differs from the manifest; the manifest if it is not one."""
    try:
        stored, actual = files.parse_json(manifest), json.loads(_manifest(contents))
        return next((name for name in contents if stored.get(name) != actual[name]), MANIFEST)
    except (ValueError, AttributeError):
        return MANIFEST


def _prune(root: Path, *, keep: int) -> None:
    """Remove all but the newest; one that cannot be removed is kept, and the run goes on."""
    with contextlib.suppress(OSError):
        for folder in find(root)[keep:]:
            with contextlib.suppress(OSError):
                _prune_one(folder)


def _prune_one(folder: Path) -> None:
    # Rename first: a kill in the middle of the removal must not leave half a checkpoint.
    renamed = folder.rename(_unused(folder.with_name(f"{REMOVED}{folder.name}")))
    try:
        _remove(renamed)
    except OSError:
        if all(files.kind_of(renamed / name) for name in FILES):
            renamed.rename(folder)


def remove_leftovers(root: Path) -> None:
    """Remove checkpoints that a process was writing or removing when it was killed.

    Those that cannot be removed stay: their names are not those of checkpoints.
    """
    with contextlib.suppress(OSError):
        names = files.names_in(root) if files.kind_of(root) == "a folder" else []
        for name in names:
            is_ours = name.startswith((f"{files.UNFINISHED}step-", f"{REMOVED}step-"))
            with contextlib.suppress(OSError):
                if is_ours and files.kind_of(root / name) == "a folder":
                    _remove(root / name)


def _remove(folder: Path) -> None:
    """Remove a checkpoint's files, and the folder unless it holds files of somebody else."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        set_aside(folder, "kept")
