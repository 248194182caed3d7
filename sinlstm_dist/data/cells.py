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
THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2},[0-9]{3}")
NOT_OF_NUMBERS = re.compile(r"[^0-9+\-.eE\n]")
SHOWN = 3  # of many wrong cells


def is_number(cell: str) -> bool:
    """Whether a cell holds a number, with a decimal point or a decimal comma."""
    return bool(NUMBER.fullmatch(cell) or WITH_COMMA.fullmatch(cell))


def to_numbers(
    cells: Sequence[str], *, what: str, place: Callable[[int], str]
) -> tuple[np.ndarray, bool]:
    """The cells of one column as float64, and whether they have decimal commas.

    Args:
        what: the file and the column, for messages.
        place: says where in the file the cell of an index is, such as "line 3".

    Raises:
        ConfigError: names the cells that are not certainly finite numbers.
    """
    values = _plain(cells)
    if values is not None:
        return values, False
    commas = [index for index, cell in enumerate(cells) if "," in cell]
    refuse([i for i, cell in enumerate(cells) if not _is_finite(cell)], cells, what, place)
    if any("." in cell for cell in cells):
        refuse(commas, cells, what, place)
    if all(THOUSANDS.fullmatch(cells[index]) for index in commas):
        cell = cells[commas[0]]
        raise ConfigError(
            f'{what}: "{cell}" in {place(commas[0])} may mean {cell.replace(",", ".")} or '
            f"{cell.replace(',', '')}: write the numbers without commas"
        )
    return np.array([float(cell.replace(",", ".")) for cell in cells]), True


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
