"""Counts and lists, in messages and tables."""

import math
from collections.abc import Sequence


def counted(number: float, noun: str, form: str = ",") -> str:
    """`number` and its noun, in the plural unless it reads "1".

    >>> counted(1, "epoch"), counted(10_000, "step"), counted(2, "process")
    ('1 epoch', '10,000 steps', '2 processes')

    Args:
        form: how the number is written, as in a format string.
    """
    text = f"{number:{form}}"
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{text} {noun if text == '1' else plural}"


def first_of(things: Sequence[str], most: int = 3, *, total: int | None = None) -> str:
    """The first things of a list that may be long.

    >>> first_of(["a", "b", "c", "d"]), first_of(["a", "b", "c", "d", "e"])
    ('a, b, c, d', 'a, b, c, and 2 more')

    Args:
        total: how many things there are, if the list has only the first `most + 1` of them.
    """
    total = len(things) if total is None else total
    if total <= most + 1:  # "1 more" would be no shorter
        return ", ".join(things)
    return f"{', '.join(things[:most])}, and {total - most} more"


def decimals(largest: float, *, spread: float = 0.0, below: float = 1e15) -> str:
    """The format of all numbers of a table, by the size of the largest.

    >>> decimals(8.1e7), decimals(113.4), decimals(0.04), decimals(0.0003), decimals(1e16)
    ('.0f', '.4f', '.4f', '.6f', '.6g')
    >>> decimals(8.1e7, spread=2.5), decimals(8.1e7, spread=1e6), decimals(1e16, spread=4e6)
    ('.2f', '.0f', '.13g')

    Args:
        spread: from the smallest number to the largest; its first three digits are shown, unless
            the numbers had more than 15 digits then.
        below: numbers of this size and more have an exponent.
    """
    if not 0 < largest < math.inf:
        return ".4f" if largest == 0 else ".6g"
    exponent = math.floor(math.log10(largest))
    digits = significant(largest, spread, digits=3)
    if not 1e-6 <= largest < below:
        return f".{max(6, digits)}g"
    usual = max(0, min(4, 6 - exponent)) if largest >= 0.01 else 2 - exponent
    return f".{max(usual, digits - 1 - exponent)}f"


def significant(largest: float, spread: float, *, digits: int) -> int:
    """How many digits numbers of up to `largest` need, for `digits` of them to tell them apart.

    >>> significant(113.4, 110.0, digits=9), significant(2e10, 250.0, digits=3)
    (9, 11)

    Args:
        spread: from the smallest number to the largest.

    Returns:
        at most 15, which each float64 has.
    """
    if not 0 < spread <= 2 * largest < math.inf:
        return 15 if spread else digits
    more = math.floor(math.log10(largest)) - math.floor(math.log10(spread))
    return min(15, digits + max(0, more))
