"""The process as a program: interrupted at any time, and left by its launcher."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launching import (
    HANGS_S,
    SMALL,
    children,
    command,
    environment,
    finish,
    flags,
    free_port,
    has_begun,
    is_alive,
    run,
    spawn,
    summary,
    wait_for,
)
from terminals import Terminal

from sinlstm_dist import early, status

STARTS = {
    "python -m": [sys.executable, "-m", "sinlstm_dist.train"],
    "verify": [sys.executable, "-m", "sinlstm_dist.verify"],
    "script": [str(Path(sys.executable).parent / "sinlstm-dist"), "train"],
}
LONG = {**SMALL, "train.epochs": 100_000, "checkpoint.every_epochs": 1000, "output.dir": "run"}
LIBRARY = "import signal, sinlstm_dist.screen.console; print(signal.getsignal(signal.SIGINT))"


def runs_train(pid: int) -> bool:
    """Whether a process runs the program itself, and no other that its launcher has started.

    A worker of torchrun is torchrun, which has loaded every library, until it has begun.
    """
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return False
    return b"sinlstm_dist.train" in line and b"torchrun" not in line


def imports(pid: int, *, library: str) -> bool:
    """Whether a process has loaded a library by now."""
    return library in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize("library", ["libtorch_cpu", "libtorch_python"])
@pytest.mark.parametrize("start", STARTS)
def test_ctrl_c_while_importing(tmp_path: Path, start, library) -> None:
    """Ends as a shell expects it (130), without a word."""
    words = [*STARTS[start], *(flags(LONG) if start != "verify" else [])]
    process = spawn(words, cwd=tmp_path)
    wait_for(lambda: imports(process.pid, library=library))
    os.kill(process.pid, signal.SIGINT)
    ended = finish(process)
    assert ended.stderr == ""
    assert ended.code in (-signal.SIGINT, 128 + signal.SIGINT, 75)  # 75: it had begun to train


# The line on a terminal until a command's first output

ERASED = "\r\x1b[K"


def shown_first(text: str) -> str:
    return f"{ERASED}\x1b[2m   {text}\x1b[m\r"


@pytest.mark.parametrize("start", STARTS)
def test_a_terminal_hears_that_torch_is_loaded(tmp_path: Path, start) -> None:
    """Before it is, and nothing is left of it."""
    terminal = Terminal()
    size = {"--output.dir": "run"} if start != "verify" else {}
    words = [*STARTS[start], *flags(SMALL), *(word for pair in size.items() for word in pair)]
    process = terminal.start(words, cwd=tmp_path)
    began = terminal.read(until="loading torch ...")
    assert not imports(process.pid, library="libtorch_cpu")
    shown = began + terminal.read()
    assert process.wait() == 0, shown
    shown = re.sub(r"\r\x1b\[K\x1b\[2m   checking [^\r]*\r", "", shown)  # verify's claims, in turn
    lines = shown_first("loading torch ...") + shown_first("working ...") + ERASED
    assert shown.startswith(lines)
    assert ERASED not in shown.removeprefix(lines)
    assert "..." not in shown.removeprefix(lines)


def test_ctrl_c_while_a_terminal_shows_that_torch_is_loaded(tmp_path: Path) -> None:
    terminal = Terminal()
    process = terminal.start([*STARTS["python -m"], *flags(LONG)], cwd=tmp_path)
    terminal.read(until="loading torch ...")
    terminal.press("\x03")
    assert process.wait(timeout=HANGS_S) == -signal.SIGINT
    assert terminal.read().strip() in ("^C", "\x1b[m\r^C")  # nothing but its echo


@pytest.mark.parametrize(
    "words",
    [
        ["sinlstm-dist", "train", "--help"], ["sinlstm-dist", "--version"],
        ["sinlstm-dist", "train", "--train.epohcs", "3"], ["sinlstm-dist", "compare", "x"],
        ["python", "-m", "sinlstm_dist", "plot", "--help"],
        ["python", "-m", "sinlstm_dist.compare", "x"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_loads_no_torch_does_not_say_so(tmp_path: Path, words) -> None:
    terminal = Terminal()
    program = str(Path(sys.executable).parent / words[0])
    process = terminal.start([program, *words[1:]], cwd=tmp_path)
    shown = terminal.read()
    process.wait()
    assert "loading" not in shown
    assert ERASED not in shown


def test_a_log_does_not_get_it(tmp_path: Path) -> None:
    """`train > log` on a terminal: it is on the screen, and only there."""
    terminal = Terminal()
    words = [*STARTS["python -m"], *flags({**SMALL, "output.dir": "run"})]
    process = terminal.start(["sh", "-c", '"$@" > log', "sh", *words], cwd=tmp_path)
    shown = terminal.read()
    assert process.wait() == 0
    lines = shown_first("loading torch ...") + shown_first("working ...") + ERASED
    assert shown == lines
    log = (tmp_path / "log").read_text()
    assert log.startswith("processes ")
    assert "loading" not in log
    assert "\x1b" not in log


@pytest.fixture
def on_terminal(monkeypatch) -> None:
    """As if standard error, which pytest keeps, were a terminal."""
    monkeypatch.setenv("TERM", "xterm")
    for name in status.RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(status.os, "isatty", lambda descriptor: True)
    monkeypatch.setattr(status, "_says", False)


@pytest.mark.usefixtures("on_terminal")
@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, True), ({"RANK": "0"}, True), ({"RANK": ""}, True), ({"RANK": "x"}, True),
        ({"RANK": "1"}, False), ({"RANK": "10"}, False), ({"SLURM_PROCID": "3"}, False),
        ({"TERM": "dumb"}, False), ({"TERM": ""}, False), ({"NO_COLOR": "1"}, True),
    ],
)  # fmt: skip
def test_one_process_says_what_it_does(monkeypatch, capfd, variables, says) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    status.say("works")
    assert status.is_saying() == says
    status.erase()
    status.erase()
    assert capfd.readouterr() == ("", f"{shown_first('works')}{ERASED}" if says else "")


@pytest.mark.usefixtures("on_terminal")
def test_a_process_in_the_background_leaves_the_prompt_alone(monkeypatch, capfd) -> None:
    monkeypatch.setattr(status.os, "tcgetpgrp", lambda descriptor: os.getpgrp() + 1)
    status.say("works")
    status.erase()
    assert capfd.readouterr() == ("", "")


def test_a_terminal_that_is_held_is_not_waited_for(tmp_path: Path) -> None:
    terminal = Terminal()
    terminal.press("\x13")  # Ctrl-S
    code = "from sinlstm_dist.status import *; say('a'); erase(); print(is_saying())"
    process = terminal.start(
        ["sh", "-c", '"$@" > out', "sh", sys.executable, "-c", code], cwd=tmp_path
    )
    assert process.wait(timeout=HANGS_S) == 0
    assert (tmp_path / "out").read_text() == "False\n"
    terminal.close()


# Native Windows

NO_FCNTL = """
import importlib, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "fcntl": raise ModuleNotFoundError("No module named 'fcntl'")
sys.meta_path.insert(0, Finder())
sys.modules.pop("fcntl", None)
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2"): delattr(signal, name)
from sinlstm_dist.data.sine import SineDataset
from sinlstm_dist.model import Predictor
import sinlstm_dist.evaluate, sinlstm_dist.forecast, sinlstm_dist.export, sinlstm_dist.compare
sys.platform = "win32"
import sinlstm_dist.train
"""


@pytest.mark.parametrize(
    "argv",
    ["['sinlstm-dist.exe', 'train']", "['-m']; sys.orig_argv = ['', '-m', 'sinlstm_dist.train']"],
)
def test_windows_is_told_in_one_line(tmp_path: Path, argv) -> None:
    code = f"import sys; sys.platform = 'win32'; sys.argv = {argv}; import sinlstm_dist"
    ended = run([sys.executable, "-c", code], cwd=tmp_path)
    assert (ended.code, ended.stdout) == (1, "")
    assert ended.stderr == f"error: {early.NO_WINDOWS}\n"
    assert "use WSL" in ended.stderr


def test_windows_can_import_all_but_the_training(tmp_path: Path) -> None:
    ended = run([sys.executable, "-c", NO_FCNTL], cwd=tmp_path)
    assert ended.stderr.splitlines()[-1] == f"ImportError: {early.NO_WINDOWS}"


# Short commands, and what is imported


def test_ctrl_c_in_a_short_command(tmp_path: Path) -> None:
    """One that waits: for a pipe that nobody reads."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(write, True)
    words = [sys.executable, "-m", "sinlstm_dist.train", "--help"]
    process = spawn(words, cwd=tmp_path, stdout=write)
    wait_for(lambda: "pipe" in Path(f"/proc/{process.pid}/wchan").read_text())
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (130, "")
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("start", [["-c", LIBRARY], ["-m", "another.job"]])
def test_importing_the_package_changes_no_handler(tmp_path: Path, start) -> None:
    (tmp_path / "another").mkdir()
    (tmp_path / "another" / "__init__.py").write_text(LIBRARY)
    (tmp_path / "another" / "job.py").touch()
    words = [sys.executable, *start]
    assert "default_int_handler" in run(words, cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("module", "expected"),
    [("sinlstm_dist", True), ("sinlstm_dist.train", True), ("sinlstm_dist_2.train", False)],
)
def test_the_package_knows_that_it_was_started_with_m(monkeypatch, module, expected) -> None:
    monkeypatch.setattr(sys, "argv", ["-m"])
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-m", module])
    assert early.is_program() is expected


def test_an_interrupt_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """As for what a script starts in the background: the run hears it, its imports do not."""
    line = "trap '' INT; exec \"$@\""
    words = ["sh", "-c", line, "sh", *STARTS["python -m"], *flags({**SMALL, "output.dir": "run"})]
    process = spawn(words, cwd=tmp_path)
    wait_for(lambda: imports(process.pid, library="libtorch_cpu"))
    os.kill(process.pid, signal.SIGINT)
    assert finish(process).code == 0


def test_an_unforeseen_error_is_told_as_text(tmp_path: Path) -> None:
    """A traceback may quote what comes from outside."""
    code = (
        "from sinlstm_dist.command import as_program\n"
        "def main(): raise ValueError('\\x1b[2J')\n"
        "raise SystemExit(as_program(main))"
    )
    ended = run([sys.executable, "-c", code], cwd=tmp_path)
    assert ended.code == 1
    assert ended.stderr.endswith("ValueError: \\x1b[2J\n")
    assert ended.stderr.startswith("Traceback")


def test_text_of_others_that_is_lost_at_the_end_is_an_error_too() -> None:
    """What a library has printed, and Python would only write at exit: there it says 120."""
    code = (
        "import sys; from sinlstm_dist.command import as_program\n"
        "print(1); sys.exit(as_program(lambda: 0))"
    )
    words = ["env", "-u", "PYTHONUNBUFFERED", sys.executable, "-c", code]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(words, stdout=full, stderr=subprocess.PIPE)
    assert ended.returncode == 1
    assert ended.stderr.decode().startswith("error: standard output: No space left on device")


# Launchers that are killed

LAUNCHERS = {
    "torchrun": ["torchrun", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"],
    "accelerate": ["accelerate", "launch", "--multi_gpu", "--num_processes", "2"],
    "mpirun": ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2"],
}


def descendants(pid: int) -> list[int]:
    return [p for child in children(pid) for p in (child, *descendants(child))]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_launcher_is_killed(tmp_path: Path, launcher) -> None:
    """With SIGKILL, so that it tells its processes nothing: they see it, save and stop."""
    program, *arguments = LAUNCHERS[launcher]
    found = shutil.which(program, path=environment()["PATH"])
    if not found and not os.environ.get("CI"):
        pytest.skip(f"needs {program}: see .ci/run")
    port = str(free_port())
    if launcher == "mpirun":
        module = ["-x", "MASTER_ADDR", "-x", "MASTER_PORT", sys.executable, "-m"]
    else:
        module = [
            "--main_process_port" if launcher == "accelerate" else "--master-port",
            port,
            "-m",
        ]
    words = [found, *arguments, *module, "sinlstm_dist.train", *flags(LONG)]
    process = spawn(words, cwd=tmp_path, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    wait_for(lambda: has_begun(tmp_path / "run"))
    workers = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    try:
        wait_for(lambda: not any(map(is_alive, workers)))
    finally:
        for worker in filter(is_alive, workers):
            os.kill(worker, signal.SIGKILL)
    process.communicate()
    assert summary(tmp_path / "run")["outcome"] == "stopped"
    assert str(summary(tmp_path / "run")["reason"]).startswith("the launcher ended")


def test_the_launcher_is_killed_while_its_worker_imports(tmp_path: Path) -> None:
    words = ["torchrun", "--nproc-per-node", "1", "--local-addr", "127.0.0.1"]
    process = spawn([*words, "-m", "sinlstm_dist.train", *flags(LONG)], cwd=tmp_path)
    wait_for(lambda: any(map(runs_train, children(process.pid))))
    worker = next(filter(runs_train, children(process.pid)))
    wait_for(lambda: imports(worker, library="_multiarray_umath"))  # numpy's, long before torch's
    os.kill(process.pid, signal.SIGKILL)
    try:
        wait_for(lambda: not is_alive(worker))
    finally:
        if is_alive(worker):
            os.kill(worker, signal.SIGKILL)
    process.communicate()
    assert summary(tmp_path / "run")["outcome"] == "stopped"


@pytest.mark.parametrize("how", ["nohup", "setsid", ""])
def test_a_shell_that_ends_is_no_launcher(tmp_path: Path, how) -> None:
    """What it started in the background goes on, also with a launcher's variables by hand."""
    words = command(*flags({**LONG, "train.epochs": 1000}))
    line = f'{how} "$@" > out 2>&1 & echo $!; while [ ! -s run/metrics.jsonl ]; do sleep 0.1; done'
    shell = run(["sh", "-c", line, "sh", *words], cwd=tmp_path, RANK="0", WORLD_SIZE="1")
    assert shell.code == 0
    wait_for(lambda: (tmp_path / "run" / "summary.json").exists())
    assert summary(tmp_path / "run")["outcome"] == "completed"
