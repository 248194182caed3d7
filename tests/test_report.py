"""What a person sees: plain lines in a file, a panel, a live line and a table on a terminal."""

import io
import itertools
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import launching
import numpy as np
import pytest
from rich.cells import cell_len
from terminals import Terminal, on_terminal

from sinlstm_dist.metrics import Totals
from sinlstm_dist.run.record import Summary
from sinlstm_dist.screen import columns, live
from sinlstm_dist.screen.columns import WIDTHS
from sinlstm_dist.screen.console import Screen, show_error
from sinlstm_dist.screen.report import Report
from sinlstm_dist.screen.stream import Stream

BASELINES = {"last value again": Totals(5.0, 83, 100)}
FACTS = {"processes": "2 on here", "run folder": "runs/x"}
ESCAPE = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07\x1b]*(\x07|\x1b\\))")


def record(epoch: int, **changed: float) -> dict[str, float]:
    return {
        "epoch": epoch, "step": 10 * epoch, "train_loss": 0.5 / epoch, "train_accuracy": 0.25,
        "test_loss": 1e-7 * epoch, "test_accuracy": 1.0, "train_samples": 1000,
        "test_samples": 100, "epoch_s": 0.1, "samples_per_s": 1e5, **changed,
    }  # fmt: skip


def summary(**changed: object) -> Summary:
    values = {
        "outcome": "completed", "reason": "3 epochs", "epochs": 3, "step": 30,
        "metrics": record(3), "best": record(2), "world_size": 1, "device": "cpu",
        "reduction": "ordered", "wall_s": 1.0, "versions": {}, **changed,
    }  # fmt: skip
    return Summary(**values)


def tell(epochs: int, *, enabled: bool = True) -> None:
    """A whole run's calls."""
    account = Report(enabled=enabled, epochs=epochs)
    account.start(FACTS)
    account.note("continues after step 0")
    account.begin_training(finished_epochs=0, num_steps=10)
    for epoch in range(1, epochs + 1):
        for step in range(1, 11):
            account.step(epoch=epoch, step=step)
        account.epoch(record(epoch))
    account.end_training()
    history = [record(epoch, test_loss=0.1**epoch) for epoch in range(1, epochs + 1)]
    account.end(summary(), baselines=BASELINES, folder="runs/x", advice="more", history=history)


def table_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if re.match(r" +(\d+|epoch) +(\d+|step) ", line)]


@pytest.mark.parametrize("epochs", [1, 3, 20, 100, 1000, 12345])
def test_a_file_has_few_lines_of_fixed_columns(epochs, capsys):
    tell(epochs)
    printed, errors = capsys.readouterr()
    assert errors == ""
    assert "\x1b" not in printed
    assert "\r" not in printed
    head, *rows = table_lines(printed)
    assert len(rows) <= 40
    assert [int(row.split()[0]) for row in (rows[0], rows[-1])] == [1, epochs]
    assert head.split() == " ".join(WIDTHS).split()
    assert {len(line) for line in (head, *rows)} == {sum(WIDTHS.values())}
    ends = list(itertools.accumulate(WIDTHS.values()))
    for line in rows:  # every cell ends at its column's edge, and a blank is before it
        assert len(line.split()) == len(WIDTHS)
        assert all(line[end - 1] != " " for end in ends)
    assert len(printed.splitlines()) <= len(rows) + 15
    assert max(map(cell_len, printed.splitlines())) <= 100


def test_values_in_a_file_are_those_of_the_record(capsys):
    tell(3)
    row = table_lines(capsys.readouterr().out)[2]
    assert row.split() == ["2", "20", "2.5000e-01", "0.2500", "2.0000e-07", "1.0000", "100000"]


def test_large_numbers_keep_their_columns(capsys):
    account = Report(enabled=True, epochs=10**6)
    account.begin_training(finished_epochs=0, num_steps=10)
    account.epoch(record(999_999, step=99_999_999, samples_per_s=1e9, train_loss=1e-300))
    account.epoch(record(10**6, step=99_999_999, samples_per_s=1e9, train_loss=1e300))
    head, *rows = capsys.readouterr().out.splitlines()
    assert {len(row) for row in rows} == {len(head)}
    assert all(len(row.split()) == len(WIDTHS) for row in rows)


def test_the_closing_table_has_the_best_epoch_and_the_baseline(capsys):
    tell(3)
    printed = capsys.readouterr().out
    lines = {
        line.split("│")[1].strip(): line for line in printed.splitlines() if line.startswith("│")
    }
    assert list(lines) == [
        "train, epoch 3", "test, epoch 3", "test, best epoch 2", "test, last value again",
    ]  # fmt: skip
    expected = {
        "train, epoch 3": ["1.6667e-01", "0.2500", "1,000"],
        "test, epoch 3": ["3.0000e-07", "1.0000", "100"],
        "test, best epoch 2": ["2.0000e-07", "1.0000", "100"],
        "test, last value again": ["5.0000e-02", "0.8300", "100"],
    }
    for name, cells in expected.items():
        assert [cell.strip() for cell in lines[name].split("│")[2:5]] == cells
    assert printed.endswith("completed: 3 epochs\nresults in runs/x\n")


def test_the_closing_summary_has_a_small_curve_of_the_loss(capsys):
    tell(3)
    printed = capsys.readouterr().out
    assert "\ntest loss (log scale) 1.0e-01 █▅▁ 1.0e-03\n" in printed
    tell(1)
    assert "log scale" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("loss", "outcome", "is_told"),
    [
        (1.0, "completed", True), (0.01, "completed", False), (1.0, "failed", False),
        (float("nan"), "completed", False),
    ],
)  # fmt: skip
def test_a_run_that_is_worse_than_its_baseline_says_so(capsys, loss, outcome, is_told):
    account = Report(enabled=True, epochs=3)
    ended = summary(outcome=outcome, metrics=record(3, test_loss=loss))
    account.end(ended, baselines=BASELINES, folder="runs/x", advice="more")
    last = capsys.readouterr().out.splitlines()[-3:]
    assert ('worse than "last value again"' in last[1]) == is_told
    assert last[2] == "results in runs/x"


def test_the_better_baseline_is_named(capsys):
    account = Report(enabled=True, epochs=3)
    baselines = {"the mean": Totals(5.0, 1, 10), "the last": Totals(4.0, 1, 10)}
    for loss, better in ((0.6, "the last"), (0.45, "the last"), (0.3, ""), (0.4, "")):
        ended = summary(metrics=record(3, test_loss=loss))
        account.end(ended, baselines=baselines, folder="runs/x", advice="more")
        printed = capsys.readouterr().out
        assert [name for name in baselines if f"│ test, {name} " in printed] == list(baselines)
        assert (f'worse than "{better}", which learns nothing: try more' in printed) == bool(better)
    account.end(summary(), baselines={}, folder="runs/x", advice="more")  # a task without any
    assert "worse" not in capsys.readouterr().out


def without_accuracy(epoch: int, **changed: float) -> dict[str, float]:
    """The record of a task that counts no correct predictions."""
    metrics = record(epoch, **changed)
    return {name: value for name, value in metrics.items() if not name.endswith("accuracy")}


def test_a_task_without_correct_predictions_has_no_accuracies(capsys):
    account = Report(enabled=True, epochs=3)
    account.begin_training(finished_epochs=0, num_steps=10)
    history = [without_accuracy(epoch, test_loss=-1.0 * epoch) for epoch in (1, 2, 3)]
    for figures in history:
        account.epoch(figures)
    account.end_training()
    ended = summary(metrics=history[-1], best=history[-1])
    baseline = {"the mean": Totals(5.0, None, 100)}
    account.end(ended, baselines=baseline, folder="runs/x", advice="more", history=history)
    printed = capsys.readouterr().out
    assert "acc" not in printed
    head, *rows = table_lines(printed)
    assert head.split() == ["epoch", "step", "train", "loss", "test", "loss", "samples/s"]
    assert rows[1].split() == ["2", "20", "2.5000e-01", "-2.0000e+00", "100000"]
    cells = [line.split("│")[1:-1] for line in printed.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in cells] == [
        ["train, epoch 3", "1.6667e-01", "1,000"],
        ["test, epoch 3", "-3.0000e+00", "100"],
        ["test, best epoch 3", "-3.0000e+00", "100"],
        ["test, the mean", "5.0000e-02", "100"],
    ]
    assert "log scale" not in printed  # of negative losses


def test_a_baseline_without_accuracy_leaves_its_cell_empty(capsys):
    account = Report(enabled=True, epochs=3)
    account.end(
        summary(), baselines={"the mean": Totals(5.0, None, 100)}, folder="runs/x", advice="more"
    )
    [row] = (line for line in capsys.readouterr().out.splitlines() if "the mean" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "test, the mean", "5.0000e-02", "", "100"
    ]  # fmt: skip


def test_the_live_line_has_an_accuracy_if_there_is_one(clock, monkeypatch):
    terminal = screen(monkeypatch, columns=120, lines=10)
    line = live.LiveProgress(
        terminal, Stream("stdout"), epochs=9, num_steps=2, finished_epochs=0, preview=None
    )
    for figures, shown in (
        (record(1, test_loss=0.5), "test loss 5.00e-01  acc 1.000"),
        (without_accuracy(2, test_loss=0.5), "test loss 5.00e-01"),
    ):
        line.epoch(figures)
        assert line._figures == shown


def test_messages_on_a_terminal_wrap_between_words(monkeypatch):
    """A folder's name stays in one piece, so that it can be copied."""
    terminal = screen(monkeypatch, columns=60, lines=40)
    folder = "runs/a-name-of-some-length/checkpoints/step-00001234"
    text = f"stopped: SIGINT; the same command continues from {folder}"
    account = Report(enabled=True, epochs=3)
    account._screen = terminal
    terminal.file = io.StringIO()
    account.note(text)
    account.start({"run folder": folder, "data": "10,000 train and 1,000 test windows of 50 steps"})
    first, second, *panel = map(str.rstrip, ESCAPE.sub("", terminal.file.getvalue()).splitlines())
    assert [first, second] == ["stopped: SIGINT; the same command continues from", folder]
    data = [line.strip("│ ") for line in panel if line.startswith("│")][-2:]
    assert data == ["data        10,000 train and 1,000 test windows of 50", "steps"]
    assert panel[-2].startswith("│             steps")  # below the fact, not below its name


def test_a_run_without_an_epoch_has_no_table(capsys):
    account = Report(enabled=True, epochs=3)
    ended = summary(outcome="failed", reason="[why] it was", epochs=0, metrics={}, best={})
    account.end(ended, baselines=BASELINES, folder="runs/[x]", advice="more")
    assert capsys.readouterr().out == "failed: [why] it was\nresults in runs/[x]\n"


def test_one_that_is_not_enabled_says_nothing(capsys):
    tell(3, enabled=False)
    assert capsys.readouterr() == ("", "")


def test_a_long_epoch_gives_a_sign_of_life(capsys, monkeypatch):
    monkeypatch.setattr(columns, "QUIET_S", 0.0)
    account = Report(enabled=True, epochs=3)
    account.begin_training(finished_epochs=0, num_steps=10)
    account.step(epoch=1, step=4)
    assert capsys.readouterr().out == "epoch 1: step 4 of 10\n"


def test_an_error_is_one_line_per_problem_as_it_is_written(capsys):
    long = "[data]: did you mean [bold]this[/bold]? " * 10
    show_error(f"one\n{long}")
    assert capsys.readouterr() == ("", f"error: one\nerror: {long}\n")


def test_an_error_on_a_terminal_is_as_it_is_written_too(nursery, tmp_path):
    (tmp_path / "bad.toml").write_text("[trian]\nepochs = 1\n")
    wide = Terminal(columns=200)
    written = on_terminal(nursery, ["--config", "bad.toml"], cwd=tmp_path, code=2, terminal=wide)
    assert "error:" in written
    assert "unknown key trian: did you mean [train]?" in written


def test_one_of_two_processes_writes(nursery, tmp_path):
    settings = {**launching.SMALL, "output.dir": "run"}
    ended = nursery.run(launching.flags(settings), cwd=tmp_path, processes=2)
    assert ended.codes == [0, 0], ended.stderr
    assert "\x1b" not in ended.stdout + ended.stderr
    assert len(table_lines(ended.stdout)) == 1 + 3
    starts = [line.split("  ")[0] for line in ended.stdout.splitlines()[:6]]
    assert starts == [
        "processes", "data", "batch", "reduction", "model", "run folder"
    ]  # fmt: skip
    for once in ("processes ", "test, last value again", "completed: 3 epochs", "results in run"):
        assert ended.stdout.count(once) == 1
    assert ended.stderr == ""


# On a terminal


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time that the report sees, to be set by the test."""
    now = [0.0]
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def screen(monkeypatch, *, columns: int, lines: int) -> Screen:
    """A terminal that keeps what is written to itself."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(lines))
    monkeypatch.setattr(Stream, "isatty", lambda stream: True)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setenv("TERM", "xterm")
    return Screen(Stream("stdout"))


def test_what_is_live_takes_a_hundredth_of_the_time_at_most(clock, monkeypatch):
    drawn = []

    def slow_preview() -> tuple[list[float], list[float]]:
        clock[0] += 0.5
        drawn.append(clock[0])
        return [0.0, 1.0], [0.5, 0.5]

    account = Report(enabled=True, epochs=10**6)
    account._screen = screen(monkeypatch, columns=80, lines=40)
    account.begin_training(finished_epochs=0, num_steps=10, preview=slow_preview)
    for epoch in range(1, 20_001):  # 200 s of epochs
        clock[0] += 0.01
        account.epoch(record(epoch))
    account.end_training()
    assert len(drawn) == 1 + 1 + 3 + 1  # before the first epoch, soon after, every 50 s, at the end
    assert min(np.diff(drawn[1:-1])) >= 50


def test_the_clock_runs_down_between_two_steps_and_says_what_it_shows(clock, monkeypatch):
    """At the mean speed since training began, which earlier starts have no part in."""
    terminal = screen(monkeypatch, columns=80, lines=40)
    line = live.LiveProgress(
        terminal, Stream("stdout"), epochs=40, num_steps=2, finished_epochs=10, preview=None
    )
    assert line._clock() == "left --:--"
    for at, what, expected in [
        (10, lambda: line.step(epoch=11, step=1), "left 09:50"),
        (13, lambda: None, "left 09:47"),
        (20, lambda: line.epoch(record(11)), "left 09:40"),
        (5000, lambda: None, "left 00:00"),
        (8000, lambda: line.step(epoch=31, step=1), "left 1:01:47"),
        (8100, lambda: line.epoch(record(40)), "took 2:15:00"),
    ]:
        clock[0] = at
        what()
        assert line._clock() == expected


@pytest.mark.parametrize("columns", [62, 80, 99, 100, 120])
def test_the_live_line_is_calm_and_fits(clock, monkeypatch, columns):
    """The bar is cyan; where little room is, figures are cut and not the clock."""
    terminal = screen(monkeypatch, columns=columns, lines=10)
    terminal.fit(free=live.ECHO_COLUMNS)
    line = live.LiveProgress(
        terminal, Stream("stdout"), epochs=1000, num_steps=2, finished_epochs=0, preview=None
    )
    clock[0] = 500.0
    line.epoch(record(500))
    segments = [segment for line in terminal.render_lines(line._line()) for segment in line]
    text = "".join(segment.text for segment in segments)
    assert len(text) == columns - live.ECHO_COLUMNS
    assert text.startswith("epoch  500/1000 ━")
    assert text.endswith("  left 08:20")
    assert ("100k samples/s" in text) == (columns >= 100)
    assert columns < 80 or len(re.findall("[━╸╺]", text)) >= 20
    colours = {str(segment.style.color.name) for segment in segments if "━" in segment.text}
    assert colours <= {"cyan", "grey23"}


@pytest.mark.parametrize("size", [{"columns": 80, "lines": 19}, {"columns": 61, "lines": 40}, None])
def test_a_small_terminal_and_a_file_have_no_picture(monkeypatch, size):
    def no_preview() -> None:
        raise AssertionError("is not to be called")

    account = Report(enabled=True, epochs=3)
    if size:
        account._screen = screen(monkeypatch, **size)
    account.begin_training(finished_epochs=0, num_steps=10, preview=no_preview)
    account.epoch(record(3))
    account.end_training()
    account.close()


@pytest.fixture(scope="module")
def in_a_file(nursery, tmp_path_factory) -> Path:
    """The run that test_on_a_terminal looks at, with its output in the file `stdout`."""
    folder = tmp_path_factory.mktemp("file")
    launch = nursery.run(launching.flags(LIVELY), cwd=folder)
    (folder / "stdout").write_text(launch.stdout)
    return folder


LIVELY = {
    **launching.SMALL, "train.epochs": 1000, "checkpoint.every_epochs": 0, "output.dir": "run"
}  # fmt: skip


@pytest.mark.parametrize("columns", [80, 120])
def test_on_a_terminal(columns, tmp_path, nursery, in_a_file):
    terminal = Terminal(columns=columns)
    written = on_terminal(nursery, launching.flags(LIVELY), cwd=tmp_path, terminal=terminal)
    assert ESCAPE.search(written)
    frames = [part for part in re.split(r"[\r\n]+", ESCAPE.sub("", written)) if part.strip()]
    assert max(map(cell_len, frames)) <= columns
    shown = "\n".join(frames)

    panel = shown[: shown.index("╰")]
    assert panel.startswith("╭─ sinlstm-dist ─")
    for fact in ("processes", "data", "batch", "reduction", "model", "run folder"):
        assert re.search(rf"^│ {fact} ", panel, flags=re.MULTILINE)

    live = [frame for frame in frames if frame.startswith("epoch")]
    assert len(live) > 2
    assert re.search(r"^epoch +0/1000 ", live[0])
    assert re.search(r"^epoch 1000/1000 ", live[-1])
    for figures in ("test loss ", "acc "):
        assert figures in live[-1], live[-1]
    assert ("k samples/s" in live[-1]) == (columns >= 100)
    assert re.search(r"\d\d:\d\d *$", live[-1])  # remaining time, and at the end the time it took
    assert "\x1b[?25h" in written  # the cursor is back

    pictures = re.split(r"^one cycle: target, prediction$", shown, flags=re.MULTILINE)[:-1]
    assert len(pictures) > 2
    lines = pictures[-1].splitlines()[-7:]
    assert all(re.fullmatch(r"[ \u2800-\u28ff]{1,60}", line) for line in lines), lines
    assert "\x1b[1;36m" in written  # the prediction
    assert "\x1b[2m" in written  # the target

    assert not re.search(r"[\u2800-\u28ff]|one cycle", (in_a_file / "stdout").read_text())
    digests = {launching.weights_digest(folder / "run") for folder in (in_a_file, tmp_path)}
    assert len(digests) == 1

    end = shown[shown.index("┏") :]
    assert "│ test, best epoch " in end
    assert "│ test, last value again │" in end
    assert end.count("completed: 1,000 epochs") == 1
    assert end.endswith(f"results in run\nweights {digests.pop()}")
