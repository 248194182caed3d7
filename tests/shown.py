"""Whether a command printed what a page shows.

Words are compared, so a table may wrap elsewhere. A line `...` stands for any number of words.
Whole numbers must be equal, fractions nearly; speeds, durations, tiny differences and the moment of
a kill may be any. Equal sums of hexadecimal digits must be equal, and different ones different.
"""

import re
import socket
from collections.abc import Sequence

Line = str
Word = tuple[str, Line]  # with the line that it stands in

UNITS = {"ms", "s", "us", "MB/s", "samples/s", "thread", "threads"}

_TOKEN = re.compile(
    r"(?P<fraction>[-+]?\d[\d,]*(?:\.\d+(?:e[-+]?\d+)?|e[-+]?\d+))"
    r"|(?P<digest>\b(?:[0-9a-f]{64}|[0-9a-f]{16})\b)"
    r"|(?P<cpu>AVX-512|AVX2|plain)"
    r"|(?P<whole>[-+]?\d[\d,]*)"
    r"|(?P<bars>[▁▂▃▄▅▆▇█]+)"
    r"|(?P<text>[^\d▁-█+-]+|.)"
)


def compare(shown: str, printed: str) -> None:
    """Check that `printed` is what `shown` says.

    Raises:
        AssertionError: names the first line that differs.
    """
    have = _words(re.sub(rf"\b{re.escape(socket.gethostname())}\b", "vm", printed))
    parts = [_words(part) for part in re.split(r"^\.\.\.\n?", shown, flags=re.MULTILINE)]
    digests: dict[str, str] = {}
    position = 0
    for number, part in enumerate(parts):
        is_first, is_last = number == 0, number == len(parts) - 1
        if not part and len(parts) > 1:  # the page begins or ends with `...`
            continue
        latest = len(have) - len(part)
        earliest = latest if is_last and not is_first else position
        position = _find(part, have, earliest, position if is_first else latest, digests)
        position += len(part)
        if is_last and position < len(have):
            raise AssertionError(f"the page does not have\n  {have[position][1]}")
    assert len(set(digests.values())) == len(digests), f"the page's sums differ, not {digests}"


def _find(
    part: Sequence[Word], have: Sequence[Word], first: int, last: int, digests: dict[str, str]
) -> int:
    """Where `part` begins in `have`, at `first` or later, at `last` or before."""
    furthest, missing = -1, (part[0][1] if part else "", "nothing more")
    for start in range(max(first, 0), last + 1):
        found = dict(digests)
        for offset in range(len(part)):
            place = start + offset
            if place >= len(have) or not _same(part, offset, have[place][0], found):
                break
        else:
            digests.update(found)
            return start
        if offset > furthest:
            furthest = offset
            missing = (part[offset][1], have[place][1] if place < len(have) else "its end")
    raise AssertionError(f"the page says\n  {missing[0]}\nprinted was\n  {missing[1]}")


def _same(part: Sequence[Word], offset: int, word: str, digests: dict[str, str]) -> bool:
    """Whether a word of the page stands for a printed word."""
    wanted = part[offset][0]
    if wanted.rstrip("s") == "thread" == word.rstrip("s"):
        return True
    before = [each[0] for each in part[max(0, offset - 2) : offset]]
    after = part[offset + 1][0].rstrip(".,;:)") if offset + 1 < len(part) else ""
    moment = before[-1:] == ["step"] or before == ["in", "epoch"]
    varies = after in UNITS or moment or before[-1:] == ["(rank"]  # the slowest one
    left, right = _tokens(wanted), _tokens(word)
    return len(left) == len(right) and all(
        kind == other and _equal(kind, a, b, digests, varies=varies)
        for (kind, a), (other, b) in zip(left, right, strict=True)
    )


def _tokens(word: str) -> list[tuple[str, str]]:
    word = re.sub(r"step-\d{8}", "step-", word)
    return [(str(match.lastgroup), match[0]) for match in _TOKEN.finditer(word)]


def _equal(kind: str, a: str, b: str, digests: dict[str, str], *, varies: bool) -> bool:
    if kind in ("cpu", "bars"):
        return True
    if kind == "digest":
        return digests.setdefault(a, b) == b
    if kind == "text":
        return a == b
    x, y = (float(number.replace(",", "")) for number in (a, b))
    if varies or (kind == "whole" and x >= 100_000):
        return True
    if kind == "whole":
        return x == y
    return abs(x - y) <= max(0.1 * abs(x), 0.02) if abs(x) >= 1e-3 else abs(y) < 1e-2


def _words(text: str) -> list[Word]:
    return [(word, line) for line in text.splitlines() for word in line.split()]
