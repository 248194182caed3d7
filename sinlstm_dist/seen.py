"""What a run has seen of a file, and what a series holds of it now."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sinlstm_dist.config import Data
from sinlstm_dist.data.series import Series, split
from sinlstm_dist.words import counted


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
            before = self.record["values"]
            start, end = split(before, self.settings)
            if series.sha256(start, before) == self.record["sha256"]:
                return slice(start, end)
        return slice(series.train_start, series.test_start)

    def notes(self, series: Series) -> list[str]:
        """What a reader of figures about the test windows of `series` must know."""
        source, number = series.settings.source, len(series.column.values)
        before = self.record["values"] if self.record else number
        train_start, test_start = split(before, self.settings)
        if self.record and (
            number < before or series.sha256(train_start, before) != self.record["sha256"]
        ):
            return [
                f"{source} holds other values than the run was trained on: what its test windows "
                "and the train part have in common is not known"
            ]
        notes = []
        if number > before:
            more = counted(number - before, "value")
            notes.append(f"{source} has grown by {more} since the run was trained")
        size, context = series.settings.test_size, series.settings.context
        # The first and the last window that hold a value of the train part, and their number
        first = max(0, train_start - series.test_start - context)
        common = max(0, min(size, test_start - series.test_start) - first)
        if common:
            notes.append(
                f"{common:,} of the {counted(size, 'test window')} hold values that the run was "
                "trained on: these figures are not those of new values"
            )
        return notes
