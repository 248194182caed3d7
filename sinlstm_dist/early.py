"""Prepare the process before the slow imports.

The package's first file calls `prepare` in a process that runs a command of the package (`python -m
sinlstm_dist.X`, also when a launcher does it, or `sinlstm-dist X`), not where a program imports it.
"""

import itertools
import os
import signal
import sys

_parent = 0  # of this process when it started, if it runs a command of the package


def is_program() -> bool:
    """Whether this process was started to run a command of the package."""
    started = next(iter(getattr(sys, "argv", [])), "")
    if started == "-m":  # Python is still looking for the module, which may be another package's
        pairs = itertools.pairwise(sys.orig_argv)
        return any(flag == "-m" and name.split(".")[0] == __package__ for flag, name in pairs)
    return os.path.basename(started) == "sinlstm-dist"


def parent() -> int:
    """The id of the process that started this one; it may have ended since."""
    return _parent or os.getppid()


def prepare() -> None:
    """Let Ctrl-C end the imports without a traceback, and open closed standard streams.

    If a standard stream stayed closed, the first file that a run opens would get its number, and
    what libraries print would be written into that file.
    """
    global _parent
    _parent = _parent or os.getppid()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it may be ignored instead
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number
