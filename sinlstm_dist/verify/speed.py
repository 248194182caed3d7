"""How fast each process computes, apart from waiting for the others."""

import time
from statistics import median
from typing import Any, cast

import torch

from sinlstm_dist.processes.world import World
from sinlstm_dist.verify.claim import Bench, Finding, is_large

BATCH, STEPS = 1200, 30
FEW = 16, 5  # of a large model
# A node of another kind may be half as fast. The best step counts: what else the machine does
# disturbs some steps, a process that lags is late in all.
LAGS = 3.0


def check_speed(bench: Bench) -> Finding:
    """No process computes much slower than the others."""
    watch = Stopwatch(bench.world)
    batch_size, num_steps = FEW if is_large(bench.settings()) else (BATCH, STEPS)
    # In the data-parallel wrapper, computing and waiting for others cannot be told apart.
    config = bench.settings(
        data__train_size=batch_size,
        train__global_batch_size=batch_size,
        train__reduction="ordered",
    )
    job = bench.parts.build(config, cast(World, watch))
    [batch] = list(job.train.loader)
    own_s, whole_s = [], []
    for _ in range(num_steps):
        watch.waited_s, started = 0.0, time.perf_counter()
        job.gradient(batch, step=0, stop=False)
        whole_s.append(time.perf_counter() - started)
        own_s.append(whole_s[-1] - watch.waited_s)
    samples = len(batch[0])
    everyones = bench.world.gather_json([samples / min(own_s), samples / median(own_s)])
    best, usual = zip(*everyones, strict=True)
    problems = [
        f"{bench.name(rank)} computes {speed:,.0f} samples/s at best, the fastest {max(best):,.0f}"
        for rank, speed in enumerate(best)
        if speed * LAGS < max(best)
    ]
    slowest = min(range(len(usual)), key=lambda rank: usual[rank])
    measured = f"{sum(usual) / len(usual):,.0f} samples/s a process"
    if len(usual) > 1:
        measured += f", the slowest {usual[slowest]:,.0f} ({bench.name(slowest)})"
    measured += f"; together, waiting included, {batch_size / median(whole_s):,.0f} samples/s"
    return Finding(measured, problems)


class Stopwatch:
    """A World that knows how long this process has waited for the others' rows."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.waited_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """As World's. Collective: yes."""
        started = time.perf_counter()
        gathered = self._world.gather(rows)
        self.waited_s += time.perf_counter() - started
        return gathered
