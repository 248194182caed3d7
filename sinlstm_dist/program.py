"""Run a command as this process's program and return its exit code."""

import atexit
import signal
import traceback
from collections.abc import Callable

from sinlstm_dist.screen.console import show_traceback, tell_losses

FAILED, INTERRUPTED = 1, 128 + signal.SIGINT


def run(main: Callable[[], int]) -> int:
    """Call a command's `main` as the last thing that this process does.

    A reader of standard output that leaves early (`| head`) changes nothing.

    Returns:
        the process's exit code: that of `main`; 130 after Ctrl-C; 1 if it was to be 0 but
        standard output could not be written, as on a full disk.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as `early` left it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    code = _code_of(main)
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # `code` is known by then
    return FAILED if tell_losses() and code == 0 else code


def _code_of(main: Callable[[], int]) -> int:
    try:
        return main()
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as leaving:  # argparse's, after --help
        return int(leaving.code or 0)
    except Exception:
        show_traceback(traceback.format_exc())
        return FAILED
