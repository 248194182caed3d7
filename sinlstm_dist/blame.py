"""Where the user's code failed: its errors in one line that names file and line."""

import contextlib
import inspect
import os
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sinlstm_dist.errors import CommandError, ConfigError


class Refused(Exception):
    """The user's code does what it must not do; the message says what, and what to use instead."""


INSTALLED = {"site-packages", "dist-packages"}
NOT_THE_USERS = (Path(__file__).parent, Path(sysconfig.get_path("stdlib")))


def is_users(path: str) -> bool:
    """Whether a file is neither Python's, nor installed, nor this package's."""
    file = Path(path)
    is_other = any(file.is_relative_to(folder) for folder in NOT_THE_USERS)
    return file.is_absolute() and not is_other and not INSTALLED & set(file.parts)


@contextlib.contextmanager
def blamed(
    spec: str, *, but: type[Exception] = CommandError, at: Callable[..., Any] | None = None
) -> Iterator[None]:
    """Turn an error of the user's code into a ConfigError that names its file and line.

    Args:
        spec: the value of `task.build`.
        but: errors that pass as they are. This package's own always do: users can read them.
        at: the user's function that is to blame if the error was not in the user's code, as when
            it has returned something wrong.
    """
    try:
        yield
    except (CommandError, but):
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"task.build={spec}: {blame(error, at)}") from error


def blame(error: BaseException, at: Callable[..., Any] | None = None) -> str:
    """`my_task.py, line 12: NameError: name 'x' is not defined`, on one line; `at` as above."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    place = where(error) or (start_of(at) if at else "")
    kind = "" if isinstance(error, Refused) else type(error).__name__
    parts = [place, kind, " ".join(text.split())]
    return ": ".join(part for part in parts if part)


def where(error: BaseException) -> str:
    """`my_task.py, line 12`: the innermost place in the user's code; "" if it was not there."""
    frames = traceback.walk_tb(error.__traceback__)
    places = [(frame.f_code.co_filename, line) for frame, line in frames]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno or 1))
    users = [f"{shown(path)}, line {line}" for path, line in places if is_users(path)]
    return users[-1] if users else ""


def start_of(thing: Any) -> str:
    """`my_task.py, line 12`: where a function or a class begins; "" if its source is not known."""
    try:
        return f"{shown(inspect.getfile(thing))}, line {inspect.getsourcelines(thing)[1]}"
    except (OSError, TypeError):
        return ""


def shown(path: str) -> str:
    """A path as the user would write it: from the working directory on, if it is inside."""
    inside = Path(path).is_relative_to(os.getcwd())
    return os.path.relpath(path) if inside else path
