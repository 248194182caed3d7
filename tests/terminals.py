"""Pseudo-terminals for tests: what a process takes for the screen and the keyboard of its user."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

from launching import environment
from nursery import Nursery


class Terminal:
    """A terminal with these columns and lines; the test is the other end of it."""

    def __init__(self, *, columns: int = 100, lines: int = 40) -> None:
        self.end, device = pty.openpty()
        fcntl.ioctl(device, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.path = os.ttyname(device)
        self._device: int | None = device  # open until a process has it: else it would hang up

    def start(
        self, words: list[str], *, cwd: Path, ignores_hangup: bool = False
    ) -> subprocess.Popen[bytes]:
        """Start a command whose session and three streams are this terminal's, as a login's is."""

        def take_terminal() -> None:
            if ignores_hangup:  # as nohup has it
                signal.signal(signal.SIGHUP, signal.SIG_IGN)
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        process = subprocess.Popen(
            words, cwd=cwd, env=environment(), start_new_session=True, preexec_fn=take_terminal,
            stdin=self._device, stdout=self._device, stderr=self._device,
        )  # fmt: skip
        self.let_go()
        return process

    def let_go(self) -> None:
        """Close this side's hold on the device, so that the end is seen when others close it."""
        if self._device is not None:
            os.close(self._device)
            self._device = None

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self.end, keys.encode())

    def read(self, *, until: str = "", timeout: float = 90) -> str:
        """What is written until `until` is seen, or until no process has the terminal any more."""
        written, deadline = b"", time.monotonic() + timeout
        while not until or until.encode() not in written:
            if time.monotonic() > deadline:
                raise AssertionError(f"after {timeout} s: {written.decode()}")
            if not select.select([self.end], [], [], 0.2)[0]:
                continue
            try:
                read = os.read(self.end, 65536)
            except OSError:  # how Linux says that no writer is left
                break
            if not read:
                break
            written += read
            self.let_go()  # whoever wrote it has the terminal
        return written.decode()

    def close(self) -> None:
        """Close the window: the system tells the session SIGHUP, and writing becomes an error."""
        self.let_go()
        os.close(self.end)


def on_terminal(
    nursery: Nursery,
    arguments: list[str],
    *,
    cwd: Path,
    code: int = 0,
    terminal: Terminal,
    **variables: str,
) -> str:
    """Run `train` as `python -m` does on a terminal. Returns all that it writes there."""
    launch = nursery.start(
        arguments, cwd=cwd, terminal=terminal.path, variables=variables, is_whole=True
    )
    written = terminal.read()
    terminal.close()
    assert nursery.wait(launch).codes == [code], written
    return written
