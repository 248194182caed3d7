"""What a run has seen of a file, and what a series holds of it now."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sinlstm_dist.config import Data
from sinlstm_dist.data.series import Series
from sinlstm_dist.words import counted


def record_of(series: Series) -> dict[str, Any]:
    """What a run folder keeps about its series: see `run/record.py`."""
    values = series.column.values
    return {"values": len(values), "sha256": _digest(series, series.train_start, len(values))}


def _digest(series: Series, first: int, end: int) -> str:
    return hashlib.sha256(series.column.values[first:end].tobytes()).hexdigest()


@dataclass(frozen=True)
class Seen:
    """The values of a file that a run was trained on.

    Args:
        settings: of the run's data.
        record: what the run folder keeps about them; None if an older version wrote it, and then
            the file is taken for unchanged.
    """

    settings: Data
    record: Mapping[str, Any] | None

    def train_part(self, series: Series) -> slice:
        """Where `series` holds the train part of the run, or its own if it has other values."""
        if self.record:
            before, settings = self.record["values"], self.settings
            end = before - settings.test_size - settings.used_up
            start = end - settings.train_size - settings.used_up
            if _digest(series, start, before) == self.record["sha256"]:
                return slice(start, end)
        return slice(series.train_start, series.test_start)

    def notes(self, series: Series) -> list[str]:
        """What a reader of figures about the test windows of `series` must know."""
        source, number = series.settings.source, len(series.column.values)
        before = self.record["values"] if self.record else number
        test_start = before - self.settings.test_size - self.settings.used_up
        train_start = test_start - self.settings.train_size - self.settings.used_up
        if self.record and (
            number < before or _digest(series, train_start, before) != self.record["sha256"]
        ):
            return [
                f"{source} holds other values than the run was trained on: what its test windows "
                "and the train part have in common is not known"
            ]
        notes = []
        if number > before:
            more = counted(number - before, "value")
            notes.append(f"{source} has grown by {more} since the run was trained")
        size, used_up = series.settings.test_size, series.settings.used_up
        # The first and the last window that hold a value of the train part, and their number
        first = max(0, train_start - series.test_start - used_up)
        common = max(0, min(size, test_start - series.test_start) - first)
        if common:
            notes.append(
                f"{common:,} of the {counted(size, 'test window')} hold values that the run was "
                "trained on: these figures are not those of new values"
            )
        return notes
