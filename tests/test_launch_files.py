"""launch/: each file is clean and says what it is for, what to edit, what follows, what it runs."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [path for path in sorted((ROOT / "launch").rglob("*.*")) if path.suffix != ".txt"]
SCRIPTS = [path for path in FILES if path.suffix in (".sh", ".sbatch")]
ORDER = ("# WHAT IT IS FOR", "# WHAT TO EDIT", "# DERIVED VALUES", "# THE COMMAND")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*SCRIPTS, ROOT / ".ci/run"], ids=name)
def test_scripts_are_clean(shellcheck, path):
    ended = subprocess.run([shellcheck, path], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_have_one_order(path):
    lines = path.read_text().splitlines()
    found = [head for line in lines for head in ORDER if line.startswith(head)]
    assert found == list(ORDER)
