"""Wait for a GPU, and notice that another process is lost, for which it would wait for ever.

NCCL's collectives return as soon as they are handed to the GPU. If another process dies, they never
end there, and nothing raises. So the wait is here, in Python, and looks at the other processes.
"""

import time
from collections.abc import Callable

import torch
from torch.distributed import DistBackendError

BRIEF_S = 0.002  # most waits are shorter, and are not made longer by sleep
SLEEP_S = 0.0002
LOOK_S = 1.0  # between two looks at the other processes


def waits_for(
    device: torch.device, *, timeout_s: float, has_lost: Callable[[], bool]
) -> Callable[[], None]:
    """A function that waits until `device` has done what this process has asked it to do.

    Args:
        timeout_s: seconds that a process waits for the others.
        has_lost: whether another process is lost; asked during long waits.

    Returns:
        the function. It raises torch's DistBackendError if it waits in vain.
    """
    is_done = is_done_on(device)
    return lambda: wait(is_done, timeout_s=timeout_s, has_lost=has_lost)


def is_done_on(device: torch.device) -> Callable[[], bool]:
    """A function that says whether `device` has done what this process has asked it to do."""
    if device.type != "cuda":
        return lambda: True  # a call for the CPU returns when it is done
    return lambda: torch.cuda.current_stream(device).query()


def wait(is_done: Callable[[], bool], *, timeout_s: float, has_lost: Callable[[], bool]) -> None:
    """Wait until `is_done`; see `waits_for`."""
    started = looked = time.monotonic()
    saw_lost = False
    while not is_done():
        now = time.monotonic()
        if now - started < BRIEF_S:
            continue
        time.sleep(SLEEP_S)
        if now - started > timeout_s:
            raise DistBackendError(f"a collective of NCCL timed out after {timeout_s:g} s")
        if now - looked > LOOK_S:
            # The lost process may have done its part before, so the end may still come.
            if saw_lost:
                raise DistBackendError("a collective of NCCL waits for a lost process")
            saw_lost, looked = has_lost(), time.monotonic()
