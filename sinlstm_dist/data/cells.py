"""Cells of text as numbers: decimal points, or decimal commas where nothing else can be meant."""

import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from sinlstm_dist.errors import ConfigError
from sinlstm_dist.words import counted, first_of

# float() also takes 1_000, inf, nan, and the digits of other scripts.
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
WITH_COMMA = re.compile(r"[+-]?[0-9]*,[0-9]+(?:[eE][+-]?[0-9]+)?")
THOUSANDS = {mark: re.compile(rf"[+-]?[1-9][0-9]{{0,2}}(?:\{mark}[0-9]{{3}})+") for mark in ".,"}
MARKS = {".": "points", ",": "commas"}
NOT_OF_NUMBERS = re.compile(r"[^0-9+\-.eE\n]")
SHOWN = 3  # of many wrong cells


def is_number(cell: str) -> bool:
    """Whether a cell holds a number, with a decimal point or a decimal comma."""
    return bool(NUMBER.fullmatch(cell) or WITH_COMMA.fullmatch(cell))


def to_numbers(
    cells: Sequence[str], *, what: str, place: Callable[[int], str], between_commas: bool
) -> tuple[np.ndarray, bool]:
    """The cells of one column as float64, and whether they have decimal commas.

    Args:
        what: the file and the column, for messages.
        place: says where in the file the cell of an index is, such as "line 3".
        between_commas: whether commas separate the cells, so that points are decimal.

    Raises:
        ConfigError: names the cells that are not certainly finite numbers.
    """
    for mark, is_decimal in ((".", between_commas), (",", False)):
        _refuse_thousands(cells, mark, what, place, is_decimal=is_decimal)
    values = _plain(cells)
    if values is not None:
        return values, False
    commas = [index for index, cell in enumerate(cells) if "," in cell]
    refuse([i for i, cell in enumerate(cells) if not _is_finite(cell)], cells, what, place)
    if any("." in cell for cell in cells):
        refuse(commas, cells, what, place)
    return np.array([float(cell.replace(",", ".")) for cell in cells]), True


def _refuse_thousands(
    cells: Sequence[str],
    mark: str,
    what: str,
    place: Callable[[int], str],
    *,
    is_decimal: bool,
) -> None:
    """Raise an error if every cell with this mark may be a whole number of thousands.

    Where the mark is decimal, only cells without it make that likely: a program that writes three
    decimals writes them in every cell.
    """
    marked = [index for index, cell in enumerate(cells) if mark in cell]
    if is_decimal and len(marked) == len(cells):
        return
    if not marked or not all(THOUSANDS[mark].fullmatch(cells[index]) for index in marked):
        return
    cell = cells[marked[0]]
    readings = [cell.replace(mark, ".")] if cell.count(mark) == 1 else []
    readings.append(cell.replace(mark, ""))
    raise ConfigError(
        f'{what}: "{cell}" in {place(marked[0])} may mean {" or ".join(readings)}: write thousands '
        f"without {MARKS[mark]}, or decimals with a fourth digit"
    )


def refuse(
    wrong: Sequence[int] | np.ndarray,
    cells: Sequence[str] | np.ndarray,
    what: str,
    place: Callable[[int], str],
) -> None:
    """Raise the error that names the cells of these indices, if there are any."""
    if not len(wrong):
        return
    shown = [f'"{cells[index]}" in {place(index)}' for index in wrong[: SHOWN + 1]]
    names = first_of(shown, SHOWN, total=len(wrong))
    raise ConfigError(
        f"{what} has {counted(len(wrong), 'cell')} without a number: {names}: "
        f"fill {'it' if len(wrong) == 1 else 'them'} in, or take the rows out of the file"
    )


def _plain(cells: Sequence[str]) -> np.ndarray | None:
    """The cells as numbers, if all of them are finite ones without commas."""
    if NOT_OF_NUMBERS.search("\n".join(cells)):
        return None
    try:
        values = np.fromiter(map(float, cells), np.float64, len(cells))
    except ValueError:
        return None
    return values if np.isfinite(values).all() else None


def _is_finite(cell: str) -> bool:
    return is_number(cell) and math.isfinite(float(cell.replace(",", ".")))
