"""A loader's workers: processes that fetch samples in advance, and end when the run does."""

import contextlib
import ctypes
import functools
import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Any

WORKER_END_S = 1.0  # the longest wait for the signal that a worker has ended; it takes some ms
_PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that this process gets when its parent ends


def worker_settings(num_workers: int) -> dict[str, Any]:
    """What a DataLoader must be told for this many workers; they stay from one epoch to the next.

    On Linux they are forked; Python 3.14 would use a fork server. So a data set need not be
    pickled, and there is no server that the first SIGTERM would end.
    """
    if num_workers == 0:
        return {}
    handled = {n for n in signal.valid_signals() if callable(signal.getsignal(n))}
    others = {signal.SIGCHLD, signal.SIGTERM}  # the loader's own; for the second see _obey_only
    begin = functools.partial(_begin, parent=os.getpid(), ignored=handled - others)
    return {
        "num_workers": num_workers,
        "persistent_workers": True,
        "worker_init_fn": begin,
        "multiprocessing_context": "fork" if sys.platform == "linux" else None,
    }


def from_loader(loader: Iterable[Any]) -> Iterator[Any]:
    """What a loader brings. If a worker dies, the error names it, in the main thread.

    The connection to a worker that dies breaks some milliseconds before SIGCHLD comes. torch's
    handler of that signal raises the error that names the worker, so this waits for it before it
    raises the less useful one. A data set's own error of these kinds comes that much later.
    """
    try:
        yield from loader
    except (ConnectionError, EOFError):
        time.sleep(WORKER_END_S)
        raise


def _begin(worker: int, *, parent: int, ignored: Collection[int]) -> None:
    """What a worker does first.

    A run that is killed must not leave workers: they hold its connections, by which the other
    processes notice that it ended. A signal that the run handles is meant for the run: Ctrl-C and
    Slurm's SIGTERM reach its workers too, but the run finishes its step and saves.

    Args:
        worker: number of the worker.
        parent: process id of the run.
        ignored: signals that the run handles, but for SIGTERM.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _obey_only(parent)
        _drop_connections()
    if os.getppid() != parent:  # it ended before this was set
        os._exit(1)
    signal.set_wakeup_fd(-1)  # the run's, by which it would read this process's signals
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


def _drop_connections() -> None:
    """Put /dev/null in place of the network connections that a forked worker shares with its run.

    A connection ends when all of its copies are closed. With a copy here, other processes would
    not notice that a run that fails has left: 23 s in a test, in place of 0.5 s (2026-11-26).
    """
    with open(os.devnull, "r+b") as null:
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):  # the folder's own descriptor is closed by now
                if stat.S_ISSOCK(os.fstat(descriptor).st_mode) and _is_network(descriptor):
                    os.dup2(null.fileno(), descriptor)


def _is_network(descriptor: int) -> bool:
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        return copy.family in (socket.AF_INET, socket.AF_INET6)


def _obey_only(parent: int) -> None:
    """End at the SIGTERM by which the run ends its workers, and ignore one from anybody else."""

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=wait, daemon=True).start()
