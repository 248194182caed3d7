"""Requests to save and stop: a signal, or the end of the launcher."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from sinlstm_dist import early

# Windows lacks SIGHUP, SIGUSR1 and SIGUSR2, and the file locks of run/hold.py. Of the files that
# need them, this is the first that `train` and `verify` import.
if sys.platform == "win32":
    raise ImportError(early.NO_WINDOWS)


class StopRequest:
    """Notices a signal that asks this process to save and stop, or the end of its launcher.

    A second interrupt ends the process at once. A terminal's Ctrl-C reaches a worker twice within
    milliseconds, directly and through its launcher, so a second one counts only after a moment.

    Python runs a signal's handler between two of its own instructions, so never while a collective
    waits for a process that hangs. Therefore a thread reads the signals' numbers as they arrive.
    Source: https://docs.python.org/3/library/signal.html#signal.set_wakeup_fd
    Test: test_a_second_interrupt_leaves_at_once

    Args:
        parent: process id of the launcher; None if there is no launcher to watch.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    SECOND_INTERRUPT_S = 0.5

    def __init__(self, *, parent: int | None = None) -> None:
        self._parent, self._signal = parent, ""
        self.announce: Callable[[str], None] = lambda name: None  # called once, at the first signal
        self.leave: Callable[[], None] = lambda: None  # called before a second interrupt ends all
        self._interrupted_at = 0.0
        self._undo = contextlib.ExitStack()  # what `__enter__` has done

    @property
    def reason(self) -> str:
        """What asked to stop, or "" if nothing did; read once per step."""
        if self._signal or self._parent is None or os.getppid() == self._parent:
            return self._signal
        return "the launcher ended"

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may set signal handlers: the caller keeps its own
        with contextlib.ExitStack() as undo:
            self._reader, self._writer = map(undo.enter_context, socket.socketpair())
            self._writer.setblocking(False)
            thread = threading.Thread(target=self._watch, daemon=True)
            thread.start()
            undo.callback(thread.join)
            # Ends the thread, even if a forked child has a copy.
            undo.callback(self._writer.shutdown, socket.SHUT_WR)
            undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(self._writer.fileno()))
            for number in filter(_is_free, self.SIGNALS):
                undo.callback(signal.signal, number, signal.signal(number, self._handle))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signal = self._signal or signal.Signals(number).name

    def _watch(self) -> None:
        is_first = True
        while numbers := self._reader.recv(1):
            if is_first:
                self.announce(signal.Signals(numbers[0]).name)
                is_first = False
            if numbers[0] != signal.SIGINT:
                continue
            now = time.monotonic()
            if self._interrupted_at and now - self._interrupted_at > self.SECOND_INTERRUPT_S:
                try:
                    self.leave()
                finally:
                    os._exit(128 + signal.SIGINT)
            self._interrupted_at = self._interrupted_at or now


def _is_free(number: int) -> bool:
    """Whether this program may handle a signal.

    nohup ignores SIGHUP, and it stays ignored. A shell ignores SIGINT for everything that it starts
    in the background, and there SIGINT is a request like any other. A handler of C code, such as a
    profiler's, could not be put back.
    """
    handler = signal.getsignal(number)
    return handler is not None and (number != signal.SIGHUP or handler != signal.SIG_IGN)
