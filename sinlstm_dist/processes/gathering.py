"""Gather rows from processes on CPUs faster than gloo does: through memory, and by messages."""

import contextlib
import itertools
import mmap
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.distributed import P2POp

from sinlstm_dist import compiled
from sinlstm_dist.processes.quota import cpu_quota

# From so many bytes on, rows travel as messages, which are faster than gloo's all-gather: 4 MB in
# 4 ms and not in 14 (two processes, 2026-11-26). Fewer bytes fit a slot of the shared memory.
LARGE = 2**18
SPIN_NS = 300_000  # with 50_000 some runs took 30 ms and not 17 an epoch: waking a core is slow
PATIENCE_NS = 100_000_000  # then `wait` looks at signals and at the other processes
TOKEN_BYTES = 16


def gather_by_messages(rows: torch.Tensor, *, rank: int, size: int) -> torch.Tensor:
    """See `World.gather`. Collective: yes."""
    everyones = rows.new_empty(size, *rows.shape)
    everyones[rank] = rows
    messages = []
    for other in set(range(size)) - {rank}:
        messages.append(P2POp(torch.distributed.isend, everyones[rank], other))
        messages.append(P2POp(torch.distributed.irecv, everyones[other], other))
    for work in torch.distributed.batch_isend_irecv(messages):
        work.wait()
    return everyones.flatten(0, 1)


class SharedMemory:
    """Memory that all processes of a world have mapped, for rows smaller than `LARGE`.

    Args:
        memory: as csrc/gather.c lays it out, then the token.
        rank: this process's.
        size: the number of processes.
        spins: whether there is a core for each process, so that one may wait at work.
        wait: returns when its argument returns true; raises if a process is lost.

    Attributes:
        number: of the last gather.
    """

    def __init__(
        self,
        memory: mmap.mmap,
        *,
        rank: int,
        size: int,
        spins: bool,
        wait: Callable[[Callable[[], bool]], None],
    ) -> None:
        self._memory = np.frombuffer(memory, np.uint8)  # keeps it mapped
        self._address = self._memory.ctypes.data
        self._rank, self._size, self.wait = rank, size, wait
        self._spin_ns = SPIN_NS if spins else 0
        self.number, self._kernel = 0, compiled.kernel()

    @property
    def place(self) -> dict[str, int]:
        """What the kernel needs to gather by itself, from `number` on."""
        return {
            "memory": self._address, "num_processes": self._size, "slot_bytes": LARGE,
            "rank": self._rank, "spin_ns": self._spin_ns,
        }  # fmt: skip

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """See `World.gather`; less than `LARGE`. Collective: yes."""
        rows = rows.contiguous()
        self.number += 1
        self._kernel.gather_put(
            memory=self._address, num_processes=self._size, slot_bytes=LARGE, number=self.number,
            rank=self._rank, bytes=rows.data_ptr(), num_bytes=rows.nbytes,
        )  # fmt: skip
        everyones = rows.new_empty(self._size * len(rows), *rows.shape[1:])
        self.wait(partial(self._take, everyones, rows.nbytes))
        return everyones

    def _take(self, everyones: torch.Tensor, num_bytes: int) -> bool:
        taken: bool = self._kernel.gather_take(
            memory=self._address, num_processes=self._size, slot_bytes=LARGE, number=self.number,
            out=everyones.data_ptr(), num_bytes=num_bytes, spin_ns=self._spin_ns,
            patience_ns=PATIENCE_NS,
        )  # fmt: skip
        return taken


def share_memory(
    machines: Sequence[str],
    *,
    rank: int,
    gather_json: Callable[[Any], list[Any]],
    wait: Callable[[Callable[[], bool]], None],
) -> SharedMemory | None:
    """Memory of all processes, if they are on one machine and all of them can map it; else None.

    It has no name in any folder, so nothing of it is left, however the processes end.

    Args:
        machines: of each process, by rank: what is the same where one can open another's files.
        rank: this process's.
        gather_json: gathers a value from each process, in order of rank.
        wait: see `SharedMemory`.

    Collective: yes.
    """
    size = len(machines)
    offer, memory = None, None
    is_able = not compiled.missing() and hasattr(os, "memfd_create")
    with contextlib.ExitStack() as stack:
        if is_able and rank == 0 and len(set(machines)) == 1 and machines[0]:
            with contextlib.suppress(OSError):
                offer = stack.enter_context(_offered(size))
        path, token = gather_json(offer)[0] or ("", "")
        if is_able and path:
            memory = _mapped(path, bytes.fromhex(token), size=size)
        cores = sorted(os.sched_getaffinity(0)) if memory else []
        everyones = gather_json(cores)  # none if it has no memory
    if memory is None or not all(everyones):
        return None
    num_cores = min(len(set(itertools.chain(*everyones))), cpu_quota())
    return SharedMemory(memory, rank=rank, size=size, spins=size <= num_cores, wait=wait)


def _num_bytes(size: int) -> int:
    return int(compiled.kernel().gather_size(num_processes=size, slot_bytes=LARGE))


@contextlib.contextmanager
def _offered(size: int) -> Iterator[tuple[str, str]]:
    """New memory: the file by which the others can map it meanwhile, and the token at its end."""
    descriptor = os.memfd_create("sinlstm-dist")
    try:
        token = secrets.token_bytes(TOKEN_BYTES)
        os.pwrite(descriptor, token, _num_bytes(size))
        yield f"/proc/{os.getpid()}/fd/{descriptor}", token.hex()
    finally:
        os.close(descriptor)


def _mapped(path: str, token: bytes, *, size: int) -> mmap.mmap | None:
    """The memory that another process offers, or None if it cannot be opened here."""
    num_bytes = _num_bytes(size)
    with contextlib.suppress(OSError, ValueError), open(path, "r+b") as file:
        memory = mmap.mmap(file.fileno(), num_bytes + TOKEN_BYTES)
        return memory if memory[num_bytes:] == token else None
    return None
