"""A text file as records of cells, if exactly one separator fits all lines."""

import bz2
import csv
import gzip
import io
import lzma
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from sinlstm_dist.errors import ConfigError
from sinlstm_dist.words import counted

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
BLANKS = " "  # separate cells where no other separator is in the file's first lines
CHUNK = 500  # records at a time; 20,000 take three times as long (2026-11-26)


@dataclass(frozen=True)
class Text:
    """A text file, and how its lines are cut into cells.

    Args:
        where: the file, for messages.
        content: in UTF-8, without a byte order mark and without blank lines at the end.
        top: lines above the first record.
        separator: of the cells.
    """

    where: str
    content: bytes
    top: int
    separator: str

    def head(self, most: int = 2) -> list[list[str]]:
        """The first records, their cells without blanks around them.

        Raises:
            ConfigError: quotes do not enclose whole cells.
        """
        return [[cell.strip() for cell in record] for _, record in islice(self._numbered(), most)]

    def widths(self) -> list[int]:
        """The numbers of cells of the first records; [1] if their quotes do not allow any."""
        try:
            return [len(record) for record in self.head()]
        except ConfigError:
            return [1]

    def chunks(self, start: int) -> Iterator[list[list[str]]]:
        """Lists of records, from the record `start` on.

        Raises:
            ConfigError: names the line that has more or fewer cells than the first.
        """
        width = len(self.head(1)[0])
        reader = islice(self._reader(), start, None)
        while rows := self._next(reader):
            if set(map(len, rows)) != {width}:
                self._refuse_width(width)
            yield rows

    def columns(self, indices: Sequence[int], start: int) -> list[list[str]]:
        """The cells of some columns; `start` and errors as for `chunks`."""
        columns: list[list[str]] = [[] for _ in indices]
        for rows in self.chunks(start):
            for column, index in zip(columns, indices, strict=True):
                column += [row[index].strip() for row in rows]
        return columns

    def line(self, record: int) -> int:
        """The number of the line on which a record begins."""
        return next(islice(self._numbered(), record, None))[0]

    def fits(self) -> bool:
        """Whether all records have as many cells as the first."""
        try:
            return len(set(map(len, self._reader()))) == 1
        except csv.Error:
            return False

    def _next(self, reader: Iterator[list[str]]) -> list[list[str]]:
        try:
            return list(islice(reader, CHUNK))
        except csv.Error:
            for _ in self._numbered():
                pass
            raise

    def _numbered(self) -> Iterator[tuple[int, list[str]]]:
        """Each record, and the number of the line on which it begins."""
        reader, line = self._reader(), self.top + 1
        try:
            for record in reader:
                yield line, record
                line = self.top + reader.line_num + 1
        except csv.Error as error:
            raise ConfigError(
                f"{self.where}: the record that begins in line {line} has quotes that do not "
                f"enclose whole cells: {error}"
            ) from error

    def _refuse_width(self, width: int) -> None:
        is_alone = (width, self.separator) == (1, ",")
        decimal = '; a first line "sep=;" if the commas are decimal' if is_alone else ""
        for line, record in self._numbered():
            if len(record) != width:
                raise ConfigError(
                    f"{self.where}: line {line} has {counted(len(record), 'cell')} and line "
                    f"{self.top + 1} has {width}, where {SEPARATORS.get(self.separator, 'blanks')} "
                    "separates them: every line must have as many as the first"
                    f"{decimal}"
                )

    def _reader(self) -> Any:
        """A reader of csv, whose type has no name before Python 3.13."""
        lines: Iterator[str] = io.TextIOWrapper(io.BytesIO(self.content), encoding="utf-8")
        lines = islice(lines, self.top, None)
        if self.separator == BLANKS:
            lines = (re.sub(" +", " ", line.strip(" \n")) for line in lines)
            return csv.reader(lines, delimiter=BLANKS, strict=True)
        if b'" ' in self.content:  # before a separator, which csv would not take
            end = re.compile(f'" +(?=[{re.escape(self.separator)}\n])')
            lines = (end.sub('"', line) for line in lines)
        return csv.reader(lines, delimiter=self.separator, skipinitialspace=True, strict=True)


def read_text(path: Path, *, where: str, encoding: str, column: str) -> Text:
    """Read a text file, packed or not, and find the separator of its cells.

    Args:
        path: of the file.
        where: the file, for messages.
        encoding: of its characters.
        column: its name decides where two separators fit; "" for no name.

    Raises:
        ConfigError: the file holds no such text, or two separators fit it.
        OSError, EOFError, zlib.error, lzma.LZMAError: the file cannot be read.
    """
    with OPENERS.get(path.suffix.lower(), open)(path, "rb") as file:
        content = _to_utf8(file.read(), where=where, encoding=encoding)
    separator = ""
    for top, line in enumerate(io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")):
        if excels := re.fullmatch(r"sep=(.)\n", line):
            separator = excels[1]
        elif not line.startswith("#") and line.strip():
            return _cut(Text(where, content, top, separator), column)
    raise ConfigError(f"{where}: holds no values")


def _to_utf8(raw: bytes, *, where: str, encoding: str) -> bytes:
    """The text without a byte order mark and without blank lines at the end."""
    try:
        text = raw.decode(encoding)
    except LookupError:
        raise ConfigError(f"data.encoding={encoding}: is no encoding that Python knows") from None
    except UnicodeError as error:
        line = raw.count(b"\n", 0, getattr(error, "start", 0)) + 1
        raise ConfigError(
            f"{where}: line {line} is not {encoding}: set data.encoding to the file's, such as "
            "latin-1, cp1252 or utf-16"
        ) from error
    if "\0" in text:
        raise ConfigError(
            f"{where}: holds NUL characters, so it is no text in {encoding}: set data.encoding to "
            "the file's, such as utf-16"
        )
    return text.removeprefix("\ufeff").rstrip(" \r\n").encode()


def _cut(text: Text, column: str) -> Text:
    """The same text with the separator that fits; arguments and errors as for `read_text`."""
    if text.separator:
        return text
    texts = [replace(text, separator=separator) for separator in SEPARATORS]
    widths = {t.separator: t.widths() for t in texts}
    alike = [t for t in texts if min(widths[t.separator]) == max(widths[t.separator]) > 1]
    if len(alike) > 1:
        alike = [t for t in alike if t.fits()] or alike[:1]
    if len(alike) > 1 and column:
        alike = [t for t in alike if column in t.head()[0]] or alike
    if len(alike) > 1:
        found = " and ".join(SEPARATORS[t.separator] for t in alike)
        one = next(mark for mark in ";|," if mark in [t.separator for t in alike])
        raise ConfigError(
            f"{text.where}: {found} can both separate the cells: write sep={one} as the first line "
            f"to choose the {SEPARATORS[one].removeprefix('a ')}"
        )
    if alike:
        return alike[0]
    widest = max(texts, key=lambda t: sum(widths[t.separator]))
    if sum(widths[widest.separator]) > 2:
        return widest  # its lines differ: whoever reads them is told so
    blanks = replace(text, separator=BLANKS)
    return blanks if min(blanks.widths()) > 1 else texts[0]
