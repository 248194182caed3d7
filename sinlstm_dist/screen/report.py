"""A run's report to a person: the start panel, the progress, notes, and the table of results.

A report that is enabled never waits for its stream: the other processes would wait for this one.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.panel import Panel
from rich.table import Table

from sinlstm_dist.metrics import Totals
from sinlstm_dist.run.record import Summary
from sinlstm_dist.screen import sketch
from sinlstm_dist.screen.columns import Columns
from sinlstm_dist.screen.console import Screen, fact_lines, fact_table
from sinlstm_dist.screen.live import LiveProgress, Preview
from sinlstm_dist.screen.stream import Stream

SPARK_COLUMNS = 40
VALUES = ("loss", "accuracy", "samples")  # columns of the table of results
WORSE = 'worse than "{}", which learns nothing: try {}'
FILE_WIDTH = 100  # columns where no terminal has a width


class Report:
    """What one run shows of itself; not enabled, it does nothing.

    Args:
        enabled: whether this process prints.
        epochs: epochs of the run.
    """

    def __init__(self, *, enabled: bool, epochs: int) -> None:
        self._enabled, self._epochs = enabled, epochs
        self._stream = Stream("stdout", waits=False)
        self._screen = Screen(self._stream, width=None if self._stream.isatty() else FILE_WIDTH)
        self._progress: LiveProgress | Columns | None = None  # while the run trains

    def start(self, facts: Mapping[str, str]) -> None:
        """Say what is about to run, one line per fact."""
        if not self._enabled:
            return
        if self._screen.is_interactive:
            panel = Panel(
                fact_table(facts), title="sinlstm-dist", title_align="left", border_style="cyan"
            )
            self._screen.print(panel)
        else:
            self._screen.say(fact_lines(facts))

    def note(self, text: str) -> None:
        """Say something that the user should know, once."""
        if self._enabled:
            self._screen.say(text)

    def stopping(self, signal_name: str) -> None:
        """Say at once that a signal has arrived: the step that the process finishes may be long."""
        again = "; another Ctrl-C leaves at once, unsaved" if signal_name == "SIGINT" else ""
        self.note(f"{signal_name}: saves and stops after this step{again}")

    def begin_training(
        self, *, finished_epochs: int, num_steps: int, preview: Preview | None = None
    ) -> None:
        """Start the live line, or the columns in a file.

        Args:
            finished_epochs: of earlier starts.
            num_steps: optimizer steps per epoch.
            preview: gives targets and predictions over one cycle; called on a terminal only.
        """
        if not self._enabled:
            return
        sizes = {"epochs": self._epochs, "num_steps": num_steps}
        if self._screen.is_interactive:
            live = LiveProgress(
                self._screen, self._stream, finished_epochs=finished_epochs, preview=preview,
                **sizes,
            )  # fmt: skip
            self._progress = live  # before it hides the cursor, so that `close` shows it again
            live.start()
        else:
            self._progress = Columns(self._screen, **sizes)

    def step(self, *, epoch: int, step: int) -> None:
        """Show a finished step of an epoch, both counted from 1; cheap if no update is due."""
        if self._progress is not None:
            self._progress.step(epoch=epoch, step=step)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Show a finished epoch; `record` is its line of metrics.jsonl."""
        if self._progress is not None:
            self._progress.epoch(record)

    def end_training(self) -> None:
        """Show the last state of the live line, and leave it there."""
        if self._progress is not None:
            self._progress.end()
            self._progress = None

    def abandon(self) -> None:
        """Give the terminal its cursor back, for a process that leaves at once."""
        if self._progress is not None:
            self._progress.abandon()

    def close(self) -> None:
        """Leave the terminal as it was found; waits for it a moment, and may be called twice.

        Only for a process that no other process waits for.
        """
        if self._progress is not None:
            self._progress.close()
            self._progress = None
        self._stream.wait()

    def end(
        self,
        summary: Summary,
        *,
        baselines: Mapping[str, Totals],
        folder: str,
        advice: str,
        history: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Close with the table of results.

        Args:
            summary: how the run ended.
            baselines: predictions that learn nothing, by name: their totals over the test data.
            folder: the run folder.
            advice: what to try if a baseline is better.
            history: metrics of all finished epochs, for the small curve.
        """
        if not self._enabled:
            return
        if summary.metrics:
            self._screen.print(_results(summary, baselines))
        losses = [record["test_loss"] for record in history]
        if len(losses) > 1 and min(losses) >= 0 and self._screen.can_say(sketch.BLOCKS):
            self._screen.print(_loss_curve(losses))
        self._screen.say(f"{summary.outcome}: {summary.reason}")
        if summary.outcome == "completed" and (better := _better(baselines, summary.metrics)):
            self._screen.say(WORSE.format(better, advice))
        self._screen.say(f"results in {folder}")
        if summary.weights_sha256:
            self._screen.say(f"weights {summary.weights_sha256}")


def _better(baselines: Mapping[str, Totals], metrics: Mapping[str, Any]) -> str:
    """The best of the baselines that have a lower test loss than the model; "" if there is none.

    Args:
        metrics: of the last epoch; empty if the run lost its files.
    """
    losses = {name: totals.loss for name, totals in baselines.items()}
    losses = {n: loss for n, loss in losses.items() if loss < metrics.get("test_loss", -math.inf)}
    return min(losses, key=losses.__getitem__, default="")


def _results(summary: Summary, baselines: Mapping[str, Totals]) -> Table:
    """Train and test of the last epoch, the best epoch, and the baselines."""
    rows = [
        (f"{name} {record['epoch']}", *(record.get(f"{kind}_{value}") for value in VALUES))
        for name, record, kind in (
            ("train, epoch", summary.metrics, "train"),
            ("test, epoch", summary.metrics, "test"),
            ("test, best epoch", summary.best, "test"),
        )
    ]
    rows += [(f"test, {name}", t.loss, t.accuracy, t.samples) for name, t in baselines.items()]
    has_accuracy = any(accuracy is not None for _, _, accuracy, _ in rows)
    table = Table()
    table.add_column("")
    for heading in VALUES if has_accuracy else ("loss", "samples"):
        table.add_column(heading, justify="right")
    for name, loss, accuracy, samples in rows:
        cell = "" if accuracy is None else f"{accuracy:.4f}"
        table.add_row(name, f"{loss:.4e}", *[cell] * has_accuracy, f"{samples:,}")
    return table


def _loss_curve(losses: Sequence[float]) -> str:
    """`test loss (log scale) 2.7e-01 █▅▃▁ 1.5e-03`"""
    curve = sketch.spark(losses, width=SPARK_COLUMNS)
    return f"test loss (log scale) {losses[0]:.1e} {curve} {losses[-1]:.1e}"
