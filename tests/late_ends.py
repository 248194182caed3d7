"""Collectives that return at once and end later, as NCCL's do, but over gloo.

As on a GPU, they run one after the other in a stream. If another process is lost, one of them never
ends, and nothing raises.
"""

import os
import queue
import threading
from collections.abc import Callable
from typing import Any

import torch


class Stream:
    """Does what it is asked to in another thread, until something fails."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self._asked = self._done = 0
        self._reader, self._writer = os.pipe()
        threading.Thread(target=self._run, daemon=True).start()

    def add(self, call: Callable[[], Any]) -> None:
        self._asked += 1
        self._calls.put(call)

    def is_done(self) -> bool:
        return self._asked == self._done

    def block(self) -> None:
        """Wait in a call of C's until `abort`, as torch's own calls do for the GPU."""
        os.read(self._reader, 1)

    def abort(self) -> None:
        os.write(self._writer, b"x")

    def _run(self) -> None:
        while True:
            try:
                self._calls.get()()
            except RuntimeError:  # gloo has noticed, which NCCL does not
                return
            self._done += 1


stream: Stream  # this process's, once installed


def install() -> None:
    """Let all collectives of this process's worlds end later."""
    global stream
    from accelerate import Accelerator

    from sinlstm_dist.processes import joining, waiting, world

    stream = own = Stream()
    gather, reduce, broadcast = Accelerator.gather, Accelerator.reduce, world.broadcast
    exchange = torch.distributed.all_to_all_single

    def gather_later(accelerator: Accelerator, rows: torch.Tensor) -> torch.Tensor:
        result = rows.new_empty(accelerator.num_processes * len(rows), *rows.shape[1:])
        own.add(lambda: result.copy_(gather(accelerator, rows)))
        return result

    def reduce_later(
        accelerator: Accelerator, values: torch.Tensor, reduction: str
    ) -> torch.Tensor:
        result = torch.empty_like(values)
        own.add(lambda: result.copy_(reduce(accelerator, values, reduction=reduction)))
        return result

    def broadcast_later(values: torch.Tensor) -> torch.Tensor:
        own.add(lambda: broadcast(values))
        return values

    Accelerator.gather, Accelerator.reduce = gather_later, reduce_later
    world.broadcast = broadcast_later
    torch.distributed.all_to_all_single = lambda *values: own.add(lambda: exchange(*values))
    joining.share_memory = lambda *_, **__: None  # GPUs do not
    waiting.is_done_on, waiting.abort = lambda device: own.is_done, own.abort
