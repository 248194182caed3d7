"""What README.md, configs/ and .ci/run say is so."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import launching
import pytest

from sinlstm_dist.config import load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
SHORT = "--train.epochs 1 --data.train_size 200 --data.test_size 50"


def blocks(mark: str) -> list[str]:
    """The code blocks below `<!-- mark -->`."""
    return re.findall(rf"<!-- {mark} -->\n```bash\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = [line for block in blocks("test: run") for line in block.splitlines()]


@pytest.fixture
def run_line(nursery, tmp_path):
    """Run a command line; `python -m` and `sinlstm-dist` in a forked process, as they would."""

    def run_it(line: str) -> str:
        program, *arguments = shlex.split(line)
        if program in ("python", "sinlstm-dist"):
            module = arguments.pop(1).partition(".")[2] if program == "python" else "__main__"
            arguments = arguments[arguments[0] == "-m" :]
            ended = nursery.run(arguments, cwd=tmp_path, module=module, is_whole=True)
            assert (ended.codes, ended.stderr) == ([0], "")
        else:
            ended = launching.run([program, *arguments], cwd=tmp_path)
            assert ended.code == 0, ended.stderr
        return ended.stdout

    return run_it


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_run_as_printed(line, run_line, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    printed = run_line(f"{line} {SHORT}")
    assert "completed: 1 epochs" in printed or "--print-config" in line


@pytest.mark.parametrize(
    "line", [line for b in blocks("test: on a run") for line in b.splitlines()]
)
def test_commands_on_a_run_work_as_printed(line, run_line, trained_run, tmp_path):
    (tmp_path / "runs").mkdir()
    for name in ("default", "article", "noisy", "faster"):
        shutil.copytree(trained_run, tmp_path / "runs" / name)
    run_line(line)


EACH_ALONE = "import sys\nfor text in sys.argv[1:]: exec(text, {'__name__': '__main__'})"


def test_python_examples_run_in_order(run_line, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    training, _, predicting, without_torch = blocks  # the second: in test_series.py
    ended = launching.run([sys.executable, "-c", EACH_ALONE, training, predicting], cwd=tmp_path)
    *_, told, values = ended.stdout.splitlines()
    assert told.startswith("completed 0."), ended.stderr
    prediction, target = map(float, values.split())
    assert abs(prediction - target) < 1
    (line,) = re.findall(r"^python -m sinlstm_dist.export .*", README, flags=re.MULTILINE)
    assert "1,147 bytes, batch and window free" in run_line(
        line.replace("runs/default", "runs/python")
    )
    ended = launching.run([sys.executable, "-c", without_torch], cwd=tmp_path)
    assert abs(float(ended.stdout.strip("[]\n"))) < 1, ended.stderr


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_are_valid_and_listed(path):
    load_config(path)
    assert f"`{path.name}`" in README


def test_smoke_configuration_reaches_its_target(run_line):
    run_line(f"python -m sinlstm_dist.train --config {ROOT / 'configs/smoke.toml'}")


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
