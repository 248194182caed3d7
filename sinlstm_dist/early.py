"""Prepare the process before the slow imports.

The package's first file calls it where Python starts a command of the package (`python -m
sinlstm_dist.X`, which launchers do too, and `sinlstm-dist X`), not where somebody imports it.
"""

import os
import signal
import sys

STARTERS = ("-m", "sinlstm-dist")  # sys.argv[0] while Python looks for the module; the script


def is_program() -> bool:
    """Whether this process was started to run a command of the package."""
    return os.path.basename(next(iter(getattr(sys, "argv", [])), "")) in STARTERS


def prepare() -> None:
    """Let Ctrl-C end the imports without a traceback, and give closed standard streams a file.

    Without one, the first file that a run opens would get the number of standard output, and what
    libraries print would be written into it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
