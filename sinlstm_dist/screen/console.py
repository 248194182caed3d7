"""What a person sees of a command: its tables, facts and errors, as a stream can show them.

All text enters a `Screen`, which shows control characters as text (`\\x1b`), whoever wrote them.
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

from sinlstm_dist.screen import stream
from sinlstm_dist.screen.stream import Stream

WIDEST = 10_000  # columns; a table that is not to be wrapped gets them
COLUMNS, LINES = 80, 25  # if the terminal does not say, or says nonsense


def visible(text: str) -> str:
    """`text` with each character that does not print, but line ends, written as Python would.

    >>> visible("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


class Screen(Console):
    """rich's console on a `Stream`, with text as it is: no markup, no highlighting, no tricks.

    Args:
        stream: where it writes to.
        width: columns; None for those of the terminal.
    """

    def __init__(self, stream: Stream, *, width: int | None = None) -> None:
        self._fixed_width = width
        columns, lines = _terminal_size()
        super().__init__(
            file=stream,  # type: ignore[arg-type]  # it has what rich calls of a file
            force_terminal=stream.isatty(),
            force_jupyter=False,
            width=width or columns,
            height=lines,
            highlight=False,
            markup=False,
            emoji=False,
        )
        self.is_interactive = self.is_terminal and not self.is_dumb_terminal

    def fit(self, *, free: int) -> None:
        """Adopt the terminal's current size, less `free` columns."""
        columns, lines = _terminal_size()
        self.size = (self._fixed_width or max(1, columns - free), lines)

    def sayable(self, text: str) -> str:
        """`text` as the stream's encoding can say it, control characters as text."""
        return visible(text).encode(self.encoding, "backslashreplace").decode(self.encoding)

    def can_say(self, text: str) -> bool:
        """Whether the stream's encoding has all characters of `text`."""
        return self.sayable(text) == text

    def render_str(self, text: str, **options: Any) -> Text:
        """What rich calls for every text that it is given."""
        return super().render_str(self.sayable(text), **options)


def _terminal_size() -> tuple[int, int]:
    """Columns and lines, from COLUMNS and LINES or of the terminal."""
    size = shutil.get_terminal_size((COLUMNS, LINES))
    columns = size.columns if 0 < size.columns <= WIDEST else COLUMNS
    return columns, size.lines if 0 < size.lines <= WIDEST else LINES


def show_error(message: str) -> None:
    """Print one error on standard error, one line per problem."""
    screen = Screen(Stream("stderr"))
    for line in message.split("\n"):
        text = Text.assemble(("error:", "red"), " ", screen.render_str(line))
        screen.print(text, soft_wrap=True)


def show_traceback(text: str) -> None:
    """Print Python's account of an error that nobody foresaw on standard error."""
    Screen(Stream("stderr")).print(text, soft_wrap=True, end="")


def show_text(text: str) -> None:
    """Print `text`, line ends included."""
    output = Stream("stdout")
    output.write(Screen(output).sayable(text))


def show_toml(text: str) -> None:
    """Print TOML for a program to read: always UTF-8, what does not print as TOML's escapes."""
    output = Stream("stdout")
    output.encoding = "utf-8"
    output.write(re.sub(r"[^\n]", _toml_character, text))


def _toml_character(found: re.Match[str]) -> str:
    character = found[0]
    return character if character.isprintable() else f"\\U{ord(character):08X}"


def show_facts(facts: Mapping[str, str]) -> None:
    """Print what a command is about, one line per fact."""
    Screen(Stream("stdout")).print(fact_lines(facts), soft_wrap=True)


def fact_lines(facts: Mapping[str, str]) -> str:
    """The facts below each other, one line per fact."""
    width = max(len(name) for name in facts)
    return "\n".join(f"{name:<{width}}  {fact}" for name, fact in facts.items())


def show_table(
    rows: Sequence[Mapping[str, str]],
    *,
    numbers: Collection[str] = (),
    colours: Mapping[str, str] = MappingProxyType({}),
    wrap: bool = False,
) -> None:
    """Print rows of cells below their headings, the first row's keys.

    Args:
        rows: at least one; headings and cells may have several lines.
        numbers: the headings of columns that are aligned to the right.
        colours: of cells with one of these texts, on a terminal.
        wrap: whether cells are broken to fit the terminal, or 80 columns of a file; otherwise
            the table is as wide as its cells.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in rows[0]:
        is_number = heading in numbers
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Styled(cell, colours.get(cell, "")) for cell in row.values()))
    Screen(Stream("stdout"), width=None if wrap else WIDEST).print(table)


def tell_losses() -> bool:
    """Say on standard error that text for standard output was lost, if any was; say whether.

    A program calls it when it has nothing more to print.
    """
    stream.settle()
    why = stream.lost_output()
    if why:
        show_error(f"standard output: {why}: what could not be written there is lost")
    return bool(why)
