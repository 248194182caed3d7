"""What a file holds, as columns with names: text, an array of numpy, or a table of pandas."""

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sinlstm_dist.data.cells import is_number
from sinlstm_dist.data.dates import is_date
from sinlstm_dist.data.text import Text
from sinlstm_dist.errors import ConfigError, MissingPackage
from sinlstm_dist.words import first_of

Cells = list[str] | np.ndarray  # of one column: text, or what is no text any more
LARGE = 2**62  # below it, integers differ by what int64 holds
MISSING = {"", "na", "n/a", "nan", "null", "none", "-", "--", "?", "."}


class Table(Protocol):
    """The columns of a file.

    Args:
        names: of the columns; their numbers from 1 where the file has no names.
        is_named: whether the file has names.
        between_commas: whether commas separate its cells.
    """

    names: list[str]
    is_named: bool
    between_commas: bool

    def first(self, indices: Sequence[int]) -> dict[int, str]:
        """The first cell of some columns that is not missing, as text; "" if it is no time."""

    def columns(self, indices: Sequence[int]) -> list[Cells]:
        """The cells of some columns."""

    def with_numbers(self, indices: Sequence[int]) -> list[int]:
        """Those of these columns that hold a number, if only in one row."""

    def place(self, index: int) -> str:
        """Where in the file the cells of an index are, such as "line 3"."""


class TextTable:
    """A text file as a table.

    Args:
        text: the file.
        column: the column that the user asks for, which may be a name or a number; "" for none.

    Raises:
        ConfigError: the first line may hold names, and may hold values.
    """

    def __init__(self, text: Text, column: str) -> None:
        first, *others = text.head()
        second = (others[0] if others else []) + [""] * len(first)
        self._text = text
        self.is_named = _has_names(first, second, column, text.where)
        self.names = first if self.is_named else _positions(len(first))
        self.between_commas = text.separator == "," and len(first) > 1

    def first(self, indices: Sequence[int]) -> dict[int, str]:
        """The first cell of some columns that is not missing."""
        found: dict[int, str] = {}
        for rows in self._text.chunks(self.is_named):
            for index in indices:
                cells = (row[index].strip() for row in rows)
                if index not in found and (cell := _first(cells)):
                    found[index] = cell
            if len(found) == len(indices):
                break
        return {index: found.get(index, "") for index in indices}

    def columns(self, indices: Sequence[int]) -> list[Cells]:
        """The cells of some columns."""
        return [*self._text.columns(indices, self.is_named)]

    def with_numbers(self, indices: Sequence[int]) -> list[int]:
        """Those of these columns that hold a number, if only in one row."""
        left = list(indices)
        for rows in self._text.chunks(self.is_named) if left else ():
            left = [i for i in left if not any(is_number(row[i].strip()) for row in rows)]
            if not left:
                break
        return [index for index in indices if index not in left]

    def place(self, index: int) -> str:
        """Where in the file the cells of an index are."""
        return f"line {self._text.line(index + self.is_named)}"


class ArrayTable:
    """An .npy file as a table.

    Args:
        path: of the file.
        where: the file, for messages.

    Raises:
        ConfigError: the file holds no numbers of one or two dimensions.
    """

    is_named = False
    between_commas = False

    def __init__(self, path: Path, *, where: str) -> None:
        try:
            array = np.lib.format.open_memmap(path, mode="r")  # reads the asked column alone
        except (ValueError, EOFError) as error:
            raise ConfigError(
                f"{where}: cannot be read: it is no .npy array of numbers, as np.save writes them"
            ) from error
        if array.ndim not in (1, 2) or array.dtype.kind not in "fiu":
            raise ConfigError(
                f"{where}: holds {array.dtype} of shape {array.shape}: numbers of one dimension, "
                "or of two (time steps, columns), are needed"
            )
        self._array = array if array.ndim == 2 else array[:, None]
        self.names = _positions(self._array.shape[1])

    def first(self, indices: Sequence[int]) -> dict[int, str]:
        """No text: an array holds no dates, and its columns have no names."""
        return dict.fromkeys(indices, "")

    def columns(self, indices: Sequence[int]) -> list[Cells]:
        """The numbers of some columns."""
        columns = [self._array[:, index] for index in indices]
        return [
            cells.astype(np.float64) if cells.dtype.kind == "f" else _integers(cells)
            for cells in columns
        ]

    def with_numbers(self, indices: Sequence[int]) -> list[int]:
        """All of them."""
        return list(indices)

    def place(self, index: int) -> str:
        """Where in the file the numbers of an index are."""
        return f"row {index + 1}"


class FrameTable:
    """A .parquet file as a table; pandas reads it.

    Args:
        path: of the file.
        where: the file, for messages.

    Raises:
        ConfigError: the file cannot be read.
        MissingPackage: pandas or pyarrow is not installed.
    """

    is_named = True
    between_commas = False

    def __init__(self, path: Path, *, where: str) -> None:
        try:
            import pandas
            import pyarrow  # noqa: F401  pandas asks for it late
        except ImportError as error:
            name = error.name or "pandas"
            raise MissingPackage(where, package=name, install="sinlstm-dist[series]") from error
        try:
            frame: Any = pandas.read_parquet(path)
        except (ValueError, KeyError) as error:  # pyarrow's errors are such
            raise ConfigError(f"{where}: cannot be read: {error}") from error
        if not isinstance(frame.index, pandas.RangeIndex) or frame.index.name is not None:
            names = ["" if name is None else name for name in frame.index.names]
            frame = frame.reset_index(allow_duplicates=True, names=names)
        self._frame = frame
        self.names = [str(name) for name in self._frame.columns]

    def first(self, indices: Sequence[int]) -> dict[int, str]:
        """The first cell of some columns that is not missing."""
        columns = {index: self._frame.iloc[:, index] for index in indices}
        return {i: _first(map(str, cells[cells.notna()])) for i, cells in columns.items()}

    def columns(self, indices: Sequence[int]) -> list[Cells]:
        """Numbers and times as arrays, other cells as text."""
        return [self._column(index) for index in indices]

    def with_numbers(self, indices: Sequence[int]) -> list[int]:
        """Those of these columns that hold a number, if only in one row."""
        columns = {index: self._column(index) for index in indices}
        return [
            index
            for index, cells in columns.items()
            if (any(map(is_number, cells)) if isinstance(cells, list) else cells.dtype.kind in "fi")
        ]

    def place(self, index: int) -> str:
        """Where in the file the cells of an index are."""
        return f"row {index + 1}"

    def _column(self, index: int) -> Cells:
        series = self._frame.iloc[:, index]
        kind = series.dtype.kind
        if kind in "iu" and series.notna().all():
            return _integers(series.to_numpy())
        if kind in "fiu" or isinstance(next(iter(series[series.notna()]), None), Decimal):
            return series.to_numpy(np.float64, na_value=np.nan)
        if kind == "M" and series.dt.tz is None:
            return series.to_numpy()
        return [
            "" if cell is None else str(cell).strip()
            for cell in series.astype(object).where(series.notna(), None)
        ]


def _integers(cells: np.ndarray) -> np.ndarray:
    """Integers as int64, or as float64 if their differences might be too large for it."""
    is_small = not len(cells) or -LARGE < int(cells.min()) <= int(cells.max()) < LARGE
    return cells.astype(np.int64 if is_small else np.float64)


def _first(cells: Iterable[str]) -> str:
    """The first cell that is not missing; "" if all are."""
    return next((cell for cell in cells if cell.lower() not in MISSING), "")


def _positions(width: int) -> list[str]:
    return [str(number) for number in range(1, width + 1)]


def _is_value(cell: str) -> bool:
    """Whether a cell looks like a value or a time, and so less like a name."""
    has_digit, has_letter = re.search("[0-9]", cell), any(map(str.isalpha, cell))
    return bool(has_digit and not has_letter) or is_number(cell) or is_date(cell)


def _has_names(first: list[str], second: list[str], column: str, where: str) -> bool:
    """Whether the first line holds the columns' names.

    Raises:
        ConfigError: that is not certain.
    """
    counting, numbers = [str(index) for index in range(len(first))], _positions(len(first))
    words = [index for index, cell in enumerate(first) if not _is_value(cell)]
    by_number = len(first) > 1 and first[0] == "" and first[1:] in (counting[:-1], numbers[:-1])
    if len(words) == len(first) or by_number:
        return True  # the latter as pandas and R write an index and columns without names
    if any(_is_value(second[i]) and first[i].lower() not in MISSING for i in words):
        return True
    if column in first and column not in numbers:
        return True
    if first == ["0"] and column == "1":
        return False
    if (
        first != counting
        and (not column or column not in first)
        and all(first[i] == second[i] != "" for i in words)
    ):
        return False  # no words, or such as the next line repeats
    advice = "put a line of names above it, or words in place of its numbers"
    if first == ["0"]:
        advice = "set data.column=0 if it is a name, data.column=1 if it is a value"
    raise ConfigError(
        f"{where}: the first line, {first_of(first)}, may hold names or values: {advice}"
    )
