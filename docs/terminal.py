"""A picture of a terminal while a real command runs in it, as SVG.

`pyte` keeps the screen of a terminal from the bytes that a program writes to it. Lines and braille
dots become shapes in the SVG, and words keep to their columns, so it looks alike with any font.
"""

import fcntl
import itertools
import os
import pty
import select
import struct
import termios
from collections.abc import Callable
from html import escape
from pathlib import Path

import pyte
import pyte.graphics
from pyte.screens import Char

COLUMNS, ROWS = 80, 24  # of the terminal
SETTLED_S = 0.03  # without new bytes: then a program has drawn its whole screen
CELL_WIDTH, CELL_HEIGHT, FONT_SIZE, MARGIN = 9, 19, 15, 14  # pixels
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
BACKGROUND, FRAME, FOREGROUND = "#16191d", "#4a505a", "#d7dade"
COLORS = {
    "black": "#4a505a", "red": "#f2777a", "green": "#5fc38f", "brown": "#e6b455",
    "blue": "#6cb6ff", "magenta": "#d699d6", "cyan": "#4fc1d0", "white": "#ffffff",
}  # fmt: skip
# Where a line character begins and ends in its cell, and its width in pixels.
LEFT, RIGHT, TOP, BOTTOM, CENTRE = (0, 0.5), (1, 0.5), (0.5, 0), (0.5, 1), (0.5, 0.5)
LINES = {
    "─": (LEFT, RIGHT, 1), "│": (TOP, BOTTOM, 1),
    "╭": (RIGHT, BOTTOM, 1), "╮": (LEFT, BOTTOM, 1), "╰": (RIGHT, TOP, 1), "╯": (LEFT, TOP, 1),
    "━": (LEFT, RIGHT, 3), "╸": (LEFT, CENTRE, 3), "╺": (CENTRE, RIGHT, 3),
}  # fmt: skip
DOT, DOT_BITS = 3.2, ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of braille, by row


def picture_of(command: str, *, cwd: Path, when: Callable[[str], bool]) -> str:
    """Run a command on a terminal to its end, and draw the first screen that is looked for.

    Args:
        command: words without blanks in them.
        cwd: the folder in which it runs.
        when: says of a screen's text whether it is looked for.

    Returns:
        an SVG.

    Raises:
        SystemExit: the command has failed, or ended without such a screen.
    """
    pyte.graphics.TEXT.update({2: "+blink", 22: "-blink"})  # pyte has no dim: blink stands for it
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    stream.feed(f"$ {command}\r\n".encode())
    pid, terminal = _start(command.split(), cwd=cwd)
    picture, ended = "", False
    while not ended:
        if picture or select.select([terminal], [], [], SETTLED_S)[0]:
            try:
                stream.feed(os.read(terminal, 65536))
            except OSError:  # how Linux says that the command has ended
                ended = True
        elif when("\n".join(screen.display)):
            picture = svg(screen)
    if os.waitpid(pid, 0)[1] or not picture:
        raise SystemExit("\n".join([f"no picture of {command}:", *screen.display]))
    return picture


def _start(words: list[str], *, cwd: Path) -> tuple[int, int]:
    """Start a command on a terminal of its own; returns its process id and the terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
            os.environ.pop(name, None)
        os.chdir(cwd)
        os.execvpe(words[0], words, {**os.environ, "TERM": "xterm-256color"})
    return pid, terminal


def svg(screen: pyte.Screen) -> str:
    """The screen down to its last line that is not empty."""
    lines = screen.display
    rows = max(row for row, line in enumerate(lines) if line.strip()) + 1
    width, height = COLUMNS * CELL_WIDTH + 2 * MARGIN, rows * CELL_HEIGHT + 2 * MARGIN
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">',
        f"<title>{escape(lines[0].strip())}</title>",
        f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8" '
        f'fill="{BACKGROUND}" stroke="{FRAME}"/>',
        f'<g transform="translate({MARGIN} {MARGIN})" font-family="{FONTS}" '
        f'font-size="{FONT_SIZE}" fill="none" stroke-linecap="butt">',
    ]
    for row in range(rows):
        cells = [screen.buffer[row][column] for column in range(COLUMNS)]
        alike = itertools.groupby(range(COLUMNS), key=lambda column: _look(cells[column]))
        for (kind, *look), columns in alike:
            found = list(columns)
            drawn.append(kind("".join(cells[at].data for at in found), found[0], row, *look))
    return "\n".join([*filter(None, drawn), "</g>", "</svg>", ""])


def _look(cell: Char) -> tuple[Callable[..., str], str, float, bool]:
    """What a cell has in common with the cells that are drawn together with it."""
    name = cell.fg.removeprefix("bright")
    color = FOREGROUND if name == "default" else COLORS.get(name, f"#{name}")
    is_braille = 0x2800 <= ord(cell.data) < 0x2900
    kind = _dots if is_braille else _lines if cell.data in LINES else _words
    return kind, color, 0.6 if cell.blink else 1, cell.bold


def _words(text: str, column: int, row: int, color: str, opacity: float, is_bold: bool) -> str:
    left = column + len(text) - len(text.lstrip())
    text = text.strip()
    if not text:
        return ""
    bold = ' font-weight="bold"' if is_bold else ""
    baseline = row * CELL_HEIGHT + 0.75 * CELL_HEIGHT
    return (
        f'<text x="{left * CELL_WIDTH}" y="{baseline:g}" textLength="{len(text) * CELL_WIDTH}" '
        f'fill="{color}" fill-opacity="{opacity}"{bold} xml:space="preserve">{escape(text)}</text>'
    )


def _lines(text: str, column: int, row: int, color: str, opacity: float, _: bool) -> str:
    def curve(character: str, column: int) -> str:
        first, last, thick = LINES[character]
        places = [
            f"{(column + x) * CELL_WIDTH:g} {(row + y) * CELL_HEIGHT:g}"
            for x, y in (first, CENTRE, last)
        ]
        return f'<path d="M{places[0]}Q{places[1]} {places[2]}" stroke-width="{thick}"/>'

    curves = "".join(curve(character, column + i) for i, character in enumerate(text))
    return f'<g stroke="{color}" stroke-opacity="{opacity}">{curves}</g>'


def _dots(text: str, column: int, row: int, color: str, opacity: float, _: bool) -> str:
    places = [
        f"M{(column + i + (x + 0.5) / 2) * CELL_WIDTH:g} {(row + (y + 0.5) / 4) * CELL_HEIGHT:g}"
        for i, character in enumerate(text)
        for y, bits in enumerate(DOT_BITS)
        for x, bit in enumerate(bits)
        if ord(character) & bit
    ]
    return (
        f'<path d="{"h.01".join(places)}h.01" stroke="{color}" stroke-opacity="{opacity}" '
        f'stroke-width="{DOT}" stroke-linecap="round"/>'
    )
