"""Processes that are threads of this one, for tests of sums over many of them."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch


class Threads:
    """Some processes: what each sends, the others read."""

    def __init__(self, size: int) -> None:
        self.size, self._sent = size, [torch.empty(0)] * size
        self._barrier = threading.Barrier(size, timeout=60)
        self.collectives = 0

    def share(self, rank: int, rows: torch.Tensor) -> list[torch.Tensor]:
        """What everybody sent, in order of rank."""
        self._sent[rank] = rows
        self._barrier.wait()
        everyones = [sent.clone() for sent in self._sent]
        self._barrier.wait()
        self.collectives += rank == 0
        return everyones

    def run(self, work: Callable[["Peer"], Any]) -> list[Any]:
        """Let each process do this; returns what each has returned, in order of rank."""

        def run(rank: int) -> Any:
            try:
                return work(Peer(self, rank))
            except Exception:
                self._barrier.abort()  # nobody waits for this one
                raise

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(run, range(self.size)))


class Peer:
    """One of them; see `reduction.Peers`."""

    device = torch.device("cpu")

    def __init__(self, threads: Threads, rank: int) -> None:
        self.rank, self._threads = rank, threads

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """See `Peers`."""
        return torch.cat(self._threads.share(self.rank, rows))

    def exchange(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """See `Peers`."""
        assert len(rows) == counts[self.rank]
        return torch.cat([sent[:, self.rank] for sent in self._threads.share(self.rank, rows)])
