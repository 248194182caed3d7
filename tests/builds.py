"""Copies of the package whose kernel is built in another way, and what they compute.

A copy has the package's files and setup.py, with edits, in a folder of its own. Programs that use
it run in a process of their own, with that folder first on the path of imports.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from launching import environment

from sinlstm_dist import compiled

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Edit:
    """Another text in a file of the copy, in the one place where `old` is."""

    file: str
    old: str
    new: str


def copy_package(folder: Path, *edits: Edit) -> Path:
    """Put the package's sources and setup.py into `folder`, and edit them; returns the folder."""
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "sinlstm_dist", folder / "sinlstm_dist", ignore=ignore)
    shutil.copy(ROOT / "setup.py", folder)
    for edit in edits:
        text = (folder / edit.file).read_text()
        assert text.count(edit.old) == 1, f"{edit.file} must have {edit.old!r} once"
        (folder / edit.file).write_text(text.replace(edit.old, edit.new))
    return folder


def build(folder: Path, *, compiler: str) -> None:
    """Compile the kernel of a copy."""
    built = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=folder,
        env=environment(CC=compiler),
        capture_output=True,
        text=True,
    )
    # The extension is optional: setup.py ends with 0 without it.
    assert list(folder.glob("sinlstm_dist/_kernel*.so")), built.stderr
    commands = [line for line in built.stdout.splitlines() if " -c " in line]
    assert all(command.startswith(f"{compiler} ") for command in commands), commands


def digests(folder: Path, output: Path) -> dict[str, dict[str, str]]:
    """What digests.py computes with the package that lies in `folder`, by instruction set."""
    ended = subprocess.run(
        [sys.executable, ROOT / "tests" / "digests.py", output],
        env=environment(PYTHONPATH=str(folder)),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(output.read_text())
    assert Path(answer["file"]).parent == folder / "sinlstm_dist", "another kernel was loaded"
    return answer["digests"]


def machine() -> str:
    """The CPU, for messages: its model and its instruction sets."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    return (
        f"{' and '.join(models) or os.uname().machine} ({', '.join(compiled.instruction_sets())})"
    )
