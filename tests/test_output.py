"""Commands whose standard output or error fails: full, closed, left by its reader, in ASCII."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli
from launching import SMALL, command, environment, flags, train
from nursery import CLOSED_PIPE, Launch, Nursery

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


@pytest.fixture
def run_whole(nursery: Nursery, trained_run: Path, tmp_path: Path) -> Callable[..., Launch]:
    """Run one of COMMANDS as `python -m` does, and look for its files."""

    def run(name: str, **keywords) -> Launch:
        module, *arguments = words_of(name, run=trained_run, cwd=tmp_path)
        launch = nursery.run(arguments, cwd=tmp_path, module=module, is_whole=True, **keywords)
        assert all((tmp_path / file).exists() for file in FILES.get(name, []))
        return launch

    return run


def words_of(name: str, *, run: Path, cwd: Path) -> list[str]:
    return [word.format(run=run, cwd=cwd) for word in COMMANDS[name]]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk(run_whole, name) -> None:
    """What is asked for as files is there; text that is lost is told, and a short command fails."""
    ended = run_whole(name, stdout="/dev/full")
    assert ended.stderr == (
        "error: standard output: No space left on device: what could not be written there is lost\n"
    )
    assert ended.codes == [0 if name in ("train", "verify") else 1]


@pytest.mark.parametrize("words", [["train", "--help"], ["train", "--print-config"], ["--version"]])
def test_a_full_disk_under_the_installed_command(nursery, tmp_path, words) -> None:
    ended = nursery.run(words, cwd=tmp_path, module="__main__", is_whole=True, stdout="/dev/full")
    assert "No space left on device" in ended.stderr
    assert ended.codes == [1]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_has_left(run_whole, name) -> None:
    """`| head`: nothing is said, and the exit code is that of the work."""
    ended = run_whole(name, stdout=CLOSED_PIPE)
    assert (ended.codes, ended.stderr) == ([0], "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_in_ascii(run_whole, name) -> None:
    ended = run_whole(name, variables={"PYTHONIOENCODING": "ascii"})
    assert (ended.codes, ended.stderr) == ([0], "")
    assert ended.stdout.isascii()


def test_a_printed_configuration_is_utf_8(nursery, tmp_path: Path) -> None:
    words, ascii_only = ["--print-config", "--output.dir", "é😀\x1b"], {"PYTHONIOENCODING": "ascii"}
    printed = nursery.run(words, cwd=tmp_path, is_whole=True, variables=ascii_only).stdout
    assert "é😀\\u001b" in printed or "é😀\\U0000001B" in printed
    assert tomli.loads(printed)["output"]["dir"] == "é😀\x1b"


# What Python does before it runs anything is seen in processes of their own


@pytest.mark.parametrize(
    ("name", "streams"),
    [
        ("train", "<&- >&- 2>&-"), ("train", "2>/dev/full"), ("compare", ">&-"),
        ("compare", "2>&-"), ("compare", "<&- >&- 2>&-"),
    ],
)  # fmt: skip
def test_streams_that_are_closed(trained_run, tmp_path: Path, name, streams) -> None:
    module, *arguments = words_of(name, run=trained_run, cwd=tmp_path)
    words = command(*arguments, module=f"sinlstm_dist.{module}")
    line = ["sh", "-c", f'exec "$@" {streams}', "sh"]
    subprocess.run([*line, *words], cwd=tmp_path, env=environment(), check=True)
    assert all((tmp_path / file).exists() for file in FILES.get(name, []))


def test_a_locale_of_ascii(tmp_path: Path) -> None:
    variables = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    ended = train(flags({**SMALL, "output.dir": "run"}), cwd=tmp_path, **variables)
    assert (ended.code, ended.stderr) == (0, "")
    assert ended.stdout.isascii()
