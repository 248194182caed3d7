"""Text for standard output and error; a write never fails, and need not wait.

A terminal may close, a reader leave, a disk be full: what cannot be written is dropped, and
`lost_output` says so at the end. The output must not decide whether the work is done.
"""

import contextlib
import errno
import io
import os
import select
import sys
import threading
from collections import deque
from typing import Literal

from sinlstm_dist import status

MOST_BYTES = 1_000_000  # may wait for a stream that takes nothing; more are dropped
LEAVE_S = 5.0  # at its end, a program waits at most this time for a stream that takes nothing

_output_errors: list[str] = []  # why text for standard output could not be written


class Stream:
    """The file that a `Screen` writes to.

    Args:
        name: of the stream in `sys`, which is looked up now: it may be redirected for a while.
        waits: whether a write returns only when the text is written. If not, a thread writes it
            with the system's own call: a thread that waits inside Python's file object would make
            Python's exit wait, or crash. The thread lives only while there is text, so a fork does
            not meet it. Without a descriptor, as in a notebook, every write waits.
    """

    def __init__(self, name: Literal["stdout", "stderr"], *, waits: bool = True) -> None:
        file = getattr(sys, name)
        self._file = getattr(file, "rich_proxied_file", file)  # not rich's proxy
        self._is_output = name == "stdout"
        self._descriptor = _descriptor(self._file)
        self._waits = waits or self._descriptor is None
        self.encoding: str = getattr(self._file, "encoding", None) or "utf-8"
        self._is_terminal = self._descriptor is not None and os.isatty(self._descriptor)
        self._lock = threading.Lock()
        self._pending: deque[bytes] = deque()  # the first is being written
        self._writer: threading.Thread | None = None

    def isatty(self) -> bool:
        """Whether the stream was a terminal when this object was made."""
        return self._is_terminal

    @property
    def is_busy(self) -> bool:
        """Whether text still waits to be written."""
        return bool(self._pending)

    @property
    def is_in_background(self) -> bool:
        """Whether the stream is a terminal that another program has in its foreground."""
        return self._descriptor is not None and status.is_in_background(self._descriptor)

    def write(self, text: str) -> int:
        """Write `text`; characters that the encoding does not have become escapes."""
        status.erase()
        content = text.encode(self.encoding, "backslashreplace")
        if not self._waits:
            self._flush()
            self._write_later(content)
        elif self._descriptor is not None:
            self._flush()
            self._write_now(content)
        elif self._file is not None:
            self._write_to_object(content.decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        """Do nothing: no text is held back."""

    def wait(self, seconds: float = LEAVE_S) -> None:
        """Wait until the text is written, or `seconds` are over."""
        if (writer := self._writer) is not None and writer.is_alive():
            writer.join(seconds)

    def _flush(self) -> None:
        """Let text that others have printed come first."""
        with contextlib.suppress(OSError, ValueError):  # `settle` deals with it
            self._file.flush()

    def _write_later(self, content: bytes) -> None:
        with self._lock:
            if sum(map(len, self._pending)) + len(content) > MOST_BYTES:
                return
            self._pending.append(content)
            if self._writer is None or not self._writer.is_alive():
                self._writer = threading.Thread(target=self._write_pending, daemon=True)
                with contextlib.suppress(RuntimeError):  # no thread can start: the next write tries
                    self._writer.start()

    def _write_pending(self) -> None:
        while True:
            self._write_now(self._pending[0])
            with self._lock:
                self._pending.popleft()
                if not self._pending:
                    self._writer = None
                    return

    def _write_now(self, content: bytes) -> None:
        assert self._descriptor is not None
        try:
            _write_all(self._descriptor, content)
        except OSError as error:
            # Nobody looks at a terminal that is gone.
            is_gone = error.errno == errno.EIO and self._is_terminal
            if self._is_output and not is_gone:
                _note_error(error)

    def _write_to_object(self, text: str) -> None:
        try:
            self._file.write(text)
            self._file.flush()
        except (OSError, ValueError) as error:
            if self._is_output:
                _note_error(error)


def settle() -> None:
    """Flush now: if Python's own flush at exit failed, it would change the exit code."""
    for file in (sys.stdout, sys.stderr):
        try:
            if file is not None:
                file.flush()
        except (OSError, ValueError) as error:
            if file is sys.stdout:
                _note_error(error)
            if (descriptor := _descriptor(file)) is not None:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def _note_error(error: OSError | ValueError) -> None:
    """Keep why text for standard output was lost, for `lost_output`.

    A closed reader or a closed stream is not counted as a loss.
    """
    if isinstance(error, OSError) and error.errno != errno.EPIPE:
        _output_errors.append(error.strerror or str(error))


def lost_output() -> str:
    """Why text for standard output was lost since the last call; "" if no text was."""
    why = _output_errors[0] if _output_errors else ""
    _output_errors.clear()
    return why


def _descriptor(file: object) -> int | None:
    """The descriptor of a real file: a notebook's stream names one that it does not write to."""
    try:
        return file.fileno() if isinstance(file, io.TextIOWrapper) else None
    except (OSError, ValueError):
        return None


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # another process that shares the stream has set O_NONBLOCK
            can_write = select.poll()
            can_write.register(descriptor, select.POLLOUT)
            can_write.poll()
