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
BUILT = ("*.so", "__pycache__")


@dataclass(frozen=True)
class Edit:
    """Another text in a file of the copy, in the one place where `old` is."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Build:
    """How the kernel of a copy is built."""

    compiler: str = "gcc"
    edits: tuple[Edit, ...] = ()

    def make(self, folder: Path) -> Path:
        """Copy the package into `folder`, edit it and compile the kernel; returns the folder."""
        shutil.copytree(
            ROOT / "sinlstm_dist", folder / "sinlstm_dist", ignore=shutil.ignore_patterns(*BUILT)
        )
        shutil.copy(ROOT / "setup.py", folder)
        for edit in self.edits:
            text = (folder / edit.file).read_text()
            assert text.count(edit.old) == 1, f"{edit.file} must have {edit.old!r} once"
            (folder / edit.file).write_text(text.replace(edit.old, edit.new))
        built = subprocess.run(
            [sys.executable, "setup.py", "build_ext", "--inplace"],
            cwd=folder,
            env=environment(CC=self.compiler),
            capture_output=True,
            text=True,
            check=False,
        )
        # The extension is optional: setup.py ends with 0 without it.
        assert list(folder.glob("sinlstm_dist/_kernel*.so")), built.stderr
        assert f"{self.compiler} " in built.stdout
        return folder


def ask(program: str, folder: Path = ROOT, **variables: str) -> dict[str, str]:
    """What `program` prints as JSON, run with the package that lies in `folder`."""
    loads = "from sinlstm_dist import compiled\nkernel_file = compiled.kernel().__file__\n"
    ended = subprocess.run(
        [sys.executable, "-c", f"{loads}{program}\nprint(kernel_file)"],
        cwd=folder,
        env=environment(PYTHONPATH=str(folder), **variables),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    *_, answer, kernel_file = ended.stdout.splitlines()
    assert Path(kernel_file).parent == folder / "sinlstm_dist", "another kernel was loaded"
    return json.loads(answer)


def machine() -> str:
    """The CPU, for messages: its model and its instruction sets."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    return f"{' and '.join(models) or os.uname().machine} ({', '.join(compiled.instruction_sets())})"
