"""What README.md, configs/ and .ci/run say is so."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launching import environment

from sinlstm_dist.config import load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
SHORT = ["--train.epochs", "1", "--data.train_size", "200", "--data.test_size", "50"]


def blocks(mark: str) -> list[str]:
    """The code blocks below `<!-- mark -->`."""
    return re.findall(rf"<!-- {mark} -->\n```bash\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = [line for block in blocks("test: run") for line in block.splitlines()]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_run_as_printed(line, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    program, *arguments = shlex.split(line)
    beside_python = str(Path(sys.executable).parent / program)
    ended = run([beside_python, *arguments, *SHORT], cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "completed: 1 epochs" in ended.stdout or "--print-config" in arguments


@pytest.mark.parametrize(
    "line", [line for b in blocks("test: on a run") for line in b.splitlines()]
)
def test_commands_on_a_run_work_as_printed(line, trained_run, tmp_path):
    (tmp_path / "runs").mkdir()
    for name in ("default", "article", "noisy", "faster"):
        shutil.copytree(trained_run, tmp_path / "runs" / name)
    program, *arguments = shlex.split(line)
    ended = run([str(Path(sys.executable).parent / program), *arguments], cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""


def test_python_examples_run_in_order(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    training, _, predicting, without_torch = blocks  # the second: in test_series.py
    ended = run([sys.executable, "-c", training], cwd=tmp_path)
    assert ended.stdout.splitlines()[-1].startswith("completed 0."), ended.stderr
    ended = run([sys.executable, "-c", predicting], cwd=tmp_path)
    prediction, target = map(float, ended.stdout.split())
    assert abs(prediction - target) < 1, ended.stderr
    (command,) = re.findall(r"^python -m (sinlstm_dist.export .*)", README, flags=re.MULTILINE)
    arguments = command.replace("runs/default", "runs/python").split()
    ended = run([sys.executable, "-m", *arguments], cwd=tmp_path)
    assert "1,147 bytes, batch and window free" in ended.stdout, ended.stderr
    ended = run([sys.executable, "-c", without_torch], cwd=tmp_path)
    assert abs(float(ended.stdout.strip("[]\n"))) < 1, ended.stderr


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_are_valid_and_listed(path):
    load_config(path)
    assert f"`{path.name}`" in README


def test_smoke_configuration_reaches_its_target(tmp_path):
    module = [sys.executable, "-m", "sinlstm_dist.train"]
    ended = run([*module, "--config", str(ROOT / "configs/smoke.toml")], cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr


def test_tour_and_promises_name_what_exists():
    modules = {path.name for path in (ROOT / "sinlstm_dist").glob("*.py")}
    tour = README[README.index("## Tour") :]
    assert modules - set(re.findall(r"`(\w+\.py)`", tour)) == {"__init__.py", "__main__.py"}
    tests = set(re.findall(r"`(tests/\w+\.py)`", README))
    assert all((ROOT / path).exists() for path in tests), tests


def test_ci_runs_the_commands_of_the_readme():
    for name in ("train", "test"):
        assert f"<!-- ci: {name} -->" in README
        assert f"readme_command {name}" in (ROOT / ".ci" / "run").read_text()


def run(arguments: list[str], *, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=120
    )
