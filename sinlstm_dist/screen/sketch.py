"""Curves drawn in characters, for a terminal.

>>> spark([1e-1, 1e-2, 1e-3])
'█▅▁'
"""

import math
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
DOT_ROWS, DOT_COLUMNS = 4, 2  # of a braille character
DOT_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row and column
EMPTY = 0x2800  # the braille character without a dot


def spark(values: Sequence[float], *, width: int = 40) -> str:
    """Positive numbers as a line of blocks, on a logarithmic scale.

    Args:
        values: any number; values that are not positive and finite are left out.
        width: characters at most; more values are thinned out evenly, and the last one is kept.
    """
    levels = [math.log(value) for value in values if 0 < value < math.inf]
    if len(levels) > width:
        levels = [levels[round(i * (len(levels) - 1) / (width - 1))] for i in range(width)]
    if not levels:
        return ""
    low, high = min(levels), max(levels)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((level - low) * scale)] for level in levels)


def curve(
    values: Sequence[float], *, width: int, height: int, low: float, high: float
) -> list[str]:
    """A curve as lines of braille characters and blanks.

    Args:
        values: at least one, evenly spaced; a value outside the range is drawn at its edge.
        width: characters.
        height: lines.
        low: value at the lower edge.
        high: value at the upper edge, above `low`.
    """
    cells = [[0] * width for _ in range(height)]
    columns, rows = width * DOT_COLUMNS, height * DOT_ROWS
    previous = None
    for column in range(columns):
        value = _between(values, column * (len(values) - 1) / (columns - 1))
        if not math.isfinite(value):
            previous = None
            continue
        row = round(min(1.0, max(0.0, (high - value) / (high - low))) * (rows - 1))
        start = row if previous is None else previous + (row > previous) - (row < previous)
        for dot in range(min(start, row), max(start, row) + 1):  # a steep curve has no gaps
            bits = DOT_BITS[dot % DOT_ROWS]
            cells[dot // DOT_ROWS][column // DOT_COLUMNS] |= bits[column % DOT_COLUMNS]
        previous = row
    return ["".join(chr(EMPTY + cell) if cell else " " for cell in line) for line in cells]


def _between(values: Sequence[float], place: float) -> float:
    """The value at a place between two indices."""
    left = min(int(place), len(values) - 1)
    right = min(left + 1, len(values) - 1)
    return values[left] + (place - left) * (values[right] - values[left])
