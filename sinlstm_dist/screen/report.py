"""What a person sees: rich on a terminal, plain lines of fixed columns in a file.

A `Report` that is not enabled does nothing, so callers need not ask which process they are; one
that is enabled never blocks on its stream: others would wait for this process.
"""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from sinlstm_dist.metrics import Totals
from sinlstm_dist.run.record import Summary
from sinlstm_dist.screen import sketch
from sinlstm_dist.screen.console import Screen, fact_lines
from sinlstm_dist.screen.stream import Stream

REFRESH_S = 0.1  # between updates of what is live, at least
PATIENCE = 100  # the next update waits so many times as long as the last took: 1 % at most
SKETCH_COLUMNS, SKETCH_LINES = 60, 7  # of the cycle drawn in characters
SKETCH_NEEDS_LINES = 20  # of a terminal: in a lower one it would push all else out of sight
FRONT, BEHIND = "bold cyan", "dim"  # predictions and targets in it
SPARK_COLUMNS = 40
ECHO_COLUMNS = 2  # free at the end of what is live: a terminal shows ^C there, and must not wrap
FILE_LINES = 20  # epoch lines in a file, about, however many epochs there are
QUIET_S = 30.0  # a file never waits longer for a sign of life
CURSOR_S = 1.0  # that a process which leaves at once waits for its terminal
FILE_WIDTH = 100  # columns where there is no terminal to ask


Preview = Callable[[], tuple[Sequence[float], Sequence[float]]]


class Report:
    """One run's account on the screen.

    Args:
        enabled: whether this process prints.
        epochs: epochs of the run.
        num_steps: optimizer steps in an epoch.
    """

    def __init__(self, *, enabled: bool, epochs: int, num_steps: int) -> None:
        self._enabled, self._epochs, self._num_steps = enabled, epochs, num_steps
        self._stream = Stream("stdout", waits=False)
        self._screen = Screen(self._stream, width=None if self._stream.isatty() else FILE_WIDTH)
        self._live: Live | None = None
        self._progress: Progress | None = None
        self._preview: Preview | None = None
        self._figures = ""  # of the newest finished epoch
        self._completed = 0.0  # epochs
        self._last_shown = time.monotonic()
        self._wait_s = REFRESH_S  # until what is live is shown anew
        self._every_epochs = max(1, epochs // FILE_LINES)

    def start(self, facts: Mapping[str, str]) -> None:
        """Say what is about to run, one line per fact."""
        if not self._enabled:
            return
        lines = fact_lines(facts)
        if self._screen.is_interactive:
            panel = Panel(lines, title="sinlstm-dist", title_align="left", border_style="cyan")
            self._screen.print(panel)
        else:
            self._screen.print(lines, soft_wrap=True)

    def stopping(self, signal_name: str) -> None:
        """Say at once that a signal was heard: the step that it waits for may be a long one."""
        again = "; another Ctrl-C leaves at once, unsaved" if signal_name == "SIGINT" else ""
        self.note(f"{signal_name}: saves and stops after this step{again}")

    def note(self, text: str) -> None:
        """Say something that the user should know, once."""
        if self._enabled:
            self._screen.print(text, soft_wrap=True)

    def begin_training(self, *, finished_epochs: int, preview: Preview | None = None) -> None:
        """Start the live line, or the head of the columns in a file.

        Args:
            finished_epochs: of earlier starts.
            preview: gives targets and predictions over one cycle; called on a terminal only.
        """
        if not self._enabled:
            return
        if not self._screen.is_interactive:
            self._screen.print(_file_line(HEAD))
            return
        self._progress = Progress(
            TextColumn("epoch"),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(
                compact=True, elapsed_when_finished=True, table_column=Column(no_wrap=True)
            ),
            console=self._screen,
            expand=True,
            auto_refresh=False,
        )
        self._progress.add_task("", total=self._epochs, completed=finished_epochs, figures="")
        screen = self._screen
        screen.fit(free=ECHO_COLUMNS)
        is_large = screen.width >= SKETCH_COLUMNS and screen.height >= SKETCH_NEEDS_LINES
        if is_large and screen.can_say(chr(sketch.EMPTY)):
            self._preview = preview
        self._live = Live(console=self._screen, auto_refresh=False)
        self._live.start()
        self._completed = finished_epochs
        self._draw("")
        self._wait_s = REFRESH_S  # this first update is slow, and of no training's time

    def step(self, *, epoch: int, step: int) -> None:
        """Note a finished step of an epoch, both counted from 1; cheap when nothing is due."""
        if not self._enabled:
            return
        now = time.monotonic()
        if self._live is not None:
            self._completed = epoch - 1 + step / self._num_steps
            if self._is_due(now):
                self._draw(self._figures or f"step {step:,} of {self._num_steps:,}")
        elif now - self._last_shown >= QUIET_S:
            self._screen.print(f"epoch {epoch}: step {step} of {self._num_steps}")
            self._last_shown = now

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Show a finished epoch; `record` is its line of metrics.jsonl."""
        if not self._enabled:
            return
        epoch, now = record["epoch"], time.monotonic()
        if self._live is not None:
            self._figures = (
                f"test loss {record['test_loss']:.2e}  acc {record['test_accuracy']:.3f}  "
                f"{_rate(record['samples_per_s'])}"
            )
            self._completed = epoch
            if self._is_due(now):
                self._draw(self._figures)
            return
        due = epoch == 1 or epoch % self._every_epochs == 0 or epoch == self._epochs
        if due or now - self._last_shown >= QUIET_S:
            self._screen.print(_file_line(_cells(record)))
            self._last_shown = now

    def end_training(self) -> None:
        """Show the last state of what is live, and leave it there."""
        if self._live is not None:
            self._draw(self._figures)
            self._stop_live()

    def abandon(self) -> None:
        """Give the terminal its cursor back, for a process that leaves at once."""
        if self._live is not None:
            self._screen.line()
            self._screen.show_cursor(True)
            self._stream.wait(CURSOR_S)

    def close(self) -> None:
        """Leave the terminal as it was found, and wait for it a moment; may be called at any time.

        While others wait for this process is no time for it.
        """
        self._stop_live()
        self._stream.wait()

    def end(
        self,
        summary: Summary,
        *,
        baseline: Totals,
        folder: str,
        history: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Close with the table of results.

        Args:
            summary: how the run ended.
            baseline: totals of "the last value again" over the test windows.
            folder: the run folder.
            history: all finished epochs' metrics, for the small curve.
        """
        if not self._enabled:
            return
        if summary.metrics:
            self._screen.print(_results(summary, baseline))
        if len(history) > 1 and self._screen.can_say(sketch.BLOCKS):
            self._screen.print(_loss_curve([record["test_loss"] for record in history]))
        self._screen.print(f"{summary.outcome}: {summary.reason}", soft_wrap=True)
        self._screen.print(f"results in {folder}", soft_wrap=True)

    def _is_due(self, now: float) -> bool:
        """Whether to draw what is live: what the terminal cannot take now is not kept for later."""
        return now - self._last_shown >= self._wait_s and not self._stream.is_busy

    def _draw(self, figures: str) -> None:
        assert self._live is not None
        assert self._progress is not None
        began = time.monotonic()
        self._screen.fit(free=ECHO_COLUMNS)
        rest = f"epoch {self._epochs}/{self._epochs} ----  0:00:00"
        figures = figures[: max(0, self._screen.width - len(rest))]
        self._progress.update(
            self._progress.task_ids[0], completed=self._completed, figures=figures
        )
        above = [_sketch(*self._preview())] if self._preview is not None else []
        self._live.update(Group(*above, self._progress), refresh=True)
        self._last_shown = time.monotonic()
        self._wait_s = max(REFRESH_S, PATIENCE * (self._last_shown - began))

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()  # draws it a last time
            self._live = None


def _sketch(targets: Sequence[float], predictions: Sequence[float]) -> Text:
    """One cycle in characters, the predictions over the targets."""
    low, high = min(targets), max(targets)
    margin = 0.15 * (high - low) or 1.0
    wanted, found = (
        sketch.curve(
            values, width=SKETCH_COLUMNS, height=SKETCH_LINES, low=low - margin, high=high + margin
        )
        for values in (targets, predictions)
    )
    text = Text()
    for behind, front in zip(wanted, found, strict=True):
        cells = zip(behind, front, strict=True)
        for is_front, run in itertools.groupby(cells, key=lambda cell: cell[1] != " "):
            text.append("".join(cell[is_front] for cell in run), FRONT if is_front else BEHIND)
        text.append("\n")
    text.append("one cycle: ").append("target", BEHIND).append(", ").append("prediction", FRONT)
    return text


def _loss_curve(losses: Sequence[float]) -> str:
    """`test loss (log scale) 2.7e-01 █▅▃▁ 1.5e-03`"""
    curve = sketch.spark(losses, width=SPARK_COLUMNS)
    return f"test loss (log scale) {losses[0]:.1e} {curve} {losses[-1]:.1e}"


HEAD = ("epoch", "step", "train loss", "train acc", "test loss", "test acc", "samples/s")
WIDTHS = (7, 9, 12, 11, 12, 10, 11)


def _file_line(cells: Sequence[str]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))


def _cells(record: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(record["epoch"]),
        str(record["step"]),
        f"{record['train_loss']:.4e}",
        f"{record['train_accuracy']:.4f}",
        f"{record['test_loss']:.4e}",
        f"{record['test_accuracy']:.4f}",
        f"{record['samples_per_s']:.0f}",
    )


def _results(summary: Summary, baseline: Totals) -> Table:
    """Train and test of the last epoch, the best epoch, and what no learning achieves."""
    table = Table()
    table.add_column("")
    for heading in ("loss", "accuracy", "samples"):
        table.add_column(heading, justify="right")

    def add(name: str, loss: float, accuracy: float, samples: int) -> None:
        table.add_row(name, f"{loss:.4e}", f"{accuracy:.4f}", f"{samples:,}")

    for name, record, kind in (
        (f"train, epoch {summary.epochs}", summary.metrics, "train"),
        (f"test, epoch {summary.epochs}", summary.metrics, "test"),
        (f"test, best epoch {summary.best['epoch']}", summary.best, "test"),
    ):
        values = (record[f"{kind}_{what}"] for what in ("loss", "accuracy", "samples"))
        add(name, *values)
    add("test, last value again", baseline.loss, baseline.accuracy, baseline.samples)
    return table


def _rate(samples_per_s: float) -> str:
    return f"{samples_per_s / 1000:.0f}k samples/s"
