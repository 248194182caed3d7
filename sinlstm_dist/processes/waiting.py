"""Wait for a GPU, and notice that another process is lost, for which it would wait for ever.

NCCL's collectives return as soon as they are handed to the GPU. If another process is lost, they
never end there, and nothing raises. So the wait is here, in Python, and looks at the others. Some
calls of torch's wait too, where Python cannot: then another thread looks, and ends the wait.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator

import torch
from torch.distributed import DistBackendError

BRIEF_S = 0.002  # most waits are shorter, and are not made longer by sleep
SLEEP_S = 0.0002
PAUSE_S = 1.0  # a longer gap was no wait: this process was suspended, perhaps as all were
LOOK_S = 1.0  # between two looks at the other processes
WATCH_S = 5.0  # the same from the other thread, while this process may not be waiting at all


class Waiting:
    """Waits for a device or for other processes, and notices that one is lost.

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
        self._timeout_s, self._has_lost = timeout_s, has_lost
        self._until = math.inf  # by `time.monotonic`, while `limited`
        self._why_aborted = ""

    def __call__(self) -> None:
        """Wait.

        Raises:
            torch.distributed.DistBackendError: another process is lost, or time is up.
        """
        if self._is_done is not None:
            self.until(self._is_done)

    def until(self, is_done: Callable[[], bool]) -> None:
        """Wait until something is done that needs the other processes; raises as a call does."""
        started = looked = asked = time.monotonic()
        saw_lost = False
        while not is_done() and not self._why_aborted:
            now = time.monotonic()
            if now - asked > PAUSE_S:
                started += now - asked
            asked = now
            if now - started < BRIEF_S:
                continue
            time.sleep(SLEEP_S)
            if now - started > self._timeout_s:
                raise DistBackendError(self._timed_out())
            if now - looked > LOOK_S:
                # A process that has ended since it did its part is no loss, and the end comes.
                if saw_lost:
                    raise DistBackendError("a collective waits for a lost process")
                saw_lost, looked = self._has_lost(), time.monotonic()
                asked = looked
        self._raise_if_aborted()

    def _timed_out(self) -> str:
        return f"a collective timed out after {self._timeout_s} s"

    def _raise_if_aborted(self) -> None:
        if self._why_aborted:
            raise DistBackendError(self._why_aborted)

    @contextlib.contextmanager
    def limited(self) -> Iterator[None]:
        """Let the wait for others take no longer in a call of torch's than elsewhere.

        For the first one, NCCL connects the processes; DDP compares the models when it wraps them,
        and waits in each backward pass for what is unused. `watched` keeps the time.

        Raises:
            torch.distributed.DistBackendError: another process is lost, or time is up.
        """
        if self._is_done is None:
            yield
            return
        self._until = time.monotonic() + self._timeout_s
        try:
            yield
        finally:
            self._until = math.inf
            self._raise_if_aborted()  # in place of whatever torch has made of it

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Look at the others from a thread too, while this process may wait in a call of torch's.

        Besides what is `limited`, a model's code may wait for a number. Such a call returns when
        NCCL is aborted, and the next collective raises.
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
        looked, saw_lost = time.monotonic(), False
        while not is_over.wait(LOOK_S):
            now, until = time.monotonic(), self._until
            if now > until:
                self._why_aborted = self._timed_out()
            elif until == math.inf and now - looked < WATCH_S:
                continue
            elif saw_lost:
                self._why_aborted = "NCCL was aborted: another process is lost"
            if self._why_aborted:
                abort()
                return
            saw_lost, looked = self._has_lost(), time.monotonic()


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
