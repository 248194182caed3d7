"""The rows of the built-in task's pieces on an NVIDIA GPU, replayed from CUDA graphs.

A small model's pieces are thousands of kernels. Starting one takes the processor longer than
computing it takes the GPU. A graph holds the kernels of several pieces and is started by one call.
It always reads and writes the same memory, so each batch is copied there first.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sinlstm_dist.data.steps import copies, cut
from sinlstm_dist.piece_rows import PieceRows, Place

STREAMS = 4  # pieces that a GPU computes at the same time, and that one graph holds

Compute = Callable[[Any, Sequence[int]], Tensor]  # rows of a batch of pieces of these sizes


@dataclass(frozen=True)
class Graph:
    """A computation that can be repeated with other pieces of the same sizes.

    Args:
        parts: the pieces that it reads; None for an empty one.
        rows: what it computes from them.
        replay: computes `rows` again.
    """

    parts: Sequence[Any]
    rows: Tensor
    replay: Callable[[], None]

    def __call__(self, parts: Sequence[Any]) -> Tensor:
        """The rows of these pieces, until the next call."""
        if own := _tensors(self.parts):
            torch._foreach_copy_(own, _tensors(parts))
        self.replay()
        return self.rows


class GraphedRows(PieceRows):
    """Computes the rows of pieces with the bits of PieceRows.

    It is for a model that draws no random numbers, reads no buffers, and whose operations depend on
    nothing but the shapes of a batch. If the parameters have moved to other memory, it captures new
    graphs, and keeps the old ones.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._sent_flags: dict[tuple[bool, ...], Tensor] = {}
        self._streams = [torch.cuda.Stream(self.device) for _ in range(STREAMS)]

    def _take(self, model: nn.Module) -> None:
        super()._take(model)
        self._graphs: dict[object, Graph] = {}
        # All graphs share memory: their rows are copied before the next one begins.
        self._memory = torch.cuda.graph_pool_handle()

    @property
    def is_whole(self) -> bool:
        """See PieceRows: the pieces are cut when they are copied to a graph's memory."""
        return True

    @property
    def at_once(self) -> int | None:
        """See PieceRows; one graph holds as many."""
        return None if self.task.rows else STREAMS

    def gradients(self, batch: Any, *, sizes: Sequence[int], place: Place, out: Tensor) -> None:
        """See PieceRows."""
        usual = super().gradients

        def compute(batch: Any, sizes: Sequence[int]) -> Tensor:
            rows = torch.zeros(len(sizes), self.width, device=self.device)
            usual(batch, sizes=sizes, place=place, out=rows)
            return rows

        for some, rows in self._replayed("gradients", compute, batch, sizes):
            out[some] = rows

    def totals(self, batch: Any, *, sizes: Sequence[int], place: Place) -> Tensor:
        """See PieceRows."""
        usual = super().totals

        def compute(batch: Any, sizes: Sequence[int]) -> Tensor:
            return usual(batch, sizes=sizes, place=place)

        found = torch.zeros(len(sizes), self.counts.width, device=self.device)
        for some, rows in self._replayed("totals", compute, batch, sizes):
            found[some] = rows
        return found

    def _replayed(
        self, name: str, compute: Compute, batch: Sequence[Tensor], sizes: Sequence[int]
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield some pieces at a time, and the rows that `compute` returns for them.

        The next rows overwrite them.
        """
        parts = [batch] if self.task.rows else cut(batch, sizes)
        number = self.at_once or len(sizes)
        addresses = tuple(parameter.data_ptr() for parameter in self.parameters)
        for first in range(0, len(sizes), number):
            some = slice(first, min(first + number, len(sizes)))
            key = (name, tuple(sizes[some]), addresses)
            if key not in self._graphs:
                self._graphs[key] = self._new_graph(compute, parts[some], sizes[some])
            yield some, self._graphs[key](parts[some])

    def _new_graph(self, compute: Compute, parts: Sequence[Any], sizes: Sequence[int]) -> Graph:
        """The graph of `compute` for these pieces."""
        own = copies(parts)
        batch = own[0] if self.task.rows else own
        return Graph(own, *capture(lambda: compute(batch, sizes), memory=self._memory))

    def _flags(self, used: tuple[bool, ...]) -> Tensor:
        """See PieceRows. They are sent once and kept: a graph reads them, and cannot send them."""
        if used not in self._sent_flags:
            self._sent_flags[used] = torch.tensor(used, dtype=torch.float32, device=self.device)
        return self._sent_flags[used]

    def _each(self, compute: Callable[[int], None], number: int, place: Place) -> None:
        """Compute at most STREAMS pieces at the same time; none draws random numbers."""
        here = torch.cuda.current_stream(self.device)
        streams = self._streams[:number]
        for stream in streams:
            stream.wait_stream(here)
        try:
            for piece in range(number):
                with torch.cuda.stream(streams[piece]):
                    compute(piece)
        finally:
            for stream in streams:
                here.wait_stream(stream)


def can_replay(device: torch.device) -> bool:
    """Whether a device has graphs: an NVIDIA GPU."""
    return device.type == "cuda" and not torch.version.hip


def capture(compute: Callable[[], Tensor], *, memory: Any) -> tuple[Tensor, Callable[[], None]]:
    """Capture a computation: returns its result, and what computes that again in the same place.

    Args:
        memory: a pool, see `torch.cuda.graph_pool_handle`.
    """
    compute()  # a graph cannot hold what is loaded and allocated at a first call
    graph = torch.cuda.CUDAGraph()
    # A call of another thread, such as NCCL's watchdog, must not end the capture.
    with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
        result = compute()
    return result, graph.replay


def _tensors(parts: Sequence[Any]) -> list[Tensor]:
    """The tensors of pieces, without those that are empty."""
    return [tensor for part in parts if part is not None for tensor in part]
