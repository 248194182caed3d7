"""The sdist holds the project and the wheel the package; the files that describe them agree."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import builds
import pytest
import tomli
import yaml
from launching import SMALL, environment, flags, run

from sinlstm_dist import __version__, compiled

ROOT = Path(__file__).parents[1]
PROJECT = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
UNWANTED = (
    "runs/default/config.toml", ".venv/bin/python", ".hypothesis/examples",
    "sinlstm_dist/_kernel.abi3.so", "sinlstm_dist/__pycache__/train.cpython-311.pyc",
)  # fmt: skip
# A GPU's kernel is compiled where it runs.
OF_GPUS = {f"sinlstm_dist/csrc/{name}" for name in ("gpu.cu", "activations.h", "simd.h", "unit.h")}
GENERATED = ("PKG-INFO", "setup.cfg", "sinlstm_dist.egg-info/")

needs_git = pytest.mark.skipif(
    not (ROOT / ".git").exists() and not os.environ.get("CI"), reason="needs git's list of files"
)


def git_files() -> set[str]:
    """The files of the project: those that git has or would add."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {path for path in listed.splitlines() if (ROOT / path).exists()}


def build(kind: str, *, source: Path, into: Path) -> Path:
    """Build the sdist or the wheel of a folder with the setuptools that is installed here."""
    program = f"from setuptools import build_meta; build_meta.build_{kind}({str(into)!r})"
    ended = subprocess.run([sys.executable, "-c", program], cwd=source, capture_output=True)
    assert ended.returncode == 0, ended.stderr.decode()
    [built] = into.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked; built from a copy of the project that also has unwanted files."""
    folder = tmp_path_factory.mktemp("sdist")
    for path in (*git_files(), *UNWANTED):
        (folder / "copy" / path).parent.mkdir(parents=True, exist_ok=True)
        original = ROOT / path
        (folder / "copy" / path).write_bytes(b"" if path in UNWANTED else original.read_bytes())
    with tarfile.open(build("sdist", source=folder / "copy", into=folder)) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"sinlstm_dist-{__version__}"


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist."""
    return build("wheel", source=sdist, into=tmp_path_factory.mktemp("wheel"))


@needs_git
def test_the_sdist_is_the_project(sdist):
    files = {str(path.relative_to(sdist)) for path in sdist.rglob("*") if path.is_file()}
    packed = {path for path in files if not path.startswith(GENERATED)}
    assert packed == git_files(), "MANIFEST.in lists the files of the sdist"


@needs_git
@pytest.mark.kernel
def test_the_wheel_is_the_package(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {path for path in git_files() if path.startswith("sinlstm_dist/")}
    python = {path for path in package if path.endswith((".py", ".pyi", "py.typed"))}
    assert packed == {*python, *OF_GPUS, "sinlstm_dist/_kernel.abi3.so"}


@needs_git
@pytest.mark.kernel
def test_the_wheel_trains_away_from_the_checkout(wheel, tmp_path):
    python = tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    # It shares this environment's other packages, but not its editable install: Python ignores .pth
    # files in a folder that a .pth file names.
    [packages] = (tmp_path / "venv/lib").glob("python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True)

    settings = ["--config", str(ROOT / "configs/smoke.toml"), "--output.dir", "run"]
    ended = subprocess.run(
        [python.with_name("sinlstm-dist"), "train", *settings],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert "fused (compiled kernel" in ended.stdout
    where = "import sinlstm_dist; print(sinlstm_dist.__file__)"
    imported = subprocess.run([python, "-c", where], cwd=tmp_path, capture_output=True, text=True)
    assert Path(imported.stdout).is_relative_to(packages)


EVERY_COMMAND = """
from sinlstm_dist.__main__ import main

for line in open("commands"):
    print(line, flush=True)
    assert main(line.split()) == 0, line
"""


@pytest.mark.kernel
def test_every_command_works_from_a_checkout_that_is_not_installed(tmp_path):
    """As after `python setup.py build_ext --inplace` on a machine with torch and without us."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for installed in Path(sysconfig.get_path("purelib")).iterdir():
        if "sinlstm_dist" not in installed.name:
            (packages / installed.name).symlink_to(installed)
    checkout = builds.copy_package(tmp_path / "checkout")
    shutil.copy(compiled.kernel().__file__, checkout / "sinlstm_dist")
    small = " ".join(flags({**SMALL, "train.epochs": 1, "output.dir": "run"}))
    commands = [
        f"train {small}", "evaluate run", "forecast run --steps 3", "plot run --output curves.png",
        "export run --output run.onnx", "compare run run", "verify --processes 1",
    ]  # fmt: skip
    (checkout / "commands").write_text("\n".join(commands))
    ended = run([sys.executable, "-S", "-c", EVERY_COMMAND], cwd=checkout, PYTHONPATH=str(packages))
    assert ended.code == 0, ended.stdout + ended.stderr
    assert "verified in" in ended.stdout


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["license"]
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_workflow_runs_on_the_oldest_and_the_newest_python():
    prefix = "Programming Language :: Python :: 3."
    minors = [int(each.removeprefix(prefix)) for each in PROJECT["classifiers"] if prefix in each]
    oldest, newest = f"3.{min(minors)}", f"3.{max(minors)}"
    assert PROJECT["requires-python"] == f">={oldest}"
    assert f"Python {oldest} or newer" in (ROOT / "README.md").read_text()
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert workflow["jobs"]["ci"]["strategy"]["matrix"]["python"] == [oldest, newest]


def test_pre_commit_runs_what_ci_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    entries = {hook["entry"] for hook in hooks}
    ci = re.findall(r"^\.venv/bin/(?:ruff|mypy).*$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert entries == {*ci, "shellcheck"}


@pytest.mark.parametrize("name", ["bug", "idea"])
def test_issue_forms_are_whole(name):
    form = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text())
    assert {"name", "description", "body"} <= form.keys()
    asked = [each["id"] for each in form["body"] if each["type"] != "markdown"]
    assert len(asked) == len(set(asked)) > 0


TOY_README = """
<!-- ci: install -->
```bash
mkdir -p .venv/bin && for name in ruff mypy clang-format; do ln -s /bin/echo .venv/bin/$name; done
```
<!-- ci: test -->
```bash
echo tests
```
"""


def test_ci_leaves_the_checkout_as_it_is(tmp_path):
    """The real .ci/run runs in a small repository whose commands only print."""
    toy, programs = tmp_path / "toy", tmp_path / "programs"
    programs.mkdir()
    for name in (
        "cc",
        "shellcheck",
        "mpirun",
        "tmux",
        "pkill",
        "slurmctld",
        "munge",
        "ip",
        "apt-get",
    ):
        (programs / name).symlink_to("/bin/true")  # .ci/run installs nothing then
    (toy / ".ci").mkdir(parents=True)
    (toy / ".ci/run").write_bytes((ROOT / ".ci/run").read_bytes())
    (toy / "README.md").write_text(TOY_README)
    who = ["-c", "user.name=toy", "-c", "user.email=toy@example.com"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "toy"]):
        subprocess.run(["git", *command], cwd=toy, check=True)
    (toy / ".venv").mkdir()
    (toy / ".venv/mine").touch()
    before = sorted(toy.rglob("*"))

    variables = environment(PATH=f"{programs}:{os.environ['PATH']}", TMPDIR=str(tmp_path))
    command = ["bash", str(toy / ".ci/run")]
    ended = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    printed = [line for line in ended.stdout.splitlines() if not line.startswith("==")]
    formatted = "--dry-run --Werror sinlstm_dist/csrc/*"
    assert printed == ["tests", "check .", "format --check .", "", formatted]
    assert sorted(toy.rglob("*")) == before
    assert sorted(tmp_path.iterdir()) == [programs, toy]  # the clone is gone
