"""A run's progress on a terminal: a live line, and above it the cycle as the model predicts it."""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.control import Control
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import ControlType, Segment, SegmentLines
from rich.table import Table
from rich.text import Text

from sinlstm_dist.screen import sketch
from sinlstm_dist.screen.console import Screen
from sinlstm_dist.screen.stream import Stream

FRAME_S = 0.25  # between two frames
PATIENCE = 100  # predictions take 1 % of the time at most: the next wait 100 times as long as these
SKETCH_COLUMNS, SKETCH_LINES = 60, 7  # of the cycle drawn in characters
SKETCH_NEEDS_LINES = 20  # of a terminal: in a lower one it would push all else out of sight
FRONT, BACK = "bold cyan", "dim"  # predictions and targets in it
SPEED_NEEDS_COLUMNS = 100  # of a terminal: in a narrower one it would leave no room for the bar
ECHO_COLUMNS = 2  # free at the line's end: a terminal shows ^C there, and must not wrap
LEAVE_S = 1.0  # a process that leaves at once waits at most this time for its terminal


def _code(text: str) -> Control:
    control = Control()
    control.segment = Segment(text, None, [])
    return control


# A frame is cropped where the terminal has become narrower meanwhile: wrapped, it would have more
# lines than the next frame erases.
CROP, WRAP = _code("\x1b[?7l"), _code("\x1b[?7h")

Preview = Callable[[], tuple[Sequence[float], Sequence[float]]]


class LiveProgress:
    """The live part of the screen; a thread draws it, so that it moves in a long step too.

    The thread draws what `step` and `epoch` have noted, and never calls the model. It skips a frame
    that the terminal cannot take now.

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
        self._screen, self._stream, self._preview = screen, stream, preview
        self._epochs, self._num_steps = epochs, num_steps
        self._first = self._done = float(finished_epochs)
        self._began = self._noted_at = time.monotonic()
        self._step = 0  # of the running epoch
        self._figures = self._speed = ""  # of the newest finished epoch
        self._sketch, self._next_sketch_at = Text(), 0.0
        self._widths: list[int] = []  # of the last frame's lines
        self._live = Live(console=screen, auto_refresh=False)
        self._is_over = threading.Event()
        self._drawer = threading.Thread(target=self._keep_drawing, daemon=True)

    def start(self) -> None:
        """Hide the cursor, draw the first frame and begin to draw others."""
        self._screen.fit(free=ECHO_COLUMNS)
        self._live.start()
        self._predict()
        self._next_sketch_at = 0.0  # the first is slow, and takes no time from the training
        self._draw()
        with contextlib.suppress(RuntimeError):  # no thread can start: this frame stays
            self._drawer.start()

    def step(self, *, epoch: int, step: int) -> None:
        """Note a finished step."""
        self._step = step
        self._note(epoch - 1 + step / self._num_steps)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Note a finished epoch."""
        self._figures = f"test loss {record['test_loss']:.2e}"
        if "test_accuracy" in record:
            self._figures += f"  acc {record['test_accuracy']:.3f}"
        self._speed = f"  {record['samples_per_s'] / 1000:.0f}k samples/s"
        self._note(record["epoch"])

    def end(self) -> None:
        """Show the last state, and leave it there."""
        self._stop_drawing()
        self._predict()
        self._draw()
        self.close()

    def close(self) -> None:
        """Stop drawing; the terminal has its cursor back."""
        self._stop_drawing()
        self._live.stop()  # draws a last time

    def abandon(self) -> None:
        """Give the terminal its cursor back, for a process that leaves at once."""
        self._stop_drawing()
        self._screen.line()
        self._screen.show_cursor(True)
        self._stream.wait(LEAVE_S)

    def _note(self, done: float) -> None:
        self._done, self._noted_at = done, time.monotonic()
        if self._noted_at >= self._next_sketch_at:
            self._predict()

    def _predict(self) -> None:
        """Draw the cycle as the model predicts it now, for the next frames."""
        if self._preview is None or not _has_room_for_sketch(self._screen):
            return
        began = time.monotonic()
        self._sketch = _sketch(*self._preview())
        ended = time.monotonic()
        self._next_sketch_at = ended + max(FRAME_S, PATIENCE * (ended - began))

    def _keep_drawing(self) -> None:
        was_away = False
        while not self._is_over.wait(FRAME_S):
            if self._stream.is_in_background:
                was_away = True
            elif not self._stream.is_busy:
                if was_away:
                    self._begin_below()
                was_away = False
                self._draw()

    def _begin_below(self) -> None:
        """Leave what the shell has printed meanwhile: the next frame erases nothing above it."""
        self._live._live_render._shape = None
        self._widths = []
        self._screen.show_cursor(False)

    def _stop_drawing(self) -> None:
        self._is_over.set()
        if self._drawer.is_alive():
            self._drawer.join(LEAVE_S)

    def _draw(self) -> None:
        self._screen.fit(free=ECHO_COLUMNS)
        above = [self._sketch] if self._sketch and _has_room_for_sketch(self._screen) else []
        lines = self._screen.render_lines(Group(*above, self._line()), pad=False)
        with self._screen:  # all in one write
            self._screen.control(self._erase_added(), CROP)
            self._live.update(SegmentLines(lines, new_lines=True), refresh=True)
            self._screen.control(WRAP)
        self._widths = [Segment.get_line_length(line) for line in lines]

    def _erase_added(self) -> Control:
        """Erase the lines that the terminal added to the last frame when it became narrower."""
        columns = self._screen.width + ECHO_COLUMNS
        added = sum(max(0, width - 1) // columns for width in self._widths)
        return Control(*[(ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1)] * added)

    def _line(self) -> Table:
        """`epoch  25/100 ━━━━━╺━━━━━━━━━━━━━━━━ test loss 1.53e-02  acc 0.395  left 00:02`"""
        epoch = f"epoch {int(self._done):>{len(str(self._epochs))}}/{self._epochs}"
        figures, clock = self._figures or self._first_figures(), f" {self._clock()}"
        if self._screen.width + ECHO_COLUMNS >= SPEED_NEEDS_COLUMNS:
            figures += self._speed
        room = self._screen.width - len(f"{epoch} ---- {clock}")
        bar = ProgressBar(self._epochs, self._done, complete_style="cyan", finished_style="cyan")
        line = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, 1, None, None):
            line.add_column(ratio=ratio, no_wrap=True, overflow="crop")
        line.add_row(epoch, bar, figures[: max(0, room)], clock)
        return line

    def _first_figures(self) -> str:
        return f"step {self._step:,} of {self._num_steps:,}" if self._step else ""

    def _clock(self) -> str:
        """The time that is left at the mean speed so far, and at the end the time that it took."""
        now, done = time.monotonic(), self._done - self._first
        if self._done >= self._epochs:
            return f"took {_as_time(now - self._began)}"
        if not done:
            return "left --:--"
        left_s = (self._noted_at - self._began) * (self._epochs - self._done) / done
        return f"left {_as_time(max(0.0, left_s - (now - self._noted_at)))}"


def _as_time(seconds: float) -> str:
    """`02:05`, or `1:02:05`"""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"


def _has_room_for_sketch(screen: Screen) -> bool:
    is_large = screen.width >= SKETCH_COLUMNS and screen.height >= SKETCH_NEEDS_LINES
    return is_large and screen.can_say(chr(sketch.EMPTY))


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
