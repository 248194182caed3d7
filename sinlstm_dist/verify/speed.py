"""Check how fast each process computes, without the time in which it waits for the others."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from statistics import median

import torch

from sinlstm_dist.gradient import Gradient, OrderedGradient
from sinlstm_dist.job import Job
from sinlstm_dist.processes.world import World
from sinlstm_dist.verify.bench import Bench, Finding, is_large

BATCH, STEPS = 1200, 30
FEW, OWN_STEPS = (16, 5), 5  # for a large model, and for the user's own task
# A node of another kind may be half as fast. The best step counts: other work on the machine slows
# some steps down, a slow process is slow in all of them.
LAGS = 3.0


def check_speed(bench: Bench) -> Finding:
    """No process computes much slower than the others."""
    watch = Stopwatch(bench.world)
    job, num_steps = _job(dataclasses.replace(bench, world=watch))
    gradient: Gradient = job.gradient
    if bench.is_own and bench.settings().train.reduction == "ddp":  # it waits while it computes
        gradient = OrderedGradient(job.rows, plan=job.train.plan, peers=watch)
    (_, batch), *_ = job.train.batches(whole=gradient.is_whole)
    own_s, whole_s = [], []
    for _ in range(num_steps):
        watch.waited_s, started = 0.0, time.perf_counter()
        gradient(batch, epoch=0, step=0, stop=False)
        whole_s.append(time.perf_counter() - started)
        own_s.append(whole_s[-1] - watch.waited_s)
    samples = sum(job.train.plan.piece_sizes(0))
    everyones = bench.world.gather_json([samples / min(own_s), samples / median(own_s)])
    best, usual = zip(*everyones, strict=True)
    problems = [
        f"{bench.name(rank)} computes {speed:,.0f} samples/s at best, the fastest {max(best):,.0f}"
        for rank, speed in enumerate(best)
        if speed * LAGS < max(best)
    ]
    if bench.is_one:
        return Finding(f"one process: {usual[0]:,.0f} samples/s, nothing to compare", applies=False)
    slowest = min(range(len(usual)), key=lambda rank: usual[rank])
    measured = (
        f"{sum(usual) / len(usual):,.0f} samples/s per process, "
        f"the slowest {usual[slowest]:,.0f} ({bench.name(slowest)}); "
        f"together {job.train.plan.num_samples(0) / median(whole_s):,.0f}, waiting included"
    )
    return Finding(measured, problems)


def _job(bench: Bench) -> tuple[Job, int]:
    """The job whose first step is measured, and how many times. Collective: yes."""
    if bench.is_own:
        return bench.build(), OWN_STEPS
    batch_size, num_steps = FEW if is_large(bench.settings()) else (BATCH, STEPS)
    sizes = {"data.train_size": batch_size, "train.global_batch_size": batch_size}
    return bench.build({**sizes, "train.reduction": "ordered"}), num_steps


class Stopwatch(World):
    """A world that measures how long this process waits for the rows of the others."""

    def __init__(self, world: World) -> None:
        vars(self).update(vars(world))  # the same world, except for the measurement
        self.waited_s = 0.0

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """See World."""
        with self._measured():
            return super().gather(rows)

    def exchange(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """See World."""
        with self._measured():
            return super().exchange(rows, counts)

    @contextlib.contextmanager
    def _measured(self) -> Iterator[None]:
        self.wait_for_device()  # for this process's own computation
        started = time.perf_counter()
        yield
        self.waited_s += time.perf_counter() - started
