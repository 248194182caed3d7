"""Commands whose standard output or error fails: full, closed, left by its reader, in ASCII."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomli
from launching import SMALL, environment, flags
from nursery import Nursery


@pytest.fixture(scope="module")
def run(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("run")
    assert nursery.run(flags({**SMALL, "output.dir": "run"}), cwd=folder).codes == [0]
    return folder / "run"


COMMANDS = {
    "help": ["train", "--help"],
    "print-config": ["train", "--print-config"],
    "compare": ["compare", "{run}", "{run}"],
    "plot data": ["plot", "data", "--output", "{cwd}/data.png"],
    "plot": ["plot", "{run}", "--output", "{cwd}/curves.png"],
    "evaluate": ["evaluate", "{run}"],
    "forecast": ["forecast", "{run}", "--csv", "{cwd}/forecast.csv", "--output", "{cwd}/f.png"],
    "export": ["export", "{run}", "--output", "{cwd}/model.onnx"],
    "train": ["train", *flags({**SMALL, "output.dir": "{cwd}/new"})],
    "verify": ["verify", "--json", "{cwd}/verify.json"],
}
FILES = {
    "plot data": ["data.png"], "plot": ["curves.png"], "forecast": ["forecast.csv", "f.png"],
    "export": ["model.onnx"], "train": ["new/model.safetensors"], "verify": ["verify.json"],
}  # fmt: skip


def words_of(name: str, *, run: Path, cwd: Path) -> list[str]:
    module, *arguments = COMMANDS[name]
    filled = [argument.format(run=run, cwd=cwd) for argument in arguments]
    return [sys.executable, "-m", f"sinlstm_dist.{module}", *filled]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk(run: Path, tmp_path: Path, name) -> None:
    """What is asked for as files is there; text that is lost is told, and a short command fails."""
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            words_of(name, run=run, cwd=tmp_path), cwd=tmp_path, env=environment(), stdout=full,
            stderr=subprocess.PIPE, text=True, timeout=120,
        )  # fmt: skip
    assert ended.stderr == (
        "error: standard output: No space left on device: what could not be written there is lost\n"
    )
    assert ended.returncode == (0 if name in ("train", "verify") else 1)
    assert all((tmp_path / file).exists() for file in FILES.get(name, []))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_has_left(run: Path, tmp_path: Path, name) -> None:
    """`| head`: nothing is said, and the exit code is that of the work."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as left:
        ended = subprocess.run(
            words_of(name, run=run, cwd=tmp_path), cwd=tmp_path, env=environment(), stdout=left,
            stderr=subprocess.PIPE, text=True, timeout=120,
        )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    assert all((tmp_path / file).exists() for file in FILES.get(name, []))


@pytest.mark.parametrize(
    ("name", "streams"),
    [
        ("train", ">&-"), ("train", "2>&-"), ("train", "<&- >&- 2>&-"), ("train", "2>/dev/full"),
        ("compare", ">&-"), ("compare", "<&- >&- 2>&-"),
    ],
)  # fmt: skip
def test_streams_that_are_closed(run: Path, tmp_path: Path, name, streams) -> None:
    line = f'exec "$@" {streams}'
    words = words_of(name, run=run, cwd=tmp_path)
    assert subprocess.run(
        ["sh", "-c", line, "sh", *words], cwd=tmp_path, env=environment(), timeout=120,
        stdout=subprocess.DEVNULL,
    ).returncode == 0  # fmt: skip
    assert all((tmp_path / file).exists() for file in FILES.get(name, []))


ASCII = {"PYTHONIOENCODING": "ascii"}
POSIX = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize(
    ("name", "variables"),
    [*((name, ASCII) for name in COMMANDS), ("train", POSIX), ("evaluate", POSIX)],
)
def test_every_command_in_ascii(run: Path, tmp_path: Path, name, variables) -> None:
    ended = subprocess.run(
        words_of(name, run=run, cwd=tmp_path), cwd=tmp_path, env=environment(**variables),
        capture_output=True, timeout=120,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout.isascii()
    assert all((tmp_path / file).exists() for file in FILES.get(name, []))


def test_a_printed_configuration_is_utf_8(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "sinlstm_dist.train",
        "--print-config",
        "--output.dir",
        "é😀\x1b",
    ]
    printed = subprocess.run(
        words, capture_output=True, check=True, env=environment(PYTHONIOENCODING="ascii")
    ).stdout
    assert "é😀\\u001b" in printed.decode() or "é😀\\U0000001B" in printed.decode()
    assert tomli.loads(printed.decode())["output"]["dir"] == "é😀\x1b"
