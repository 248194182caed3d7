"""Where the time of a training step goes, in microseconds, part by part.

python benchmarks/step.py
python benchmarks/step.py --batch 1000 --threads 2

Each part is called alone, many times, and its fastest round counts; the whole is the fastest epoch
of an ordinary run. What is not listed (the loop, the request to stop, the screen) is the rest. The
first part is one call of the kernel for several steps; the last line is one call for each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--batch", type=int, default=100)
parser.add_argument("--threads", type=int, default=1)
options = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = str(options.threads)  # read when torch is imported

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from sinlstm_dist import job, stepping  # noqa: E402
from sinlstm_dist.config import load_config  # noqa: E402
from sinlstm_dist.processes.joining import join_world  # noqa: E402
from sinlstm_dist.reduction import totals_over  # noqa: E402
from sinlstm_dist.run.progress import Progress  # noqa: E402

ROUNDS = 40


def fastest_us(call: Callable[[], object], *, number: int) -> float:
    """Microseconds of a call, in the fastest of some rounds of `number` calls."""
    rounds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(number):
            call()
        rounds.append((time.perf_counter() - began) / number)
    return 1e6 * min(rounds)


def whole_step_us(batch: int) -> float:
    """The fastest epoch of an ordinary run, its test included, over its steps."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sinlstm_dist.train", "--output.dir", f"{folder}/run"]
        flags = ["--train.epochs", "100", "--train.global_batch_size", str(batch)]
        subprocess.run([*command, *flags], check=True, capture_output=True)
        lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return 1e6 * min(record["epoch_s"] for record in records) / records[0]["step"]


def parts_us(batch: int) -> tuple[dict[str, float], float]:
    """Each part of a step alone, and a step that is made in calls of its own."""
    config = load_config(overrides={"train.global_batch_size": batch})
    with join_world(timeout_s=60, one_thread=True) as world:
        built = job.build(config, world)
        split, make_steps = built.train, stepping.new_stepping(built, world)
        stepping.SLICE_NS = 10**12  # one call for all steps
        num_steps = split.plan.num_steps
        strides = split.strides(epoch=0, next_step=lambda: 0, whole=True, most=lambda: num_steps)
        steps, together = next(strides)
        (_, alone), *_ = split.batches(whole=True)

        def load_epoch() -> None:
            split.sampler.start(epoch=0, step=0)
            for _ in split.loader:
                pass

        def single_step() -> None:
            built.gradient(alone, epoch=0, step=0, stop=False)
            built.update(0)

        def call() -> None:
            make_steps(together, Progress(), most=len(steps), stop=False)

        parts = {
            "recurrence, sum, optimizer": fastest_us(call, number=5) / len(steps),
            "data": fastest_us(load_epoch, number=3) / num_steps,
            "test, an epoch's over its steps": fastest_us(
                lambda: totals_over(built.rows, built.test, peers=world), number=3
            )
            / num_steps,
        }
        return parts, fastest_us(single_step, number=100)


def main() -> None:
    """Measure and print the table."""
    parts, alone = parts_us(options.batch)
    whole = whole_step_us(options.batch)
    parts["the rest"] = whole - sum(parts.values())
    table = Table("part of a step", "us", "share", title=f"batch {options.batch:,}")
    for name, duration in parts.items():
        table.add_row(name, f"{duration:.0f}", f"{100 * duration / whole:.0f} %")
    table.add_section()
    table.add_row("whole", f"{whole:.0f}", "100 %")
    table.add_section()
    table.add_row("recurrence, sum, optimizer, step by step", f"{alone:.0f}", "")
    Console().print(table)


if __name__ == "__main__":
    main()
