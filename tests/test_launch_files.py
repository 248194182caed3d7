"""launch/: each file is clean and says what it is for, what to edit, what follows, what it runs."""

import subprocess
from pathlib import Path

import launching
import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = [
    path
    for path in sorted((ROOT / "launch").rglob("*"))
    if path.is_file() and path.suffix != ".txt"
]
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
    found = [head for line in lines for head in ORDER if line.strip().startswith(head)]
    assert found == list(ORDER)


def test_the_run_block_of_skypilot_starts_all_processes_of_a_machine(tmp_path):
    task = yaml.safe_load((ROOT / "launch/skypilot.yaml").read_text())
    given = {"NODE_IPS": "127.0.0.1", "NODE_RANK": "0", "NUM_NODES": "1", "NUM_GPUS_PER_NODE": "2"}
    flags = launching.flags({**launching.SMALL, "output.dir": "run"})
    ended = subprocess.run(
        ["bash", "-c", task["run"]],
        cwd=tmp_path,
        env=launching.environment(
            **{f"SKYPILOT_{name}": value for name, value in given.items()},
            **task["envs"] | {"FLAGS": " ".join(flags)},
        ),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    assert launching.summary(tmp_path / "run")["world_size"] == 2


def test_the_page_lists_every_file():
    listed = (ROOT / "docs/clusters.md").read_text()
    for path in FILES:
        is_one_of_several = path.parent.name == "accelerate"
        assert f"`{path.name if is_one_of_several else name(path)}`" in listed


def test_the_image_takes_torch_from_the_index_that_the_builder_names():
    """The file names no host: pip reads the build argument, and an empty one adds no index."""
    dockerfile = (ROOT / "launch/kubernetes/Dockerfile").read_text()
    assert "://" not in dockerfile
    assert "\nARG PIP_EXTRA_INDEX_URL=\n" in dockerfile
    last_stage = dockerfile.split("\nFROM ")[-1]
    declared, installed = (
        last_stage.index(each) for each in ("ARG PIP_EXTRA_INDEX_URL", "pip install")
    )
    assert declared < installed
