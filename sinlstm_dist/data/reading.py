"""One column of a file: its values, oldest first, and their times."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sinlstm_dist.data.times import Times
from sinlstm_dist.errors import ConfigError

DELIMITERS = ",;\t"
TEXT, BINARY = (".csv", ".tsv", ".txt"), ".npy"


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
    """The values of `read_column`, whose arguments and errors it has.

    Returns:
        (N,) float64, all of them finite.

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
    """Read one column of a file.

    Args:
        path: .csv, .tsv or .txt with one line per time step, or .npy of one or two dimensions.
        column: its name, or its number from 1 where columns have no names; "" for the only one.
            A first line in which all cells are words, or one is `column`, holds names.

    Raises:
        ConfigError: names the file, and the row that cannot be used.
    """
    path = Path(path)
    try:
        if path.suffix.lower() in TEXT:
            values = _read_text(path, column)
        elif path.suffix.lower() == BINARY:
            values = _read_binary(path, column)
        else:
            raise ConfigError(
                f'data.source={path}: use "sine", or a file that ends in '
                f"{', '.join((*TEXT, BINARY))}"
            )
    except OSError as error:
        raise ConfigError(f"data.source={path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error, ValueError, EOFError) as error:
        raise ConfigError(f"data.source={path}: cannot be read: {error}") from error
    return Column(column, values, None, "")


def _read_text(path: Path, column: str) -> np.ndarray:
    rows = _rows(path)
    if not rows:
        raise ConfigError(f"data.source={path}: holds no values")
    _, first = rows[0]
    numbers = [str(number) for number in range(1, len(first) + 1)]
    is_named = column in first and column not in numbers  # a year, for instance
    has_names = is_named or not any(_is_number(cell) for cell in first)
    index = _choose(first if has_names else numbers, column, path)
    cells = [(line, row[index] if index < len(row) else "") for line, row in rows[has_names:]]
    return np.array([_number(cell, f"{path}, row {line}") for line, cell in cells])


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Number, from 1, and cells of each line, without the lines at the top that begin with #."""
    lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    comments = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    lines = lines[comments:]
    delimiter = max(DELIMITERS, key=lines[0].count) if lines else ","
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    return [(comments + reader.line_num, [cell.strip() for cell in row]) for row in reader]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _choose(names: Sequence[str], column: str, path: Path) -> int:
    if column in names:
        return names.index(column)
    if not column and len(names) == 1:
        return 0
    wrong = f"has no column {column}" if column else "has several columns"
    raise ConfigError(f"data.source={path}: {wrong}: set data.column to one of {', '.join(names)}")


def _number(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        what = f'"{cell}" is not a number' if cell else "the value is missing"
        raise ConfigError(f"data.source={where}: {what}") from None
    if not math.isfinite(value):
        raise ConfigError(f"data.source={where}: {cell} is not a number to learn from")
    return value


def _read_binary(path: Path, column: str) -> np.ndarray:
    array = np.load(path, allow_pickle=False)
    if array.ndim not in (1, 2) or array.dtype.kind not in "fiu":
        raise ConfigError(
            f"data.source={path}: holds {array.dtype} of shape {array.shape}: numbers of one "
            "dimension, or of two (time steps, columns), are needed"
        )
    columns = array.reshape(len(array), -1)
    names = [str(number) for number in range(1, columns.shape[1] + 1)]
    values = columns[:, _choose(names, column, path)].astype(np.float64)
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        _number(str(values[wrong[0]]), f"{path}, row {wrong[0] + 1}")  # raises
    return values
