"""launch/accelerate: the command in each file, as it stands there, gives the world it says.

There are no GPUs here: the files for GPUs start as many processes, on the CPU.
"""

import re
from pathlib import Path

import launching
import pytest
import yaml

FILES = Path(__file__).parents[1] / "launch/accelerate"
BRIEF = {**launching.SMALL, "output.dir": "run"}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder where `launch/accelerate/...` is what the commands mean."""
    (tmp_path / "launch").symlink_to(FILES.parent)
    return tmp_path


def command(name: str) -> str:
    """The last line of the file, with the flags of a brief run."""
    text = (FILES / f"{name}.yaml").read_text()
    [found] = re.findall(r"^#     (.*)\Z", text.rstrip(), flags=re.MULTILINE)
    return " ".join([found, *launching.flags(BRIEF)])


def check(folder: Path, name: str, trained_run: Path) -> None:
    meant = yaml.safe_load((FILES / f"{name}.yaml").read_text())["num_processes"]
    assert launching.summary(folder / "run")["world_size"] == meant
    assert launching.weights_digest(folder / "run") == launching.weights_digest(trained_run)


@pytest.mark.parametrize("name", ["one-cpu", "cpus", "gpus"])
def test_one_machine(name, here, trained_run):
    ended = launching.run(["sh", "-c", command(name)], cwd=here, HF_HOME=str(here / "hf"))
    assert ended.code == 0, ended.stderr
    check(here, name, trained_run)


def test_several_machines(cluster, here, trained_run):
    """On Slurm's two nodes, whose first one has the name that is in the file."""
    line = f"MACHINE=$SLURM_NODEID; {command('nodes')}"
    cluster.command("srun", "--nodes=2", "bash", "-c", line, cwd=here, HF_HOME=str(here / "hf"))
    check(here, "nodes", trained_run)


def test_every_file_is_started():
    started = {"one-cpu", "cpus", "gpus", "nodes"}
    assert {path.stem for path in FILES.iterdir()} == started
