"""Prints a command's tables, facts and errors.

All text goes through a `Screen`, which shows control characters as text (`\\x1b`).
"""

import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rich import box
from rich.console import Console
from rich.styled import Styled
from rich.table import Table
from rich.text import Text

from sinlstm_dist import status
from sinlstm_dist.screen import stream
from sinlstm_dist.screen.stream import Stream

WIDEST = 10_000  # columns, of a table whose cells are not wrapped
COLUMNS, LINES = 80, 25  # if the terminal does not tell, or tells nonsense


def visible(text: str) -> str:
    """`text` with Python escapes for characters that do not print; line ends stay.

    >>> visible("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


class Screen(Console):
    """rich's console on a `Stream`; text is shown as it is, without markup and highlighting.

    Args:
        stream: the file that it writes to.
        width: columns; None for those of the terminal.
    """

    def __init__(self, stream: Stream, *, width: int | None = None) -> None:
        self._fixed_width = width
        columns, lines = _terminal_size()
        super().__init__(
            file=stream,  # type: ignore[arg-type]  # it has the methods that rich calls
            force_terminal=stream.isatty(),
            force_jupyter=False,
            width=width or columns,
            height=lines,
            highlight=False,
            markup=False,
            emoji=False,
        )
        self.is_interactive = self.is_terminal and not status.is_dumb()

    def fit(self, *, free: int) -> None:
        """Adopt the terminal's current size, less `free` columns."""
        columns, lines = _terminal_size()
        self.size = (self._fixed_width or max(1, columns - free), lines)

    def sayable(self, text: str) -> str:
        """`text` in the stream's encoding, with escapes for control characters."""
        return visible(text).encode(self.encoding, "backslashreplace").decode(self.encoding)

    def can_say(self, text: str) -> bool:
        """Whether the stream's encoding has every character of `text`."""
        return self.sayable(text) == text

    def say(self, text: str | Text) -> None:
        """Print lines of text: wrapped between words on a terminal, and as they are in a file."""
        if isinstance(text, str) and not self.is_terminal:
            # What rich would write, without 20 us of layout (2026-11); no markup is on.
            self.file.write(f"{self.sayable(text)}\n")
        else:
            self.print(text, soft_wrap=not self.is_terminal)

    def render_str(self, text: str, **options: Any) -> Text:
        """Called by rich for every text."""
        return super().render_str(self.sayable(text), **options)


def _terminal_size() -> tuple[int, int]:
    """Columns and lines: COLUMNS and LINES if they are set, else the terminal's."""
    size = shutil.get_terminal_size((COLUMNS, LINES))
    columns = size.columns if 0 < size.columns <= WIDEST else COLUMNS
    return columns, size.lines if 0 < size.lines <= WIDEST else LINES


def show_error(message: str) -> None:
    """Print one error on standard error, one line per problem.

    Lines that begin with a space are code to copy.
    """
    screen = Screen(Stream("stderr"))
    for line in message.split("\n"):
        if line.startswith(" "):
            screen.print(Text(screen.sayable(line.lstrip())), soft_wrap=True)
            continue
        screen.say(Text.assemble(("error:", "red"), " ", screen.render_str(line)))


def show_traceback(text: str) -> None:
    """Print the traceback of an unforeseen error on standard error."""
    Screen(Stream("stderr")).print(text, soft_wrap=True, end="")


def show_text(text: str) -> None:
    """Print `text`, line ends included."""
    output = Stream("stdout")
    output.write(Screen(output).sayable(text))


def show_sentence(text: str) -> None:
    """Print `text` and a line end: wrapped between words on a terminal, not in a file."""
    Screen(Stream("stdout")).say(text)


def show_toml(text: str) -> None:
    """Print TOML for a program: always UTF-8, with escapes for characters that do not print."""
    output = Stream("stdout")
    output.encoding = "utf-8"
    output.write(re.sub(r"[^\n]", _toml_character, text))


def _toml_character(match: re.Match[str]) -> str:
    character = match[0]
    return character if character.isprintable() else f"\\U{ord(character):08X}"


def show_facts(facts: Mapping[str, str]) -> None:
    """Print the facts about a command's work, one line per fact."""
    screen = Screen(Stream("stdout"))
    if screen.is_terminal:
        screen.print(fact_table(facts))
    else:
        screen.say(fact_lines(facts))


def fact_lines(facts: Mapping[str, str]) -> str:
    """Facts for a file, one line per fact."""
    width = max(len(name) for name in facts)
    return "\n".join(f"{name:<{width}}  {fact}" for name, fact in facts.items())


def fact_table(facts: Mapping[str, str]) -> Table:
    """Facts for a terminal, wrapped between words."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        table.add_row(name, fact)
    return table


def width_of_output() -> int:
    """Columns of the terminal, or those that a table in a file may have."""
    return Screen(Stream("stdout")).width


def show_table(
    rows: Sequence[Mapping[str, str]],
    *,
    numbers: Collection[str] = (),
    colours: Mapping[str, str] = MappingProxyType({}),
    wrap: bool = False,
) -> None:
    """Print a table; the first row's keys are the headings.

    Args:
        rows: at least one; headings and cells may have several lines.
        numbers: the headings of columns that are aligned to the right.
        colours: on a terminal, the colour of cells with one of these texts.
        wrap: make the table fit the terminal, or 80 columns in a file: two blanks between columns,
            not three, and cells wrapped, except numbers. Without it the table is as wide as its
            cells.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=wrap)
    for heading in rows[0]:
        if heading in numbers:
            table.add_column(heading, justify="right", no_wrap=True)
        else:
            table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Styled(cell, colours.get(cell, "")) for cell in row.values()))
    Screen(Stream("stdout"), width=None if wrap else WIDEST).print(table)


def report_lost_output() -> bool:
    """Say on standard error if text for standard output was lost.

    A program calls it when it has nothing more to print.

    Returns:
        whether text was lost.
    """
    stream.settle()
    why = stream.lost_output()
    if why:
        show_error(f"standard output: {why}: what could not be written there is lost")
    return bool(why)
