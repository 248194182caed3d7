"""Prepare the process before the slow imports.

The package's first file calls `prepare` in a process that runs a command of the package (`python -m
sinlstm_dist.X`, also when a launcher does it, or `sinlstm-dist X`), not where a program imports it.
"""

import contextlib
import itertools
import os
import select
import signal
import sys

# Each launcher sets one of these to the process's rank.
RANK_VARIABLES = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID")
LOAD_NO_TORCH = {"", "__main__", "compare"}  # at once, as modules of `python -m`
NO_WINDOWS = (
    "sinlstm-dist does not run on native Windows, which lacks the signals and the file locks that "
    "training needs: use WSL (https://learn.microsoft.com/windows/wsl)"
)

_parent = 0  # of this process when it started, if it runs a command of the package
_says = False  # whether a line of `say` is on the terminal


def is_program() -> bool:
    """Whether this process was started to run a command of the package."""
    started = os.path.basename(next(iter(getattr(sys, "argv", [])), ""))
    return bool(_modules()) or started.removesuffix(".exe") == "sinlstm-dist"


def _modules() -> list[str]:
    """The module of this package that `python -m` is about to run: `["train"]`, [""], or []."""
    if next(iter(getattr(sys, "argv", [])), "") != "-m":  # Python has found the module by then
        return []
    names = [name for flag, name in itertools.pairwise(sys.orig_argv) if flag == "-m"]
    return [name.partition(".")[2] for name in names if name.split(".")[0] == __package__]


def parent() -> int:
    """The id of the process that started this one; it may have ended since."""
    return _parent or os.getppid()


def prepare() -> None:
    """Let Ctrl-C end the imports without a traceback, and open closed standard streams.

    If a standard stream stayed closed, the first file that a run opens would get its number, and
    what libraries print would be written into that file.
    """
    global _parent
    if sys.platform == "win32":
        sys.exit(f"error: {NO_WINDOWS}")
    _parent = _parent or os.getppid()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it may be ignored instead
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number
    if set(_modules()) - LOAD_NO_TORCH:
        say("loading torch ...")


def say(text: str) -> None:
    """Show what a command does until its first output, as a line on the terminal that then goes.

    On standard error, where it gets into no log (`train > log`), and by the process of rank 0. The
    cursor stays at the line's start: what a library prints overwrites it, and so does a terminal's
    ^C, for which there is room.
    """
    global _says
    ranks = (os.environ.get(name, "").strip() for name in RANK_VARIABLES)
    is_speaker = not next(filter(str.isdigit, ranks), "").strip("0")
    is_dumb = os.environ.get("TERM", "") in ("", "dumb", "unknown")
    if is_speaker and not is_dumb and os.isatty(2):
        _says = _write(f"\r\x1b[K\x1b[2m   {text}\x1b[m\r") or _says


def erase() -> None:
    """Remove the line of `say`, if there is one."""
    global _says
    if _says:
        _write("\r\x1b[K")
        _says = False


def is_saying() -> bool:
    """Whether there is a line of `say`."""
    return _says


def _write(text: str) -> bool:
    """Write to the terminal, unless this process is in its background, or the terminal is held.

    Returns:
        whether it was written.
    """
    with contextlib.suppress(OSError):  # such as a terminal that has closed
        with contextlib.suppress(OSError):  # it is not the terminal of this process's session
            if os.tcgetpgrp(2) != os.getpgrp():
                return False
        if select.select([], [2], [], 0)[1]:
            os.write(2, text.encode())
            return True
    return False
