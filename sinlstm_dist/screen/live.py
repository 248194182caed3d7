"""A run's progress on a terminal: a live line, and above it the cycle as the model predicts it."""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from sinlstm_dist.screen import sketch
from sinlstm_dist.screen.console import Screen
from sinlstm_dist.screen.stream import Stream

REFRESH_S = 0.1  # the shortest time between two updates
PATIENCE = 100  # updates take 1 % of the time at most: the next waits 100 times as long as the last
SKETCH_COLUMNS, SKETCH_LINES = 60, 7  # of the cycle drawn in characters
SKETCH_NEEDS_LINES = 20  # of a terminal: in a lower one it would push all else out of sight
FRONT, BACK = "bold cyan", "dim"  # predictions and targets in it
ECHO_COLUMNS = 2  # free at the line's end: a terminal shows ^C there, and must not wrap
CURSOR_S = 1.0  # a process that leaves at once waits at most this time for its terminal

Preview = Callable[[], tuple[Sequence[float], Sequence[float]]]


class LiveProgress:
    """The live part of the screen; it skips an update that the terminal cannot take now.

    Args:
        screen: the terminal.
        stream: below the screen.
        epochs: epochs of the run.
        num_steps: optimizer steps per epoch.
        finished_epochs: of earlier starts.
        preview: gives targets and predictions over one cycle, for a terminal of some size.
    """

    def __init__(
        self,
        screen: Screen,
        stream: Stream,
        *,
        epochs: int,
        num_steps: int,
        finished_epochs: int,
        preview: Preview | None,
    ) -> None:
        self._screen, self._stream = screen, stream
        self._epochs, self._num_steps = epochs, num_steps
        self._completed = float(finished_epochs)
        self._figures = ""  # of the newest finished epoch
        self._last_shown, self._wait_s = time.monotonic(), REFRESH_S
        screen.fit(free=ECHO_COLUMNS)
        self._preview = preview if _has_room_for_sketch(screen) else None
        self._progress = _progress_bar(screen)
        self._progress.add_task("", total=epochs, completed=finished_epochs, figures="")
        self._live = Live(console=screen, auto_refresh=False)

    def start(self) -> None:
        """Hide the cursor and draw the first state."""
        self._live.start()
        self._draw("")
        self._wait_s = REFRESH_S  # the first update is slow, and takes no time from the training

    def step(self, *, epoch: int, step: int) -> None:
        """Show a finished step, if an update is due."""
        self._completed = epoch - 1 + step / self._num_steps
        if self._is_due():
            self._draw(self._figures or f"step {step:,} of {self._num_steps:,}")

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Show a finished epoch, if an update is due."""
        self._completed = record["epoch"]
        self._figures = (
            f"test loss {record['test_loss']:.2e}  acc {record['test_accuracy']:.3f}  "
            f"{record['samples_per_s'] / 1000:.0f}k samples/s"
        )
        if self._is_due():
            self._draw(self._figures)

    def end(self) -> None:
        """Show the last state, and leave it there."""
        self._draw(self._figures)
        self.close()

    def close(self) -> None:
        """Stop drawing; the terminal has its cursor back."""
        self._live.stop()  # draws a last time

    def abandon(self) -> None:
        """Give the terminal its cursor back, for a process that leaves at once."""
        self._screen.line()
        self._screen.show_cursor(True)
        self._stream.wait(CURSOR_S)

    def _is_due(self) -> bool:
        waited_s = time.monotonic() - self._last_shown
        return waited_s >= self._wait_s and not self._stream.is_busy

    def _draw(self, figures: str) -> None:
        began = time.monotonic()
        self._screen.fit(free=ECHO_COLUMNS)
        rest = f"epoch {self._epochs}/{self._epochs} ----  0:00:00"
        figures = figures[: max(0, self._screen.width - len(rest))]
        task = self._progress.task_ids[0]
        self._progress.update(task, completed=self._completed, figures=figures)
        above = [_sketch(*self._preview())] if self._preview is not None else []
        self._live.update(Group(*above, self._progress), refresh=True)
        self._last_shown = time.monotonic()
        self._wait_s = max(REFRESH_S, PATIENCE * (self._last_shown - began))


def _has_room_for_sketch(screen: Screen) -> bool:
    is_large = screen.width >= SKETCH_COLUMNS and screen.height >= SKETCH_NEEDS_LINES
    return is_large and screen.can_say(chr(sketch.EMPTY))


def _progress_bar(screen: Screen) -> Progress:
    return Progress(
        TextColumn("epoch"),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(
            compact=True, elapsed_when_finished=True, table_column=Column(no_wrap=True)
        ),
        console=screen,
        expand=True,
        auto_refresh=False,
    )


def _sketch(targets: Sequence[float], predictions: Sequence[float]) -> Text:
    """One cycle in characters, the predictions over the targets."""
    low, high = min(targets), max(targets)
    margin = 0.15 * (high - low) or 1.0
    back, front = (
        sketch.curve(
            values, width=SKETCH_COLUMNS, height=SKETCH_LINES, low=low - margin, high=high + margin
        )
        for values in (targets, predictions)
    )
    text = Text()
    for back_line, front_line in zip(back, front, strict=True):
        cells = zip(back_line, front_line, strict=True)
        for is_front, run in itertools.groupby(cells, key=lambda cell: cell[1] != " "):
            text.append("".join(cell[is_front] for cell in run), FRONT if is_front else BACK)
        text.append("\n")
    text.append("one cycle: ").append("target", BACK).append(", ").append("prediction", FRONT)
    return text
