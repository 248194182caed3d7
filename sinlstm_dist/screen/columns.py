"""A run's progress in a file: plain lines of fixed columns, few however long the run is."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from sinlstm_dist.screen.console import Screen

WIDTHS = {  # of each column; a task that counts no correct predictions has no accuracies
    "epoch": 7, "step": 9, "train loss": 12, "train acc": 11, "test loss": 12, "test acc": 10,
    "samples/s": 11,
}  # fmt: skip
EPOCH_LINES = 20  # about, however many epochs there are
QUIET_S = 30.0  # the longest time without a line


class Columns:
    """Writes a line for some of the epochs, and the head above the first of them.

    Args:
        screen: where to.
        epochs: epochs of the run.
        num_steps: optimizer steps per epoch.
    """

    def __init__(self, screen: Screen, *, epochs: int, num_steps: int) -> None:
        self._screen, self._epochs, self._num_steps = screen, epochs, num_steps
        self._every_epochs = max(1, epochs // EPOCH_LINES)
        self._last_shown = time.monotonic()
        self._has_head = False

    def step(self, *, epoch: int, step: int) -> None:
        """Give a sign of life if the last line is long ago."""
        if time.monotonic() - self._last_shown >= QUIET_S:
            self._show(f"epoch {epoch}: step {step} of {self._num_steps}")

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Write the line of an epoch, if it is time for one."""
        epoch = record["epoch"]
        is_due = epoch in (1, self._epochs) or epoch % self._every_epochs == 0
        if is_due or time.monotonic() - self._last_shown >= QUIET_S:
            cells = _cells(record)
            if not self._has_head:
                self._show(_line((name, name) for name in cells))
                self._has_head = True
            self._show(_line(cells.items()))

    def _show(self, line: str) -> None:
        self._screen.say(line)
        self._last_shown = time.monotonic()

    def end(self) -> None:
        """Do nothing: all lines are written."""

    close = abandon = end


def _line(cells: Iterable[tuple[str, str]]) -> str:
    """A line with a text in each of some columns."""
    return "".join(f"{text:>{WIDTHS[name]}}" for name, text in cells)


def _cells(record: Mapping[str, Any]) -> dict[str, str]:
    """The text in each column."""
    cells = {"epoch": str(record["epoch"]), "step": str(record["step"])}
    for kind in ("train", "test"):
        cells[f"{kind} loss"] = f"{record[f'{kind}_loss']:.4e}"
        if f"{kind}_accuracy" in record:
            cells[f"{kind} acc"] = f"{record[f'{kind}_accuracy']:.4f}"
    return {**cells, "samples/s": f"{record['samples_per_s']:.0f}"}
