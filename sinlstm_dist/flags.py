"""How a configuration key is written as a flag."""

import argparse
import functools
import re
from collections.abc import Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from sinlstm_dist.problems import show_value

# What begins with a dash and is a value; argparse's own pattern leaves out -1e-3 in some Pythons
NEGATIVE = re.compile(r"-(\.?[0-9]|(inf|infinity|nan)$)", re.IGNORECASE)


def as_flag(field: FieldInfo, *, of_run: bool = False) -> dict[str, Any]:
    """argparse's options for the flag of a key.

    Args:
        of_run: whether the value of a run is the default, and not the key's.
    """
    kind = _without_none(field.annotation)
    is_list = (get_origin(kind) or kind) in (list, tuple)
    is_choice = get_origin(kind) is Literal
    default = "" if of_run else f" ({_default(field)})"
    what = f"{field.description or ''}{default}".lstrip().replace("%", "%%")
    return {
        "default": argparse.SUPPRESS,
        "metavar": "|".join(map(str, get_args(kind))) if is_choice else "VALUE",
        "help": what,
        "nargs": "*" if is_list else None,
        "type": functools.partial(_choice, get_args(kind)) if is_choice else None,
    }


def _without_none(annotation: Any) -> Any:
    """`int` for `int | None`."""
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    is_optional = NoneType in get_args(annotation) and len(kinds) == 1
    return kinds[0] if is_optional else annotation


def _choice(values: Sequence[Any], text: str) -> Any:
    """The value that is written so, such as 2 for "2"; a wrong text stays as it is."""
    return next((value for value in values if str(value) == text), text)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory:
        return "default: computed"
    return f"default: {show_value(to_jsonable_python(field.default, fallback=str))}"
