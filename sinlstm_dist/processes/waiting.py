"""Wait for a GPU, and notice that another process is lost, for which it would wait for ever.

NCCL's collectives return as soon as they are handed to the GPU. If another process is lost, they
never end there, and nothing raises. So the wait is here, in Python, and looks at the others.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import torch
from torch.distributed import DistBackendError

BRIEF_S = 0.002  # most waits are shorter, and are not made longer by sleep
SLEEP_S = 0.0002
LOOK_S = 1.0  # between two looks at the other processes
WATCH_S = 5.0  # the same from the other thread, which is not to be the first


class Waiting:
    """Waits until a device has done what this process has asked it to do.

    Args:
        device: this process's.
        timeout_s: seconds that a process waits for the others, and for what its GPU has to do
            before.
        has_lost: whether another process is lost; asked during long waits, by two threads.
    """

    def __init__(
        self, device: torch.device, *, timeout_s: float, has_lost: Callable[[], bool]
    ) -> None:
        self._is_done = is_done_on(device)
        self._timeout_s, self._has_lost, self._has_aborted = timeout_s, has_lost, False

    def __call__(self) -> None:
        """Wait.

        Raises:
            torch.distributed.DistBackendError: another process is lost, or time is up.
        """
        if self._is_done is None:
            return
        started = looked = time.monotonic()
        saw_lost = False
        while not self._is_done() and not self._has_aborted:
            now = time.monotonic()
            if now - started < BRIEF_S:
                continue
            time.sleep(SLEEP_S)
            if now - started > self._timeout_s:
                raise DistBackendError(f"a collective of NCCL timed out after {self._timeout_s} s")
            if now - looked > LOOK_S:
                # A process that has ended since it did its part is no loss, and the end comes.
                if saw_lost:
                    raise DistBackendError("a collective of NCCL waits for a lost process")
                saw_lost, looked = self._has_lost(), time.monotonic()
        if self._has_aborted:
            raise DistBackendError("NCCL was aborted: another process is lost")

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Look at the others from a thread too, while this process may wait in a call of torch's.

        DDP's wrapper waits so for unused parameters, and a model's code for a number. Such a call
        returns when NCCL is aborted, and the next collective raises.
        """
        if self._is_done is None:
            yield
            return
        is_over = threading.Event()
        thread = threading.Thread(target=self._watch, args=[is_over], daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()

    def _watch(self, is_over: threading.Event) -> None:
        saw_lost = False
        while not is_over.wait(WATCH_S):
            if saw_lost:
                self._has_aborted = True
                abort()
                return
            saw_lost = self._has_lost()


def is_done_on(device: torch.device) -> Callable[[], bool] | None:
    """What tells whether a GPU has done its work; None for a CPU, whose calls return when done."""
    if device.type != "cuda":
        return None
    return lambda: torch.cuda.current_stream(device).query()


def abort() -> None:
    """End what waits for other processes on the GPU, from any thread."""
    group = torch.distributed.group.WORLD
    if group is not None and torch.distributed.get_backend() == "nccl":
        group.abort()
