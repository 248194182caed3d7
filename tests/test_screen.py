"""Text on the screen: shown as text whoever wrote it, in any encoding, on any kind of stream."""

import contextlib
import io
import os
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import wait_for

from sinlstm_dist.config import load_config, to_toml
from sinlstm_dist.metrics import Totals
from sinlstm_dist.run.record import Summary
from sinlstm_dist.screen.console import (
    Screen,
    report_lost_output,
    show_error,
    show_facts,
    show_table,
    show_text,
    show_toml,
    stream,
    visible,
)
from sinlstm_dist.screen.report import Report
from sinlstm_dist.screen.stream import Stream

EVIL = "\x1b[31m\x07\x9b2J\u202e\x7f\r[bold]:smile:\udc80"
ENCODINGS = ["utf-8", "ascii", "latin-1", "cp1252"]


def written_by(*calls, encoding: str = "utf-8") -> str:
    """What is written to a file of this encoding; strict, as PYTHONIOENCODING=ascii is."""
    kept = io.BytesIO()
    file = io.TextIOWrapper(kept, encoding=encoding, newline="")
    with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        for call in calls:
            call()
    return kept.getvalue().decode(encoding)


def report_of(text: str) -> None:
    """Everything that a run's report takes from outside."""
    figures = dict.fromkeys(
        ("train_loss", "test_loss", "train_accuracy", "test_accuracy", "samples_per_s"), 0.5
    ) | {"epoch": 1, "step": 1, "train_samples": 10, "test_samples": 10}
    summary = Summary(
        outcome=text, reason=text, epochs=1, step=1, metrics=figures, best=figures, world_size=1,
        device="cpu", reduction="ordered", wall_s=1.0, versions={},
    )  # fmt: skip
    report = Report(enabled=True, epochs=2)
    report.start({"run folder": text})
    report.note(text)
    report.begin_training(finished_epochs=0, num_steps=10)
    report.epoch(figures)
    report.end_training()
    report.end(
        summary,
        baselines={text: Totals(5.0, 83, 100)},
        folder=text,
        advice="more",
        history=[figures] * 2,
    )
    report.close()


def all_that_prints(text: str) -> list:
    """Every way in which text from outside gets to the screen."""
    return [
        lambda: show_error(text),
        lambda: show_text(text),
        lambda: show_toml(text),
        lambda: show_facts({"name": text, text: ""}),
        lambda: show_table([{"a": text, text: text}], colours={text: "red"}),
        lambda: show_table([{"a": text}], wrap=True),
        lambda: report_of(text),
    ]


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.characters(exclude_categories=[])), encoding=st.sampled_from(ENCODINGS))
def test_a_file_gets_no_control_characters(text, encoding):
    """Of all of Unicode, lone surrogates included."""
    calls = all_that_prints(text)
    if not text.isprintable():
        calls.pop(2)  # TOML is UTF-8 always, and has no lone surrogates: below
    written = written_by(*calls, encoding=encoding)
    kinds = {unicodedata.category(character) for character in written.replace("\n", "")}
    assert not kinds & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@pytest.mark.parametrize("call", range(len(all_that_prints(""))))
def test_what_the_rule_finds(call):
    """Negative control: each way does write the text, with what it has of an escape shown."""
    if call == 2:  # TOML
        shown = "\\U0000001B[31m"
        assert shown in written_by(all_that_prints("\x1b[31m")[call])
        return
    written = written_by(all_that_prints(EVIL)[call]).replace("\n", "")
    assert "\\x1b[31m\\x07\\x9b2J\\u202e\\x7f\\r[bold]:smile:\\udc80" in written


def test_what_prints_is_shown_as_it_is():
    text = "loss \u2588\u2585 30\u00b0 \u540d\u524d \U0001f600 [link]\n"
    assert visible(text) == text
    assert written_by(lambda: show_text(text)) == text
    assert visible("a\tb\u00a0") == "a\\tb\\xa0"


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_toml_stays_readable(text):
    """Whatever the encoding: UTF-8 is what TOML is."""
    config = load_config(None, {"output.dir": "x" + text.replace("\0", "")})
    written = written_by(lambda: show_toml(to_toml(config)))
    assert tomli.loads(written) == config.model_dump()


def test_tables_keep_their_columns_in_ascii():
    rows = [{"target at": f"{i}\u00b0", "value": str(i)} for i in (5, 50)]
    _, _, *lines = written_by(lambda: show_table(rows), encoding="ascii").splitlines()
    assert [line.split() for line in lines] == [["5\\xb0", "|", "5"], ["50\\xb0", "|", "50"]]
    assert lines[0].index("|") == lines[1].index("|")


def test_redirected_and_missing_streams(monkeypatch, capsys):
    kept = io.StringIO()
    with contextlib.redirect_stdout(kept):
        show_text("there\n")
    show_text("here\n")
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    for call in all_that_prints("nowhere\n"):
        call()
    assert not report_lost_output()
    assert kept.getvalue() == "there\n"
    assert capsys.readouterr() == ("here\n", "")


def test_a_closed_stream_is_no_error(monkeypatch):
    file = io.StringIO()
    file.close()
    monkeypatch.setattr(sys, "stdout", file)
    show_text("nowhere\n")
    assert not report_lost_output()


# A stream with a descriptor


@contextlib.contextmanager
def piped() -> Iterator[int]:
    """A pipe in place of standard output; gives its reading end."""
    read, write = os.pipe()
    with os.fdopen(write, "w") as file, contextlib.redirect_stdout(file):
        yield read
    os.close(read)


def test_text_keeps_its_order_with_what_others_print():
    with piped() as pipe:
        for i in range(100):
            print(f"other {i}")
            show_text(f"own {i}\n")
        expected = "".join(f"other {i}\nown {i}\n" for i in range(100))
        assert os.read(pipe, 10_000).decode() == expected


def fill(pipe_end) -> None:
    os.set_blocking(pipe_end, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe_end, b"x" * 4096)
    os.set_blocking(pipe_end, True)


def test_one_that_takes_nothing_is_not_waited_for():
    with piped() as pipe:
        output = Stream("stdout", waits=False)
        fill(sys.stdout.fileno())
        assert not output.is_busy
        output.write("kept\n")
        assert output.is_busy
        for _ in range(stream.MOST_BYTES // 1000):
            output.write("y" * 1000)
        output.write("too much\n" * 1000)
        began = time.monotonic()
        output.wait(0.1)
        assert time.monotonic() - began >= 0.1
        read = b""
        os.set_blocking(pipe, False)  # it may still be busy when it has written all
        while output.is_busy:
            with contextlib.suppress(BlockingIOError):
                read += os.read(pipe, 100_000)
        output.write("again\n")
        output.wait()
        read += os.read(pipe, 100_000)
        text = read.lstrip(b"x")
        assert text.startswith(b"kept\nyyy")
        assert text.endswith(b"y\nagain\n") or text.endswith(b"yagain\n")
        assert b"too much" not in text
        wait_for(lambda: threading.active_count() == 1)  # nothing is left of it


def test_a_child_of_a_fork_writes_too():
    with piped() as pipe:
        output = Stream("stdout", waits=False)
        output.write("parent\n")
        output.wait()
        child = os.fork()
        if child == 0:
            output.write("child\n")
            output.wait()
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(pipe, 1000) == b"parent\nchild\n"


def test_one_that_others_made_not_wait_is_written_whole():
    """O_NONBLOCK belongs to all that share a stream: it may be set from outside."""
    with piped() as pipe:
        fill(sys.stdout.fileno())
        os.set_blocking(sys.stdout.fileno(), False)
        read = []
        thread = threading.Thread(
            target=lambda: read.extend(iter(lambda: os.read(pipe, 4096), b""))
        )
        thread.start()
        show_text("z" * 300_000)
        sys.stdout.close()
        thread.join(30)
        assert b"".join(read).endswith(b"z" * 300_000)
        assert not report_lost_output()


def test_all_is_on_the_screen_when_a_command_ends():
    """Also where the run's report was written by a thread."""
    with piped() as pipe:
        screen = Screen(Stream("stdout"))
        screen.print("first")
        report = Report(enabled=True, epochs=1)
        report.note("second")
        report.close()
        show_text("third\n")
        assert os.read(pipe, 1000) == b"first\nsecond\nthird\n"
