"""A run's progress in a file: plain lines of fixed columns, few however long the run is."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sinlstm_dist.screen.console import Screen

HEAD = ("epoch", "step", "train loss", "train acc", "test loss", "test acc", "samples/s")
WIDTHS = (7, 9, 12, 11, 12, 10, 11)
EPOCH_LINES = 20  # about, however many epochs there are
QUIET_S = 30.0  # the longest time without a line


class Columns:
    """Writes the head, and then a line for some of the epochs.

    Args:
        screen: where to.
        epochs: epochs of the run.
        num_steps: optimizer steps per epoch.
    """

    def __init__(self, screen: Screen, *, epochs: int, num_steps: int) -> None:
        self._screen, self._epochs, self._num_steps = screen, epochs, num_steps
        self._every_epochs = max(1, epochs // EPOCH_LINES)
        self._last_shown = time.monotonic()
        screen.print(_line(HEAD))

    def step(self, *, epoch: int, step: int) -> None:
        """Give a sign of life if the last line is long ago."""
        if time.monotonic() - self._last_shown >= QUIET_S:
            self._show(f"epoch {epoch}: step {step} of {self._num_steps}")

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Write the line of an epoch, if it is time for one."""
        epoch = record["epoch"]
        is_due = epoch in (1, self._epochs) or epoch % self._every_epochs == 0
        if is_due or time.monotonic() - self._last_shown >= QUIET_S:
            self._show(_line(_cells(record)))

    def _show(self, line: str) -> None:
        self._screen.print(line)
        self._last_shown = time.monotonic()

    def end(self) -> None:
        """Do nothing: all lines are written."""

    close = abandon = end


def _line(cells: Sequence[str]) -> str:
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
