"""The rows of pieces: each piece's totals, and the gradient of its loss.

A row depends on the piece's samples, its random numbers and the weights, and on nothing else. Which
process or thread computes it, and which other pieces there are, changes no bit.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sinlstm_dist.randomness import PIECES, seed_all, states, stream
from sinlstm_dist.task import Counts, Task, counts_of, row_of

TESTING, REHEARSAL = 2**63, 2**63 + 1  # in place of an epoch, while the model is not trained


@dataclass(frozen=True)
class Place:
    """Where pieces stand in a run: it decides their random numbers.

    Args:
        epoch: from 0, or TESTING or REHEARSAL.
        step: in the epoch, from 0.
        first: the number of the first piece in the step's batch.
    """

    epoch: int
    step: int
    first: int = 0


class PieceRows:
    """Computes the rows of pieces.

    Args:
        task: what is trained.
        counts: what its `totals` returns.
        seed: of the run.
        device: on which it computes.
        num_threads: threads that may compute pieces, each piece by one thread.

    Attributes:
        model: the task's.
        parameters: those of the model that are trained, G numbers in all.
        width: numbers in a row: the gradient, one flag per parameter unless the task has rows of
            its own, and the totals.
    """

    def __init__(
        self, task: Task, counts: Counts, *, seed: int, device: torch.device, num_threads: int
    ) -> None:
        self.task, self.counts = task, counts
        self._seed, self.device, self.num_threads = seed, device, num_threads
        self._take(task.model)
        self.num_flags = 0 if task.rows else len(self.parameters)
        self.width = sum(p.numel() for p in self.parameters) + self.num_flags + counts.width
        self._pool: ThreadPoolExecutor | None = None
        if num_threads > 1 and not task.rows and device.type == "cpu":
            self._pool = ThreadPoolExecutor(
                num_threads, initializer=torch.set_num_threads, initargs=(1,)
            )

    def _take(self, model: nn.Module) -> None:
        self.model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def of(self, model: nn.Module) -> "PieceRows":
        """What computes the rows of a copy of the model."""
        other = copy.copy(self)
        other._take(model)
        return other

    @property
    def is_whole(self) -> bool:
        """Whether a batch is all pieces in one, not a list of them."""
        return self.task.rows is not None

    @property
    def at_once(self) -> int | None:
        """Pieces that are computed at the same time; None for all."""
        if self.task.rows:
            return None
        return self.num_threads if self._pool else 1

    def use_one_thread(self) -> None:
        """Compute the pieces one after the other."""
        self._pool = None

    @contextlib.contextmanager
    def testing(self) -> Iterator[None]:
        """If testing calls the model, put it into evaluation mode, without gradients, and then into
        training mode."""
        if self.task.rows:  # they do not call it
            yield
            return
        self.model.eval()
        try:
            with torch.no_grad():  # in the data sets too
                yield
        finally:
            self.model.train()

    def gradients(self, batch: Any, *, sizes: Sequence[int], place: Place, out: Tensor) -> None:
        """Compute each piece's row.

        Args:
            batch: pieces, as `Split.batches` gives them: all in one if the task has `rows`.
            sizes: samples in each piece.
            place: of the first piece.
            out: (pieces, width), overwritten: the gradient of the piece's loss, 1 for each
                parameter that has one and 0 for the others, and the totals.
        """
        if self.task.rows:
            self.task.rows(
                self.parameters, batch, piece_sizes=sizes, num_threads=self.num_threads, out=out
            )
            return

        def compute(number: int) -> None:
            if batch[number] is None:
                out[number].zero_()
                return
            loss, totals = self._sums(self.model, batch[number], sizes[number])
            gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
            parts = [
                torch.zeros_like(p) if g is None else g
                for p, g in zip(self.parameters, gradients, strict=True)
            ]
            used = self._flags(tuple(g is not None for g in gradients))
            torch.cat([*(part.flatten() for part in parts), used, totals], out=out[number])

        self._each(compute, len(batch), place)

    def _flags(self, used: tuple[bool, ...]) -> Tensor:
        """These flags as float32 on the device."""
        flags = torch.tensor(used, dtype=torch.float32)
        return flags.to(self.device, non_blocking=True)  # or the processor waits for a GPU

    def totals(self, batch: Any, *, sizes: Sequence[int], place: Place) -> Tensor:
        """Count each piece: (pieces, counts.width); arguments as for `gradients`."""
        if self.task.rows:
            return self.task.rows(
                self.parameters, batch, piece_sizes=sizes, num_threads=self.num_threads
            )
        rows = torch.zeros(len(batch), self.counts.width, device=self.device)

        @torch.no_grad()
        def compute(number: int) -> None:
            if batch[number] is not None:
                _, rows[number] = self._sums(self.model, batch[number], sizes[number])

        self._each(compute, len(batch), place)
        return rows

    def loss(
        self, model: nn.Module, piece: Any, *, num_samples: int, place: Place
    ) -> tuple[Tensor, Tensor]:
        """The loss of one piece, to be differentiated by a wrapper of the model, and its totals."""
        self._seed_for(place, 0)
        return self._sums(model, piece, num_samples)

    def _sums(self, model: nn.Module, piece: Any, num_samples: int) -> tuple[Tensor, Tensor]:
        sums = self.task.totals(model, piece)
        if counts_of(sums) != self.counts:
            raise TypeError("totals must return the same kinds of values for every batch")
        return sums[0], row_of(sums, num_samples)

    def _each(self, compute: Callable[[int], None], number: int, place: Place) -> None:
        """Compute pieces, each with its own random numbers.

        Threads share the generators, so they are used only as long as no piece draws from one.
        """
        if self._pool and number > 1:
            before = states(self.device)
            list(self._pool.map(compute, range(number)))
            if states(self.device) == before:
                return
            self.use_one_thread()
        for piece in range(number):
            self._seed_for(place, piece)
            compute(piece)

    def _seed_for(self, place: Place, piece: int) -> None:
        """Seed all generators for one piece."""
        numbers = (self._seed, place.epoch, place.step, place.first + piece)
        seed_all(stream(PIECES, *numbers), self.device)
