"""Do the parts of a step's cost add up? Milliseconds, apart and together, on some processes.

python benchmarks/cost_model.py
python benchmarks/cost_model.py --processes 1 2 --json model.json

A step is foretold as `own(B/P) + exchange`: what a process needs for its share of the batch, which
one process that does only that share needs too, and its collectives, which cost the same when the
processes do nothing else. More processes than cores take turns: there the first is multiplied by
P / cores.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import starting
import torch
from rich.console import Console
from rich.table import Table

from sinlstm_dist import metrics
from sinlstm_dist.config import load_config
from sinlstm_dist.job import Job, build
from sinlstm_dist.plan import Plan
from sinlstm_dist.processes.joining import join_world
from sinlstm_dist.processes.world import World
from sinlstm_dist.reduction import new_reduction

REDUCTIONS = ("ordered", "ddp")
HIDDEN_SIZES = (5, 64)  # 166 and 17,217 parameters
BATCHES = (100, 1000)
STEPS = 40
PIECES = 8  # of a batch, whatever shares them out


def median_ms(call: Callable[[], object]) -> float:
    """Milliseconds of a call."""
    times = []
    for _ in range(STEPS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def step_ms(job: Job) -> float:
    """A whole step, apart from fetching its batch. Collective: yes."""
    step, share = next(job.train.batches(whole=job.gradient.is_whole))

    def one_step() -> None:
        job.gradient(share, epoch=0, step=step, stop=False)
        job.update(step)

    one_step()
    return median_ms(one_step)


def exchange_ms(world: World, *, reduction: str, parameters: int) -> float:
    """What such a step's collectives cost when nothing else is done. Collective: yes."""
    if world.size == 1:
        return 0.0
    if reduction == "ordered":
        plan = Plan(PIECES, PIECES, PIECES, world.size, world.rank)
        width = parameters + metrics.NUM_TOTALS + 1
        sums = new_reduction(plan, world, width=width, at_once=None)

        def exchange() -> None:
            for _ in sums.groups():
                pass
            sums.total()

        return median_ms(exchange)
    gradient, totals = torch.zeros(parameters), torch.zeros(4).double()
    return median_ms(lambda: (world.sum(gradient), world.sum(totals)))


def measure_here(path: Path, *, share_of: int) -> None:
    """In each process of a world: what steps and bare collectives cost; rank 0 writes them.

    Args:
        share_of: number of processes; one process's share of batch and pieces is measured.
    """
    rows = []
    with join_world(timeout_s=120, one_thread=True) as world:
        for reduction, hidden_size, batch in itertools.product(REDUCTIONS, HIDDEN_SIZES, BATCHES):
            settings = {
                "train.reduction": reduction,
                "train.global_batch_size": batch // share_of,
                "train.virtual_shards": PIECES // share_of,
                "model.hidden_size": hidden_size,
                "data.train_size": batch,
            }
            job = build(load_config(overrides=settings), world)
            parameters = sum(p.numel() for p in job.rows.parameters)
            row: dict[str, Any] = {"reduction": reduction, "parameters": parameters, "batch": batch}
            row["step_ms"] = step_ms(job)
            row["exchange_ms"] = exchange_ms(world, reduction=reduction, parameters=parameters)
            rows.append(row)
        if world.is_main:
            path.write_text(json.dumps(rows))


def measure(processes: int, *, share_of: int = 1) -> list[dict[str, Any]]:
    """The rows that this number of processes measures."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "found.json")
        arguments = [__file__, "--here", str(found), "--share-of", str(share_of)]
        starting.run(arguments, processes=processes)
        rows: list[dict[str, Any]] = json.loads(found.read_text())
    return rows


def compare(processes: int, *, cores: int) -> list[dict[str, Any]]:
    """Measured and predicted cost of a step on this number of processes, one row per case."""
    turns = max(1.0, processes / cores)
    return [
        {
            **row,
            "processes": processes,
            "own_ms": turns * alone["step_ms"],
            "foretold_ms": turns * alone["step_ms"] + row["exchange_ms"],
        }
        for row, alone in zip(measure(processes), measure(1, share_of=processes), strict=True)
    ]


def main() -> None:
    """Measure world by world, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    even = (1, 2, 4, 8)  # which share the pieces out evenly
    parser.add_argument("--processes", type=int, nargs="*", choices=even, default=even)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--share-of", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        measure_here(options.here, share_of=options.share_of)
        return
    console = Console()
    rows = []
    with console.status("") as status:
        for processes in options.processes:
            status.update(f"{processes} processes")
            rows += compare(processes, cores=len(os.sched_getaffinity(0)))
    table = Table("reduction", title="ms per step")
    for heading in ("weights", "batch", "P", "own", "exchange", "foretold", "measured"):
        table.add_column(heading, justify="right")
    rows.sort(key=lambda row: (-len(row["reduction"]), row["parameters"], row["batch"]))
    for row in rows:
        counts = (f"{row[name]:,}" for name in ("parameters", "batch", "processes"))
        times = (f"{row[f'{name}_ms']:.2f}" for name in ("own", "exchange", "foretold", "step"))
        table.add_row(row["reduction"], *counts, *times)
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
