"""How messages name what is wrong: values as TOML writes them, near names, pydantic's findings."""

import difflib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError


def show_value(value: Any) -> str:
    """A value on one line of a message, as TOML writes it; `not set` for None, which it lacks."""
    if value is None:
        return "not set"
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Sequence):
        return "[" + ", ".join(show_value(item) for item in value) + "]"
    return str(value)


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """`": did you mean train?"` for a name that is near a known one, else `""`."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f": did you mean {nearest[0]}?" if nearest else ""


def describe(problem: Any) -> str:
    """One of pydantic's findings about a configuration key, in one line."""
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("model_type", "model_attributes_type"):
        return f"{name} is a section: write its keys below [{name}] or as --{name}.key"
    message = problem["msg"].removeprefix("Input ")
    if isinstance(problem["input"], dict):  # found by a check of several keys
        return f"{name}: {message}"
    return f"{name}={show_value(problem['input'])}: {message}"


def first_problem(error: ValidationError) -> str:
    """The first problem, in one line where pydantic writes a paragraph."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}".removeprefix(": ")
