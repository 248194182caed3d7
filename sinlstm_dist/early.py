"""Prepare the process before the slow imports.

The package's first file calls `prepare` in a process that runs a command of the package (`python -m
sinlstm_dist.X`, also when a launcher does it, or `sinlstm-dist X`), not where a program imports it.
"""

import itertools
import os
import signal
import sys

from sinlstm_dist import status

NO_WINDOWS = (
    "sinlstm-dist does not run on native Windows, which lacks the signals and the file locks that "
    "training needs: use WSL (https://learn.microsoft.com/windows/wsl)"
)

_parent = 0  # of this process when it started, if it runs a command of the package


def is_program() -> bool:
    """Whether this process was started to run a command of the package."""
    started = os.path.basename(next(iter(getattr(sys, "argv", [])), ""))
    return bool(_modules()) or started.removesuffix(".exe") == "sinlstm-dist"


def _modules() -> list[str]:
    """The module of this package that `python -m` is about to run: `["train"]`, `[""]` or `[]`."""
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
    what libraries print would be written into that file. At last, say on the terminal that torch
    is being loaded, if it is.
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
    for module in _modules():
        status.say_that_torch_loads(module)
