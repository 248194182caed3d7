"""A run on a terminal that closes, or that takes no text, ends as if nobody had looked at it."""

import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launching import (
    HANGS_S,
    SETTINGS,
    SMALL,
    check_same,
    command,
    environment,
    flags,
    state_of,
    summary,
    wait_for,
    weights_digest,
)
from nursery import Launch, Nursery
from terminals import Terminal, on_terminal

STOPPED = 75
SIZE = {
    "data.train_size": 1000,
    "data.test_size": 100,
    "checkpoint.every_epochs": 0,
    "output.dir": "run",
}


def closed_at(nursery: Nursery, cwd: Path, when: str, at: int) -> Launch:
    """A run whose terminal closes when it is about to do `when` for the `at`-th time."""
    terminal = Terminal()
    faults = [{"rank": 0, "of": when, "at": at, "do": "hang"}]
    launch = nursery.start(flags(SETTINGS), cwd=cwd, faults=faults, terminal=terminal.path)
    wait_for(lambda: len(launch.events()) >= at and state_of(launch.children[0].pid) == "T")
    terminal.close()  # the system sends SIGHUP, and SIGCONT to what is stopped
    return nursery.wait(launch)


@pytest.mark.parametrize(
    ("when", "at", "step"),
    [
        ("join", 1, 1),
        ("build", 1, 1),
        ("begin", 1, 1),
        ("step", 2, 3),
        ("evaluate", 1, 4),
        ("record", 1, 4),
        ("save", 1, 4),
    ],
)
def test_a_terminal_that_closes(nursery: Nursery, tmp_path: Path, straight, when, at, step) -> None:
    """In start-up, training, test, between two epochs and while saving: SIGHUP asks to stop."""
    launch = closed_at(nursery, tmp_path, when, at)
    assert launch.codes == [STOPPED]
    assert summary(tmp_path / "run")["outcome"] == "stopped"
    assert summary(tmp_path / "run")["reason"].startswith("SIGHUP")
    assert summary(tmp_path / "run")["step"] == step
    assert nursery.run(flags(SETTINGS), cwd=tmp_path).codes == [0]
    check_same(tmp_path / "run", straight)


@pytest.mark.parametrize(("when", "at"), [("evaluate", 3), ("save", 3), ("end", 1)])
def test_a_terminal_that_closes_when_all_is_trained(
    nursery: Nursery, tmp_path: Path, straight: Path, when, at
) -> None:
    launch = closed_at(nursery, tmp_path, when, at)
    assert launch.codes == [0]
    assert summary(tmp_path / "run")["outcome"] == "completed"
    assert weights_digest(tmp_path / "run") == weights_digest(straight)


@pytest.mark.parametrize(
    ("ignores_hangup", "code", "outcome"), [(False, STOPPED, "stopped"), (True, 0, "completed")]
)
def test_closing_the_window_of_a_command(tmp_path: Path, ignores_hangup, code, outcome) -> None:
    """With SIGHUP ignored, as by nohup, the run goes on to its end."""
    epochs = 600 if ignores_hangup else 100_000
    terminal = Terminal()
    process = terminal.start(
        command(*flags({**SIZE, "train.epochs": epochs})),
        cwd=tmp_path,
        ignores_hangup=ignores_hangup,
    )
    terminal.read(until="test loss")  # it trains
    terminal.close()
    assert process.wait() == code
    assert summary(tmp_path / "run")["outcome"] == outcome
    assert (tmp_path / "run" / "model.safetensors").exists() == ignores_hangup


def test_a_terminal_that_is_held(nursery: Nursery, tmp_path: Path) -> None:
    """Ctrl-S: the process that shows the run goes on, and the other one does not give it up."""
    terminal = Terminal()
    arguments = flags({**SIZE, "train.epochs": 500, "train.timeout_s": 2})
    launch = nursery.start(arguments, cwd=tmp_path, processes=2, terminal=terminal.path)
    terminal.read(until="test loss")
    terminal.press("\x13")
    wait_for(lambda: (tmp_path / "run" / "summary.json").exists())
    assert summary(tmp_path / "run")["outcome"] == "completed"
    terminal.press("\x11")
    shown = terminal.read()
    assert nursery.wait(launch).codes == [0, 0], shown
    assert "completed: 500 epochs" in shown
    assert "error" not in shown


def test_a_held_terminal_is_left_in_the_end(nursery: Nursery, tmp_path: Path) -> None:
    terminal, arguments = Terminal(), flags({**SIZE, "train.epochs": 600})
    launch = nursery.start(arguments, cwd=tmp_path, terminal=terminal.path, is_whole=True)
    terminal.read(until="test loss")
    terminal.press("\x13")
    assert nursery.wait(launch).codes == [0]
    assert summary(tmp_path / "run")["outcome"] == "completed"
    terminal.close()


def test_a_pipe_that_nobody_reads(nursery: Nursery, tmp_path: Path) -> None:
    """It is full from the start, so that nothing fits in."""
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe, b"x" * 65536)
    arguments = flags({**SIZE, "train.epochs": 20, "train.timeout_s": 3})
    full = {"stdout": str(tmp_path / "pipe"), "is_whole": True}
    ended = nursery.run(arguments, cwd=tmp_path, processes=2, **full)
    os.close(pipe)
    assert (ended.codes, ended.stderr) == ([0, 0], "")
    assert summary(tmp_path / "run")["outcome"] == "completed"


# What is live


def shown_by(socket: str) -> list[str]:
    """The lines of the window of the tmux that listens there."""
    words = ["tmux", "-S", socket, "capture-pane", "-p", "-S", "-50"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("columns", [62, 80, 120])
def test_after_ctrl_c_the_terminal_shows_each_thing_once(tmux, tmp_path: Path, columns) -> None:
    """Nothing torn of what was live, and the epoch in it is the one of the table."""
    socket = str(tmp_path / "tmux")
    run = tmp_path / "run"
    words = command(*flags({**SIZE, "train.epochs": 100_000, "checkpoint.every_epochs": 0}))
    size = ["-x", str(columns), "-y", "50"]
    subprocess.run(
        ["tmux", "-S", socket, "new-session", "-d", *size, "sh"],
        cwd=tmp_path, env=environment(TERM="xterm"), check=True,
    )  # fmt: skip
    try:
        keys = ["tmux", "-S", socket, "send-keys"]
        subprocess.run([*keys, " ".join(words), "Enter"], check=True)
        wait_for(lambda: any("test loss" in line for line in shown_by(socket)))
        subprocess.run([*keys, "C-c"], check=True)
        wait_for(lambda: any("results in run" in line for line in shown_by(socket)))
        shown = shown_by(socket)
    finally:
        subprocess.run(["tmux", "-S", socket, "kill-server"], check=True)
    live = re.findall(r"^epoch +(\d+)/100000", "\n".join(shown), re.MULTILINE)
    assert live == [str(summary(run)["epochs"])], shown
    assert sum("one cycle: target, prediction" in line for line in shown) == 1
    drawn = [line for line in shown if any("\u2800" <= c <= "\u28ff" for c in line)]
    assert len(drawn) == 7, "\n".join(shown)
    assert not [line for line in shown if "^C" in line]


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"PYTHONIOENCODING": "ascii"},
    {"COLUMNS": "0", "LINES": "0"}, {"COLUMNS": "\u00b2", "LINES": "x"}, {"COLUMNS": "1"},
    {"COLUMNS": "99999999999999"}, {"COLUMNS": "-7", "LINES": "-7"}, {"LINES": "1"},
    {"NO_COLOR": "1"}, {"TTY_INTERACTIVE": "0"}, {}])  # fmt: skip
def test_odd_terminals(nursery: Nursery, tmp_path: Path, variables) -> None:
    """What the environment says of them; nothing, and then the terminal itself has no size."""
    terminal = Terminal() if variables else Terminal(columns=0, lines=0)
    arguments = flags({**SMALL, "output.dir": "run"})
    shown = on_terminal(nursery, arguments, cwd=tmp_path, terminal=terminal, **variables)
    assert "Traceback" not in shown
    assert "results in run" in shown.replace("\r\n", "")[-200:]
    if variables.get("TERM") == "dumb":
        assert "\x1b" not in shown
    if "PYTHONIOENCODING" in variables:
        assert shown.isascii()
        assert "epoch 3/3" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


def window_of(socket: str) -> str:
    """All that the window shows and has shown."""
    return "\n".join(shown_by(socket)).rstrip()


def is_drawn_for(columns: int, lines: int, shown: str) -> bool:
    """Whether all is there once: the panel, the live line for this width, and a picture or not."""
    has_room = columns >= 62 and lines >= 20
    expected = {
        "^╭─ sinlstm-dist": 1, "╯$": 1, "^epoch": 1, "^one cycle": has_room,
        "^.*[\u2800-\u28ff]": 7 * has_room, rf"^epoch .{{{columns - 28},{columns - 8}}}\Z": 1,
    }  # fmt: skip
    return all(len(re.findall(p, shown, re.MULTILINE)) == n for p, n in expected.items())


@pytest.mark.parametrize("sizes", [["80x24", "120x40", "62x30"], ["60x15", "120x12", "80x24"]])
def test_a_window_that_changes_its_size(tmux, tmp_path: Path, sizes) -> None:
    """What is live is drawn again for it, once; a picture if there is room, and no torn lines."""
    socket = str(tmp_path / "tmux")
    words = command(*flags({**SIZE, "train.epochs": 100_000, "checkpoint.every_epochs": 0}))
    subprocess.run(
        ["tmux", "-S", socket, "new-session", "-d", "-x", "100", "-y", "30", *words],
        cwd=tmp_path, env=environment(TERM="xterm"), check=True,
    )  # fmt: skip
    try:
        wait_for(lambda: "test loss" in window_of(socket))
        for size in sizes:
            columns, lines = size.split("x")
            resize = ["tmux", "-S", socket, "resize-window", "-x", columns, "-y", lines]
            subprocess.run(resize, check=True)
            fits = functools.partial(is_drawn_for, int(columns), int(lines))
            try:
                wait_for(lambda: fits(window_of(socket)))  # noqa: B023
            except AssertionError:
                pytest.fail(window_of(socket))
    finally:
        subprocess.run(["tmux", "-S", socket, "kill-server"], check=True)


def test_a_second_ctrl_c_gives_the_cursor_back(tmp_path: Path) -> None:
    """Also from a process that waits for ever, here in its test: one that is stopped by nothing."""
    terminal = Terminal()
    words = [sys.executable, "-c", HANGS, *flags({**SMALL, "output.dir": "run"})]
    process = terminal.start(words, cwd=tmp_path)
    terminal.read(until="\x1b[?25l")
    terminal.read(until="hangs")
    for _ in range(4):
        terminal.read(until="left 00:0")  # a frame: what is live is drawn all the same
    terminal.press("\x03")
    terminal.read(until="unsaved")
    for _ in range(3):
        terminal.press("\x03")
        try:
            process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            continue
        break
    assert process.wait() == 128 + signal.SIGINT
    assert terminal.read().endswith("\x1b[?25h")


HANGS = """
import sys, time
from sinlstm_dist import train
def totals_over(*_, **__):
    print("hangs")
    time.sleep(600)
train.totals_over = totals_over
sys.exit(train.main(sys.argv[1:]))
"""


def test_an_error_in_the_first_picture_leaves_the_cursor_shown(tmp_path: Path) -> None:
    terminal = Terminal()
    program = (
        "from sinlstm_dist.screen.report import Report\n"
        "report = Report(enabled=True, epochs=3)\n"
        "try:\n"
        "    report.begin_training(finished_epochs=0, num_steps=1, preview=lambda: 1 / 0)\n"
        "except ZeroDivisionError:\n"
        "    report.close()\n"
    )
    process = terminal.start([sys.executable, "-c", program], cwd=tmp_path)
    shown = terminal.read()
    assert process.wait(timeout=HANGS_S) == 0, shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l") >= 0


def test_in_the_background_of_a_shell_nothing_is_drawn(tmp_path):
    """After Ctrl-Z and `bg` the terminal is the shell's; after `fg` it is the run's again."""
    with contextlib.closing(Terminal(columns=80)) as terminal:  # in a failure too
        shell = terminal.start(["bash", "--norc", "--noediting", "-i"], cwd=tmp_path)
        arguments = " ".join(flags({**SMALL, "train.epochs": 100_000, "output.dir": "run"}))
        terminal.press(f"{sys.executable} -m sinlstm_dist.train {arguments}\n")
        terminal.read(until="test loss")
        terminal.press("\x1a")
        terminal.read(until="Stopped")
        terminal.press("bg; sleep 2; echo do''ne\n")
        assert "test loss" not in terminal.read(until="done")
        terminal.press("fg\n")
        written = terminal.read(until="test loss")
        assert (
            "\x1b[1A" not in written.partition("sinlstm_dist.train")[2]
        )  # nothing above is erased
        terminal.press("\x03")
        terminal.read(until="run/checkpoints")
        terminal.press("exit\n")
        assert shell.wait(timeout=HANGS_S) == 75
