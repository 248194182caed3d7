"""Random alterations of a checkpoint, as bad disks, other programs and people make them.

    alteration = alter(folder, random.Random(7), outside=elsewhere)

Same seed, same alteration. With `recomputed`, the manifest vouches for what was altered.
"""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

WEIGHTS, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json",
)  # fmt: skip
CONTENT = (WEIGHTS, OPTIMIZER, STATE)
DEEP = '"deep"'  # stands for what `json` itself cannot write
VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 7, 2**31, 2**63, 10**30, 10**400, -(10**400), 0.0, -0.5, 1.5,
    1e308, float("nan"), float("inf"), "", "7", "x" * 10**6, "\ud800", "\x1b[31m", "\0", "é😀",
    [], {}, [[]], [1] * 1000, {"a": 1}, {"": {}}, "deep",
]  # fmt: skip
DTYPES = (
    torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool,
    torch.float8_e4m3fn,
)  # fmt: skip


@dataclass(frozen=True)
class Alteration:
    """What was done to a checkpoint.

    Args:
        what: for people.
        recomputed: whether the manifest was made to match.
        plausible: whether it is a value that a run could have written there too.
    """

    what: str
    recomputed: bool = False
    plausible: bool = False


def alter(folder: Path, draw: random.Random, *, outside: Path) -> Alteration:
    """Alter the checkpoint in `folder` once.

    Args:
        draw: decides how.
        outside: a folder of somebody else, for links to lead to.
    """
    kinds: list[Callable[..., tuple[str, bool]]] = [
        *[_field] * 8, *[_state_bytes] * 2, *[_tensor] * 8, *[_tensor_bytes] * 2, *[_file] * 5,
    ]  # fmt: skip
    what, plausible = draw.choice(kinds)(folder, draw, outside)
    recomputed = draw.random() < 0.7 and _recompute(folder)
    return Alteration(what, recomputed, plausible and recomputed)


def _recompute(folder: Path) -> bool:
    paths = [folder / name for name in (*CONTENT, MANIFEST)]
    if not all(path.is_file() and not path.is_symlink() for path in paths):
        return False
    manifest = {}
    for name in CONTENT:
        content = (folder / name).read_bytes()
        manifest[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    (folder / MANIFEST).write_text(text)
    return True


def _field(folder: Path, draw: random.Random, _: Path) -> tuple[str, bool]:
    """One field of state.json: gone, added, or with another value."""
    state = json.loads((folder / STATE).read_bytes())
    path = draw.choice(list(_paths(state)))
    parent = state
    for key in path[:-1]:
        parent = parent[key]
    name, old = ".".join(path), parent[path[-1]]
    do = draw.choice(["delete", "add", "set", "set", "near"])
    if do == "delete":
        del parent[path[-1]]
    elif do == "add":
        name += "_more"
        parent[path[-1] + "_more"] = draw.choice([old, *VALUES])
    elif do == "near" and type(old) in (int, float):
        parent[path[-1]] = draw.choice([old + 1, old - 1, old * 2, -old, float(old), str(old)])
    else:
        parent[path[-1]] = draw.choice(VALUES)
    text = json.dumps(state, indent=1, sort_keys=True) + "\n"
    (folder / STATE).write_text(text.replace(DEEP, "[" * 100_000 + "]" * 100_000))
    new = repr(parent.get(path[-1]))[:40]
    return f"state.json {do} {name}: {old!r:.40} -> {new}", name.startswith("totals.")


def _paths(value: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, below in value.items():
        found.append((*above, key))
        if isinstance(below, dict):
            found += _paths(below, (*above, key))
    return found


def _state_bytes(folder: Path, draw: random.Random, _: Path) -> tuple[str, bool]:
    content = (folder / STATE).read_bytes()
    do, altered = draw.choice(
        [
            ("empty", b""),
            ("null", b"null\n"),
            ("a list", b"[]\n"),
            ("a number", b"7\n"),
            ("deep", b"[" * 200_000),
            ("deep objects", b'{"a":' * 100_000),
            ("digits", b"9" * 10_000),
            ("with a byte order mark", b"\xef\xbb\xbf" + content),
            ("in UTF-16", content.decode().encode("utf-16")),
            ("twice", content * 2),
            ("in one line", json.dumps(json.loads(content)).encode()),
            ("a megabyte longer", content + b" " * 2**20),
            some_bytes(content, draw),
        ]
    )
    (folder / STATE).write_bytes(altered)
    return f"state.json: {do}", False


def some_bytes(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """What is wrong with the altered content, and that."""
    do = draw.choice(["cut", "flip", "random"])
    at = draw.randrange(len(content)) if content else 0
    if do == "cut":
        return f"cut to {at}", content[:at]
    if do == "random":
        return "random bytes", draw.randbytes(len(content))
    altered = bytearray(content)
    altered[at] ^= 1 << draw.randrange(8)
    return f"a bit of byte {at}", bytes(altered)


def _tensor(folder: Path, draw: random.Random, _: Path) -> tuple[str, bool]:
    """One tensor: gone, added, of another name, shape or dtype, or with another value."""
    path = folder / draw.choice([WEIGHTS, OPTIMIZER])
    tensors = load(path.read_bytes())
    name = draw.choice(sorted(tensors))
    value = tensors[name]
    do = draw.choice(["drop", "rename", "add", "shape", "dtype", "odd", "value", "swap", "all"])
    if do == "drop":
        del tensors[name]
    elif do == "all":
        tensors = {}
    elif do == "rename":
        tensors[draw.choice(["", "x" * 1000, name + ".", name.upper(), "\0", "é"])] = value
        del tensors[name]
    elif do == "add":
        tensors[draw.choice(["more", f"{name}.more", "step"])] = torch.zeros(3)
    elif do == "shape":
        sizes = [(), (0,), (1,), (value.numel(),), (*value.shape, 1), (10_000,), (2**16, 0)]
        size = draw.choice([size for size in sizes if size != tuple(value.shape)])
        tensors[name] = torch.zeros(size)
    elif do == "dtype":
        tensors[name] = value.to(draw.choice(DTYPES))
    elif do == "odd":
        tensors[name] = value.clone()
        tensors[name].view(-1)[0] = draw.choice([float("nan"), float("inf"), -float("inf")])
    elif do == "value":
        tensors[name] = value + draw.choice([1e-3, -1.0])
    else:
        other = draw.choice(sorted(tensors))
        tensors[name], tensors[other] = tensors[other], tensors[name]
        do += f" with {other}"
    path.write_bytes(save(tensors))
    return f"{path.name}: {do} {name}", do == "value" or do.startswith("swap")


def _tensor_bytes(folder: Path, draw: random.Random, _: Path) -> tuple[str, bool]:
    path = folder / draw.choice([WEIGHTS, OPTIMIZER])
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = draw.choice(sorted(header))
    do = draw.choice(
        ["bytes", "length", "offsets", "metadata", "dtype", "shape", "empty", "pickle"]
    )
    if do == "bytes":
        what, altered = some_bytes(content, draw)
        path.write_bytes(altered)
        return f"{path.name}: {what}", what.startswith("a bit")
    if do in ("length", "empty", "pickle"):
        huge = (2**63).to_bytes(8, "little") + content[8:]
        path.write_bytes({"length": huge, "empty": b"", "pickle": b"\x80\x04K\x01."}[do])
        return f"{path.name}: {do}", False
    if do == "metadata":
        header["__metadata__"] = {"format": "pt"}
    else:
        key = "data_offsets" if do == "offsets" else do
        header[name][key] = {
            "offsets": draw.choice([[0, 2**62], [4, 0], [-1, 3], "x"]),
            "dtype": draw.choice(["F4", "C64", "", 7, None, "F64"]),
            "shape": draw.choice([[2**62], [-1], [1.5], "x", [0], [2**33, 2**33]]),
        }[do]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return f"{path.name}: header's {do} of {name}", False


def _file(folder: Path, draw: random.Random, outside: Path) -> tuple[str, bool]:
    """A whole file, or the whole folder."""
    path = folder / draw.choice([*CONTENT, MANIFEST])
    older = min(folder.parent.glob("step-*"))
    do = draw.choice(
        [
            "missing", "folder", "link", "dangling", "fifo", "more", "more folder", "older",
            "older folder", "is a file", "is empty", "another step", "new link", "device",
            "manifest", "unreadable name",
        ]
    )  # fmt: skip
    if do in ("missing", "folder", "link", "dangling", "fifo", "device"):
        copy = outside / path.name
        shutil.copyfile(path, copy)
        path.unlink()
        if do == "folder":
            path.mkdir()
        elif do == "fifo":
            os.mkfifo(path)
        elif do != "missing":
            target = {"link": copy, "dangling": outside / "nothing", "device": "/dev/zero"}[do]
            path.symlink_to(target)
    elif do in ("more", "unreadable name"):
        name = b"model.bin" if do == "more" else b"\xff\xfe\x1b[2J"
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"x")
    elif do == "more folder":
        (folder / "more").mkdir()
    elif do == "older":
        shutil.copyfile(older / path.name, path)
    elif do == "older folder":
        shutil.rmtree(folder)
        shutil.copytree(older, folder)
    elif do in ("is a file", "is empty"):
        shutil.rmtree(folder)
        folder.write_bytes(b"x") if do == "is a file" else folder.mkdir()
    elif do == "another step":
        folder.rename(folder.with_name(f"step-{draw.choice([8, 99, 10**9]):08d}"))
    elif do == "new link":
        name = draw.choice(["step-00000099", ".removed-step-00000001", ".unfinished-step-00000008"])
        (folder.parent / name).symlink_to(outside)
    else:
        text = draw.choice(['{"state.json": 7}', "[" * 100_000, "null", "{}", "9" * 10_000])
        (folder / MANIFEST).write_text(text)
        return f"manifest.json: {text[:20]}", False
    return f"{do}: {path.name}", do == "older" and path.suffix == ".safetensors"
