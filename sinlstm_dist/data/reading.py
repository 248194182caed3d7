"""One column of a file: its values, oldest first, and their times.

A reader that is not sure refuses: the error says what it found, and the keys that decide.
"""

import lzma
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sinlstm_dist.data.cells import NUMBER, refuse, to_numbers
from sinlstm_dist.data.dates import WITHOUT, Writer, is_date, is_joined, to_dates
from sinlstm_dist.data.table import ArrayTable, Cells, FrameTable, Table, TextTable
from sinlstm_dist.data.text import OPENERS, read_text
from sinlstm_dist.data.times import NONE, Times, put_in_order
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.words import first_of

TEXT, ARRAY, FRAME = (".csv", ".tsv", ".txt"), ".npy", ".parquet"
OF_TIMES = {"time", "date", "datetime", "timestamp", "year"}  # names of columns of numbers
MAYBE_OF_TIMES = {*OF_TIMES, "quarter", "month", "week", "day", "ds"}  # names of columns of dates
OF_INDEX = {"", "Unnamed: 0"}  # names that pandas and R give
INTEGER = re.compile(r"[+-]?[0-9]{1,18}|[+-]?[1-3][0-9]{18}")  # whose differences are int64
PRECISION = 12  # digits of a time: without rounding errors such as 0.30000000000000004
LISTED = 10  # names in a message
UNITS: tuple[Any, ...] = ("D", "m", "s", "ms", "us", "ns")  # of dates, the coarsest first


@dataclass(frozen=True)
class Column:
    """One column of a file, oldest first.

    Args:
        name: "" if it has none.
        values: (N,) float64, all finite.
        times: of each value; None if the file has none.
        note: what the user should know, such as "newest first in the file: read backwards"; "" if
            nothing.
    """

    name: str
    values: np.ndarray
    times: Times | None
    note: str


def read_values(
    path: str | Path,
    column: str = "",
    *,
    time: str = "",
    gaps: str = "refuse",
    encoding: str = "utf-8",
) -> np.ndarray:
    """Read the values of one column of a file, oldest first; the rules are those of training.

    Args:
        path: of the file.
        column: its name, or its number from 1; "" for the only column of numbers.
        time: the column of times; "" for the one that is found, "none" for no times.
        gaps: "refuse" or "allow" missing times and uneven steps.
        encoding: of a text file.

    Returns:
        (N,) float64, all of them finite.

    Raises:
        ConfigError: names the file, what was found in it, and the keys that decide.

    Examples:
        >>> sunspots = read_values("configs/sunspots.csv", "sunspots")
        >>> len(sunspots), sunspots[:3].tolist()
        (309, [5.0, 11.0, 16.0])
    """
    return read_column(path, column, time=time, gaps=gaps, encoding=encoding).values


def read_column(
    path: str | Path,
    column: str = "",
    *,
    time: str = "",
    gaps: str = "refuse",
    encoding: str = "utf-8",
) -> Column:
    """Read one column of a file, oldest first.

    Args:
        path: .csv, .tsv or .txt with one line per time step, also packed as .gz, .bz2 or .xz; .npy
            of one or two dimensions; .parquet.
        column: its name, or its number from 1 where columns have no names; "" for the only column
            of numbers, an index and the times not counted.
        time: the column of times, named likewise; "" for the one that holds dates, or numbers and
            has the name of times; "none" for no times.
        gaps: "refuse" or "allow" missing times and uneven steps.
        encoding: of a text file.

    Raises:
        ConfigError: names the file, what was found in it, and the keys that decide.
        MissingPackage: only pandas can read the file, and it is not installed.
    """
    path = Path(path)
    where = f"data.source={path}"
    try:
        table = _open(path, where=where, encoding=encoding, column=column)
        return _read(table, where, column=column, time=time, gaps=gaps)
    except OSError as error:
        reason = error.strerror or error
        looked = f" (looked for from {Path.cwd()})" if not path.is_absolute() else ""
        raise ConfigError(f"{where}: cannot be read: {reason}{looked}") from error
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise ConfigError(f"{where}: cannot be unpacked: {error}") from error


def _open(path: Path, *, where: str, encoding: str, column: str) -> Table:
    suffix = path.suffix.lower()
    inner = Path(path.stem).suffix.lower() if suffix in OPENERS else suffix
    if inner in TEXT:
        text = read_text(path, where=where, encoding=encoding, column=column)
        return TextTable(text, column)
    if suffix == ARRAY:
        return ArrayTable(path, where=where)
    if suffix == FRAME:
        return FrameTable(path, where=where)
    raise ConfigError(
        f'{where}: use "sine", or a file that ends in {", ".join((*TEXT, ARRAY, FRAME))}; text may '
        f"also be packed: {', '.join(OPENERS)}"
    )


def _read(table: Table, where: str, *, column: str, time: str, gaps: str) -> Column:
    index = _find(table, column, key="data.column", where=where) if column else None
    times_index = _find_times(table, time, index, where=where)
    if index is None:
        index = _only_numbers(table, times_index, where=where)
    indices = [index] if times_index is None else [index, times_index]
    cells, *others = table.columns(indices)
    if not len(cells):
        raise ConfigError(f"{where}: holds no values")
    names = [f"{where}: column {table.names[i] or i + 1}" for i in indices]
    values, has_commas = _numbers(cells, names[0], table)
    notes = ["decimal commas"] if has_commas else []
    times = None
    if others:
        stamps, write = _stamps(others[0], names[1], table)
        times, is_backwards = put_in_order(
            stamps, write, gaps=gaps, what=names[1], place=table.place
        )
        if is_backwards:
            values = values[::-1].copy()
            notes.append("newest first in the file: read backwards")
    elif time != NONE and len(table.names) > 1:
        notes.append("no times found")
    name = table.names[index] if table.is_named else ""
    return Column(name, values, times, ", ".join(notes))


def _find(table: Table, name: str, *, key: str, where: str) -> int:
    """The column that has this name."""
    found = [index for index, known in enumerate(table.names) if known == name]
    if len(found) > 1:
        raise ConfigError(
            f"{where}: {len(found)} columns have the name {name}: give each a name of its own"
        )
    if not found:
        raise ConfigError(f"{where}: has no column {name}: set {key} to one of {_list(table)}")
    return found[0]


def _list(table: Table, indices: Sequence[int] | None = None) -> str:
    names = [name or '""' for name in table.names]
    return first_of(names if indices is None else [names[i] for i in indices], LISTED)


def _find_times(table: Table, time: str, column: int | None, *, where: str) -> int | None:
    """The column of times, if there is one: never the column of values."""
    if time == NONE:
        return None
    if time:
        found = [_find(table, time, key="data.time", where=where)]
        if found[0] == column:
            raise ConfigError(f"{where}: data.column and data.time are the same column, {time}")
        return found[0]
    others = [index for index in range(len(table.names)) if index != column]
    first = table.first(others)
    found = [index for index in others if is_date(first[index])]
    if not found and table.is_named:
        found = _named_for_times(table, first, where=where)
    if len(found) > 1:
        raise ConfigError(
            f"{where}: {len(found)} columns may hold the times: set data.time to one of "
            f"{_list(table, found)}, or to {NONE}"
        )
    return found[0] if found else None


def _named_for_times(table: Table, first: Mapping[int, str], *, where: str) -> list[int]:
    """Those of the columns with these first cells that hold numbers and have the name of times.

    Raises:
        ConfigError: none does, and one with such a name holds what may be times.
    """
    names = {index: table.names[index].lower() for index in first}
    numbers = [index for index, cell in first.items() if NUMBER.fullmatch(cell)]
    found = [
        index
        for index in numbers
        if names[index] in (MAYBE_OF_TIMES if is_joined([first[index]]) else OF_TIMES)
    ]
    for index, cell in first.items():
        is_unknown = index not in numbers and re.search("[0-9]", cell)
        if not found and is_unknown and names[index] in MAYBE_OF_TIMES:
            (cells,) = table.columns([index])
            raise ConfigError(
                f'{where}: column {table.names[index]} may hold the times, but "{cell}" in '
                f"{table.place(list(cells).index(cell))} is no date that is known: write dates as "
                f"2024-12-31, or {WITHOUT}"
            )
    return found


def _only_numbers(table: Table, times: int | None, *, where: str) -> int:
    """The only column that can be meant: not the times, not an index."""
    names = table.names
    numbers = table.with_numbers([index for index in range(len(names)) if index != times])
    left = [index for index in numbers if index or len(names) == 1 or not _is_index(table)]
    if len(left) == 1:
        return left[0]
    if left:
        what = f"has {len(left)} columns of numbers"
    elif not any(map(len, table.columns(range(len(names))))):
        raise ConfigError(f"{where}: holds no values")
    else:
        what = "has no column of numbers apart from the times and an index"
        left = [index for index in range(len(names)) if index != times]
        if not left:
            raise ConfigError(f"{where}: holds only times")
    raise ConfigError(f"{where}: {what}: set data.column to one of {_list(table, left)}")


def _is_index(table: Table) -> bool:
    """Whether the first column only numbers the rows."""
    if table.is_named and table.names[0] in OF_INDEX:
        return True
    (cells,) = table.columns([0])
    if not isinstance(cells, list):
        return any(np.array_equal(cells, np.arange(len(cells)) + start) for start in (0, 1))
    start = cells[0] if cells else ""
    return start in ("0", "1") and all(
        cell == str(number) for number, cell in enumerate(cells, int(start))
    )


def _numbers(cells: Cells, what: str, table: Table) -> tuple[np.ndarray, bool]:
    if isinstance(cells, list):
        between_commas = table.between_commas
        return to_numbers(cells, what=what, place=table.place, between_commas=between_commas)
    if cells.dtype.kind == "M":
        raise ConfigError(f"{what} holds times, not numbers")
    refuse(np.flatnonzero(~np.isfinite(cells)), cells, what, table.place)
    return cells.astype(np.float64), False


def _stamps(cells: Cells, what: str, table: Table) -> tuple[np.ndarray, Writer]:
    """The times of a column: numbers, or dates."""
    if not isinstance(cells, list) and cells.dtype.kind == "M":
        known = cells[~np.isnat(cells)]
        unit = next(unit for unit in UNITS if (known.astype(f"M8[{unit}]") == known).all())
        cells = np.datetime_as_string(cells, unit).tolist()
    texts = cells if isinstance(cells, list) else cells.astype(str).tolist()
    if (cells is texts and not NUMBER.fullmatch(texts[0])) or is_joined(texts):
        return to_dates(texts, what=what, place=table.place)
    if all(map(INTEGER.fullmatch, texts)):
        return np.array([int(text) for text in texts]), str
    stamps, _ = _numbers(cells, what, table)
    decimals = max(len(text.partition(".")[2]) for text in texts)
    if cells is not texts or decimals > PRECISION or any("e" in text.lower() for text in texts):
        decimals = max(len(_rounded(stamp).partition(".")[2]) for stamp in stamps)
    return stamps, partial(_write_number, decimals=decimals)


def _rounded(value: float) -> str:
    """A number with `PRECISION` digits at most, and without an exponent."""
    return np.format_float_positional(value, PRECISION, fractional=False, trim="-")


def _write_number(value: float, *, decimals: int) -> str:
    return f"{value:.{decimals}f}"
