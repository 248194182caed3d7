"""The times of a series' values: their order, their holes, and the times that follow."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sinlstm_dist.data.dates import Writer
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.words import counted, first_of

NONE = "none"  # data.time's value for a file whose times are not to be read
SHORTEST_MONTH = np.timedelta64(28, "D")
TWO_HOURS, SUNDAY = np.timedelta64(2, "h"), np.timedelta64(3, "D")
ZONE = re.compile("(Z|[+-][0-9]{2}:?[0-9]{2})$")
SHOWN = 3  # of many missing times
UNEVEN = 0.25  # of a step: decimal years of months differ so much, in files of two decimals


@dataclass(frozen=True)
class Times:
    """The times of a column's values, oldest first.

    Args:
        stamps: (N,) datetime64, or int64 or float64 where the file has numbers.
        step: from one time to the next, where none is missing; in months where a calendar counts.
        month_day: of a calendar's times, such as 30; shorter months have their last day for it.
        write: a stamp, in the file's form.
    """

    stamps: np.ndarray
    step: Any
    month_day: int
    write: Writer

    def text(self, index: int) -> str:
        """The time of one value, as the file writes it."""
        return self.write(self.stamps[index])

    def following(self, steps: int) -> list[str]:
        """The `steps` times after the last one, as the file would write them.

        A file of daily values that has no weekends goes on without them.
        """
        if self._skips_weekends():
            day = self.stamps[-1].astype("datetime64[D]")
            clock = self.stamps[-1] - day
            later = (np.busday_offset(day, count) for count in range(1, steps + 1))
            return [self.write(day + clock) for day in later]
        return self.after(-1, steps)

    def after(self, index: int, steps: int) -> list[str]:
        """The `steps` times after that of `index`, with nothing missing between them."""
        stamp, counts = self.stamps[index], np.arange(1, steps + 1)
        if not _is_calendar(self.step):
            return [self.write(later) for later in stamp + counts * self.step]
        days = _days(stamp.astype("datetime64[M]") + counts * self.step, self.month_day)
        return [self.write(later) for later in days + _clock(stamp)]

    def _skips_weekends(self) -> bool:
        is_date = self.stamps.dtype.kind == "M" and not _is_calendar(self.step)
        if not is_date or self.step != np.timedelta64(1, "D") or len(self.stamps) < 6:
            return False
        days = self.stamps.astype("datetime64[D]")
        return bool(np.is_busday(days).all())


def _days(months: np.ndarray, month_day: int) -> np.ndarray:
    """This day of each month, or its last one."""
    first = months.astype("datetime64[D]")
    last = (months + 1).astype("datetime64[D]") - np.timedelta64(1, "D")
    return np.minimum(first + np.timedelta64(month_day - 1, "D"), last)


def _clock(stamps: Any) -> Any:
    """The time of day."""
    return stamps - stamps.astype("datetime64[D]")


def _is_calendar(step: Any) -> bool:
    return isinstance(step, np.timedelta64) and np.datetime_data(step)[0] == "M"


@dataclass(frozen=True)
class _Rows:
    """What messages about times need."""

    what: str  # the file and its column of times
    place: Callable[[int], str]  # of a value, oldest first
    write: Writer


def put_in_order(
    stamps: np.ndarray, write: Writer, *, gaps: str, what: str, place: Callable[[int], str]
) -> tuple[Times, bool]:
    """The times of a column, and whether the file has the newest first.

    Args:
        stamps: (N,) datetime64, int64 or float64, in the file's order.
        write: a stamp, in the file's form.
        gaps: "allow" or "refuse" missing times and uneven steps.
        what: the file and its column of times, for messages.
        place: says where in the file the time of an index is, such as "line 3".

    Raises:
        ConfigError: names the times that come twice, go back or are missing.
    """
    ahead = np.diff(stamps).astype(np.float64)
    is_backwards = int((ahead < 0).sum()) > int((ahead > 0).sum())
    if is_backwards:
        stamps, last = stamps[::-1], len(stamps) - 1
        rows = _Rows(what, lambda index: place(last - index), write)
    else:
        rows = _Rows(what, place, write)
    _refuse_disorder(stamps, rows)
    times, steps = _with_step(stamps, write)
    if gaps == "refuse" and len(stamps) > 1:
        _refuse_holes(times, steps, rows)
    return times, is_backwards


def _refuse_disorder(stamps: np.ndarray, rows: _Rows) -> None:
    """No time may come twice or go back."""
    wrong = np.flatnonzero(np.diff(stamps).astype(np.float64) <= 0)
    if not len(wrong):
        return
    before, after = int(wrong[0]), int(wrong[0]) + 1
    old, new = rows.write(stamps[before]), rows.write(stamps[after])
    found = f"has {new} again" if stamps[before] == stamps[after] else f"goes from {old} to {new}"
    raise ConfigError(
        f"{rows.what} {found} in {rows.place(after)}: keep one series in the file, set data.time "
        "to another column, or to none if this is not a column of times"
        f"{_on_clocks(stamps, after, rows.write)}"
    )


def _on_clocks(stamps: np.ndarray, index: int, write: Writer) -> str:
    """Advice for local times at one of which the clock may have been changed."""
    text, stamp = write(stamps[index]), stamps[index]
    is_local = stamps.dtype.kind == "M" and ":" in text and not ZONE.search(text)
    if not is_local or abs(stamp - stamps[index - 1]) > TWO_HOURS:
        return ""
    night = stamp - stamp.astype("datetime64[W]")  # weeks of numpy begin on Thursdays
    if not SUNDAY <= night <= SUNDAY + 2 * TWO_HOURS:
        return ""
    return f"; local times need their zone where the clock changes, such as {text}+01:00"


def _with_step(stamps: np.ndarray, write: Writer) -> tuple[Times, np.ndarray]:
    """The times, and how many steps each is after the one before."""
    if len(stamps) < 2:
        step: Any = np.timedelta64(1) if stamps.dtype.kind == "M" else 1
        return Times(stamps, step, 0, write), stamps[1:]
    differences, month_day = _differences(stamps)
    if stamps.dtype.kind == "M":
        step = _most_common(differences)
        return Times(stamps, step, month_day, write), differences / step
    is_whole = bool((stamps % 1 == 0).all())
    step = _most_common(differences) if is_whole else float(np.median(differences))
    steps = differences / step
    if not is_whole:
        near = np.rint(steps)
        steps = np.where(abs(steps - near) <= UNEVEN, near, steps)
        if (steps == 1).all():
            step = float(stamps[-1] - stamps[0]) / (len(stamps) - 1)
    return Times(stamps, step, 0, write), steps


def _differences(stamps: np.ndarray) -> tuple[np.ndarray, int]:
    """Between neighbours, in months where a calendar counts; and the day of the months."""
    plain = np.diff(stamps)
    if stamps.dtype.kind == "M" and (plain >= SHORTEST_MONTH).all():
        months, days, clocks = stamps.astype("M8[M]"), stamps.astype("M8[D]"), _clock(stamps)
        largest = int((days - months.astype("M8[D]")).max().astype(int)) + 1
        for month_day in (31, largest):
            if (days == _days(months, month_day)).all() and (clocks == clocks[0]).all():
                return np.diff(months), month_day
    return plain, 0


def _most_common(differences: np.ndarray) -> Any:
    found, counts = np.unique(differences, return_counts=True)
    return found[counts.argmax()]


def _refuse_holes(times: Times, steps: np.ndarray, rows: _Rows) -> None:
    """Each time must be one step after the one before."""
    advice = "set data.gaps=allow to take the values as if they followed each other"
    uneven = np.flatnonzero(steps % 1 != 0)
    if len(uneven):
        before, after = int(uneven[0]), int(uneven[0]) + 1
        raise ConfigError(
            f"{rows.what} is not evenly spaced: {times.text(after)} in {rows.place(after)} is "
            f"{steps[before]:.3g} steps after {times.text(before)}, where 1 is usual: {advice}"
        )
    holes = np.flatnonzero(steps != 1)
    if not len(holes):
        return
    number = int((steps[holes] - 1).sum())
    some = [(int(hole), min(int(steps[hole]) - 1, SHOWN + 1)) for hole in holes[: SHOWN + 1]]
    missing = [time for hole, size in some for time in times.after(hole, size)]
    names = first_of(missing[: SHOWN + 1], SHOWN, total=number)
    raise ConfigError(
        f"{rows.what} lacks {counted(number, 'time')} ({names}; the first hole is before "
        f"{rows.place(int(holes[0]) + 1)}): fill them in, or {advice}"
        f"{_on_clocks(times.stamps, int(holes[0]) + 1, times.write)}"
    )
