"""Prepare the process before the slow imports.

The package's first file calls it where Python starts a command of the package (`python -m
sinlstm_dist.X`, which launchers do too, and `sinlstm-dist X`), not where somebody imports it.
"""

import itertools
import os
import signal
import sys

_parent = 0  # of this process when it started, if it runs a command of the package


def is_program() -> bool:
    """Whether this process was started to run a command of the package."""
    started = next(iter(getattr(sys, "argv", [])), "")
    if started == "-m":  # Python is looking for a module, of this package or of another one
        pairs = itertools.pairwise(sys.orig_argv)
        return any(flag == "-m" and name.split(".")[0] == __package__ for flag, name in pairs)
    return os.path.basename(started) == "sinlstm-dist"


def parent() -> int:
    """The process that started this one, which may have ended since."""
    return _parent or os.getppid()


def prepare() -> None:
    """Let Ctrl-C end the imports without a traceback, and give closed standard streams a file.

    Otherwise the first file that a run opens would get the number of standard output, and what
    libraries print would be written into it.
    """
    global _parent
    _parent = _parent or os.getppid()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
