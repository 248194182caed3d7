"""Cells of text as dates: ISO dates by numpy, other forms by pandas."""

import contextlib
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from itertools import count
from typing import Any

import numpy as np

from sinlstm_dist.errors import ConfigError, MissingPackage

Writer = Callable[[Any], str]  # of one time, in the form that the file has

ZEROS = bytes.maketrans(b"123456789", b"000000000")
SHAPE = re.compile(
    r"(?P<day>0000-00(-00)?)((?P<joint>[T ])00:00(?P<second>:00(?P<fraction>\.0+)?)?)?"
    r"(?P<zone>Z|[+-]00:?00)?"
)
DAY = re.compile("(1[6-9]|20|21)[0-9]{2}[01][0-9][0-3][0-9]")  # 20240131
SHORT = re.compile(r"[0-9]{4}-([0-9]-|[0-9]{2}-[0-9]\b)")  # 2024-1-31
MONTH = re.compile("(1[6-9]|20|21)[0-9]{2}(0[1-9]|1[0-2])")  # 202401
QUARTER = re.compile(r"([0-9]{4})(-?Q)([1-4])")
DAYS = [
    "%Y-%m-%d", "%b-%y",  # the former with digits left out
    "%d.%m.%Y", "%d.%m.%y", "%Y.%m.%d", "%m/%d/%Y", "%d/%m/%Y", "%m/%d/%y", "%d/%m/%y", "%Y/%m/%d",
    "%m-%d-%Y", "%d-%m-%Y", "%m-%d-%y", "%d-%m-%y", "%m/%Y", "%Y/%m", "%d-%b-%Y", "%d-%b-%y",
    "%b-%Y", "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%b %Y", "%B %Y",
]  # fmt: skip
CLOCKS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
FORMS = [day + clock for day in DAYS for clock in CLOCKS]
LONGEST = 40  # characters of a date
CHUNK = 1000  # cells at a time
WITHOUT = "set data.time=none to read the file without its times"


def is_date(cell: str) -> bool:
    """Whether a cell holds a date, in any of the known forms."""
    if len(cell) > LONGEST or not re.search("[0-9].*[-/. Q]|[-/. ].*[0-9]", cell):
        return False
    return bool(_iso(cell) or QUARTER.fullmatch(cell) or _forms(cell))


def is_joined(cells: Sequence[str]) -> bool:
    """Whether numbers may be dates without signs between: 20240131 or 202401."""
    return any(all(map(form.fullmatch, cells)) for form in (DAY, MONTH))


def to_dates(
    cells: Sequence[str], *, what: str, place: Callable[[int], str]
) -> tuple[np.ndarray, Writer]:
    """The cells of one column as datetime64, and what writes such dates in the same form.

    Args:
        what: the file and the column, for messages.
        place: says where in the file the cell of an index is, such as "line 3".

    Raises:
        ConfigError: the cells are not all dates of one form, two forms fit them all, or the years
            have two digits.
        MissingPackage: it takes pandas to read them.
    """
    if _iso(cells[0]):
        read: Callable[[Sequence[str], str], tuple[np.ndarray, Writer]] = _read_iso
    elif QUARTER.fullmatch(cells[0]):
        read = _read_quarters
    elif is_joined(cells):
        read = _read_joined
    else:
        read = _read_by_pandas
    try:
        return read(cells, what)
    except _NoDate as error:
        wrong = next(index for index, cell in enumerate(cells) if not error.fits(cell))
        form = f' in the form of "{cells[0]}"' if wrong else ""
        raise ConfigError(
            f'{what}: "{cells[wrong]}" in {place(wrong)} is no date{form}: correct it, or {WITHOUT}'
        ) from error


class _NoDate(Exception):
    """One of the cells does not fit."""

    def __init__(self, fits: Callable[[str], object]) -> None:
        super().__init__()
        self.fits = fits


def _iso(cell: str) -> tuple[object, ...] | None:
    """The form of an ISO date: all that must be the same in a column; None for another cell."""
    match = SHAPE.fullmatch(_zeros(cell))
    return match and (match["day"], match["joint"], bool(match["second"]), len(match["zone"] or ""))


def _zeros(text: str) -> str:
    """The same text with 0 in place of any other digit."""
    return text.encode().translate(ZEROS).decode()


def _read_iso(cells: Sequence[str], what: str) -> tuple[np.ndarray, Writer]:
    form = _iso(cells[0])
    shapes = set[str]()
    for start in range(0, len(cells), CHUNK):
        shapes.update(_zeros("\n".join(cells[start : start + CHUNK])).split("\n"))
    if {_iso(shape) for shape in shapes} != {form}:
        if _forms(cells[0]) and any(map(SHORT.match, cells)):
            return _read_by_pandas(cells, what)
        raise _NoDate(lambda cell: _iso(cell) == form)
    match = next(filter(None, map(SHAPE.fullmatch, sorted(shapes, key=len, reverse=True))))
    size = len(match["zone"] or "")
    zones = [cell[-size:] for cell in cells] if size else [""]
    bare = [cell[:-size] for cell in cells] if size else cells
    unit = "m" if match["joint"] else "D"
    if match["second"]:
        digits = len(match["fraction"] or ".") - 1
        unit = ("s", "ms", "us", "ns")[min(3, (digits + 2) // 3)]
        if unit == "ns" and not all("1700" < cell[:4] < "2200" for cell in cells):
            raise _NoDate(lambda cell: "1700" < cell[:4] < "2200")  # numpy would wrap around
    try:
        stamps = np.array(bare, f"datetime64[{unit}]")
    except ValueError:
        raise _NoDate(lambda cell: _is_real(cell[: len(cell) - size])) from None
    length, joint = len(match.group()) - size, match["joint"] or "T"
    if len(set(zones)) == 1:
        return stamps, partial(_write_iso, length=length, joint=joint, zone=zones[0])
    ahead = _ahead(stamps, zones)
    stamps = stamps - ahead
    order = np.argsort(stamps, kind="stable")
    known = {"known": stamps[order], "ahead": ahead[order], "zones": np.array(zones)[order]}
    return stamps, partial(_write_zoned, **known, length=length, joint=joint)


def _ahead(stamps: np.ndarray, zones: Sequence[str]) -> np.ndarray:
    """What to take from the times of a file with summer and winter time.

    One time of day in all rows means days or months, which the clock on the wall counts: a day may
    have 23 or 25 hours. Other times are moments, as hours are all of the same length.
    """
    if len(np.unique(stamps - stamps.astype("datetime64[D]"))) == 1:
        return np.zeros(len(stamps), "timedelta64[m]")
    return np.array([_minutes(zone) for zone in zones])


def _is_real(cell: str) -> bool:
    try:
        np.datetime64(cell)
    except ValueError:
        return False
    return True


def _minutes(zone: str) -> np.timedelta64:
    """How far the clock of a zone such as +01:30 is ahead."""
    zone = zone.replace(":", "")
    return np.timedelta64(int(f"{zone[0]}1") * (60 * int(zone[1:3]) + int(zone[3:])), "m")


def _write_iso(stamp: np.datetime64, *, length: int, joint: str, zone: str) -> str:
    return str(stamp)[:length].replace("T", joint) + zone


def _write_zoned(
    stamp: np.datetime64,
    *,
    known: np.ndarray,
    ahead: np.ndarray,
    zones: np.ndarray,
    length: int,
    joint: str,
) -> str:
    """In the zone of the last known time that is not after it."""
    last = max(0, int(np.searchsorted(known, stamp, side="right")) - 1)
    return _write_iso(stamp + ahead[last], length=length, joint=joint, zone=str(zones[last]))


def _read_quarters(cells: Sequence[str], what: str) -> tuple[np.ndarray, Writer]:
    if not all(map(QUARTER.fullmatch, cells)):
        raise _NoDate(QUARTER.fullmatch)
    months = [f"{cell[:4]}-{3 * int(cell[-1]) - 2:02}-01" for cell in cells]
    return np.array(months, "datetime64[D]"), partial(_write_quarter, joint=cells[0][4:-1])


def _write_quarter(stamp: np.datetime64, *, joint: str) -> str:
    year, month = str(stamp.astype("datetime64[M]")).split("-")
    return f"{year}{joint}{(int(month) + 2) // 3}"


def _read_joined(cells: Sequence[str], what: str) -> tuple[np.ndarray, Writer]:
    form = "%Y%m%d" if DAY.fullmatch(cells[0]) else "%Y%m"
    try:
        days = [f"{cell[:4]}-{cell[4:6]}-{cell[6:] or '01'}" for cell in cells]
        return np.array(days, "datetime64[D]"), partial(_write_form, form=form)
    except ValueError:
        raise _NoDate(partial(_fits, form=form)) from None


def _read_by_pandas(cells: Sequence[str], what: str) -> tuple[np.ndarray, Writer]:
    """One format for the whole column: pandas by itself would guess, row by row."""
    forms = _forms(cells[0])
    if not forms:
        raise _NoDate(_forms)
    if all("%y" in form for form in forms):
        raise ConfigError(
            f'{what}: "{cells[0]}" has a year of two digits: write four, or {WITHOUT}'
        )
    try:
        import pandas
    except ImportError as error:
        feature = f'{what}: a date such as "{cells[0]}"'
        raise MissingPackage(feature, package="pandas", install="sinlstm-dist[series]") from error
    found: dict[str, np.ndarray] = {}
    for form in forms:
        with contextlib.suppress(ValueError):
            dates = pandas.to_datetime(pandas.Series(cells, dtype=object), format=form)
            found[form] = dates.to_numpy().astype("datetime64[s]")
    if not found:
        form = max(forms, key=lambda form: _first_misfit(cells, form))
        raise _NoDate(partial(_fits, form=form))
    (form, stamps), *others = found.items()
    if any((other != stamps).any() for _, other in others):
        index = next(i for i, *seen in zip(count(), *found.values()) if len(set(seen)) > 1)
        days = " or ".join(dict.fromkeys(str(other[index])[:10] for other in found.values()))
        raise ConfigError(
            f'{what}: "{cells[index]}" may mean {days}, and no other date decides: write the '
            f"dates as 2024-12-31, or {WITHOUT}"
        )
    return stamps, partial(_write_form, form=_unpadded(form, cells, stamps))


def _forms(cell: str) -> list[str]:
    """The known forms that fit one cell."""
    return [form for form in FORMS if _fits(cell, form)]


def _fits(cell: str, form: str) -> bool:
    try:
        datetime.strptime(cell, form)
    except ValueError:
        return False
    return True


def _first_misfit(cells: Sequence[str], form: str) -> int:
    return next(index for index, cell in enumerate(cells) if not _fits(cell, form))


def _write_form(stamp: np.datetime64, *, form: str) -> str:
    return stamp.astype("datetime64[s]").item().strftime(form)


def _unpadded(form: str, cells: Sequence[str], stamps: np.ndarray) -> str:
    """The form with days, months and hours of one digit, if the file has them so."""
    short = re.sub("%([dmHI])", r"%-\1", form)
    some = zip(cells, stamps[:100], strict=False)
    return form if all(_write_form(stamp, form=form) == cell for cell, stamp in some) else short
