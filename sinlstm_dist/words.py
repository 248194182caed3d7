"""A count and its noun, in messages and tables."""


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
