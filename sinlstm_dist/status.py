"""The line on the terminal that says what a command does before its first output.

It is on standard error, so it gets into no log (`train > log`), and the process of rank 0 shows it.
"""

import contextlib
import os
import select

# Each launcher sets one of these to the process's rank. (processes/launcher.py has the other
# variables; it is imported later than this file.)
RANK_VARIABLES = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID")
# Modules of this package that load no torch, or not before they have read their arguments.
LOAD_NO_TORCH = {"compare", "__main__", ""}

_says = False  # whether the line is on the terminal


def say_that_torch_loads(module: str) -> None:
    """Say that torch is being loaded, if this module of the package loads it: "train", "plot"."""
    if module not in LOAD_NO_TORCH:
        say("loading torch ...")


def say(text: str) -> None:
    """Show the line, in place of the one before.

    The cursor stays at the line's start: what a library prints overwrites it, and so does a
    terminal's ^C, for which there is room.
    """
    global _says
    ranks = (os.environ.get(name, "").strip() for name in RANK_VARIABLES)
    is_speaker = not next(filter(str.isdigit, ranks), "").strip("0")
    if is_speaker and not is_dumb() and os.isatty(2):
        _says = _write(f"\r\x1b[K\x1b[2m   {text}\x1b[m\r") or _says


def is_dumb() -> bool:
    """Whether the terminal cannot move its cursor, as far as is known."""
    return os.environ.get("TERM", "") in ("", "dumb", "unknown")


def is_in_background(descriptor: int) -> bool:
    """Whether this process is in the background of its terminal, after `&` or Ctrl-Z and `bg`."""
    try:
        return os.tcgetpgrp(descriptor) != os.getpgrp()
    except OSError:  # it is not the terminal of this process's session, or has closed
        return False


def erase() -> None:
    """Remove the line, if there is one."""
    global _says
    if _says:
        _write("\r\x1b[K")
        _says = False


def is_saying() -> bool:
    """Whether the line is there."""
    return _says


def _write(text: str) -> bool:
    """Write to the terminal, unless this process is in its background, or the terminal is held.

    Returns:
        whether it was written.
    """
    if is_in_background(2):
        return False
    with contextlib.suppress(OSError):  # such as a terminal that has closed
        if select.select([], [2], [], 0)[1]:
            os.write(2, text.encode())
            return True
    return False
