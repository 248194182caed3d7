"""Compare ordered reduction with `ddp`: milliseconds per training step, in turn, and memory.

python benchmarks/reduction.py
python benchmarks/reduction.py --task sine --processes 1 2 --batch 100 1000 --rounds 5
python benchmarks/reduction.py --memory

The perceptron of mlp_task.py has a million parameters and as many pieces as processes, so both ways
do the same work; the sine has its 8 pieces.
"""

import argparse
import itertools
import math
import os
import statistics
import subprocess
import sys
import tempfile

from starting import train

EPOCHS = 8
FASTEST = 4  # epochs that count in a round: the machine's other work only ever slows one down
MLP = "benchmarks/mlp_task.py:build"
WIDE = 2048  # of the perceptron whose memory is compared: 8.7 million parameters
PEAK = (
    "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, "
    "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)


def task_settings(task: str, processes: int) -> dict[str, object]:
    """The settings that choose a task: the sine's recurrence, or the perceptron."""
    if task == "mlp":
        return {"task.build": MLP, "train.virtual_shards": processes}
    return {"model.lstm": "fused" if task == "sine" else "torch"}


def measure(*, task: str, processes: int, batch: int, reduction: str) -> float:
    """Train a little; returns milliseconds per step, over the fastest epochs."""
    settings = {
        **task_settings(task, processes),
        "train.epochs": EPOCHS,
        "train.global_batch_size": batch,
        "train.reduction": reduction,
    }
    records = train(settings, processes=processes)
    seconds = sorted(record["train_samples"] / record["samples_per_s"] for record in records)
    return 1000 * statistics.mean(seconds[:FASTEST]) / records[0]["step"]


def compare_steps(options: argparse.Namespace) -> None:
    """Print one line for each combination, as it is measured."""
    print("processes  batch  task        ordered ms  ddp ms  ordered/ddp (rounds)")
    for processes, batch in itertools.product(options.processes, options.batch):
        pairs = [
            [
                measure(task=options.task, processes=processes, batch=batch, reduction=reduction)
                for reduction in ("ordered", "ddp")
            ]
            for _ in range(options.rounds)
        ]
        ordered, ddp = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratios = " ".join(f"{ratio:.2f}" for ratio in sorted(a / b for a, b in pairs))
        print(
            f"{processes:9}  {batch:5}  {options.task:10}  {ordered:10.3f}  {ddp:6.3f}  {ratios}",
            flush=True,
        )


def peak_mib(*, processes: int, shards: int, reduction: str) -> float:
    """The most memory that one process of a training used, in MiB."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "task.build": MLP, "task.width": WIDE, "task.size": 128, "train.epochs": 1,
            "train.global_batch_size": 64, "train.virtual_shards": shards,
            "train.reduction": reduction, "output.dir": f"{folder}/run",
        }  # fmt: skip
        flags = [f"--{key}={value}" for key, value in settings.items()]
        command = [sys.executable, *launcher, "-m", "sinlstm_dist.train", *flags]
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-c", PEAK, *command]
        printed = subprocess.run(words, env=one_thread, capture_output=True, check=True).stdout
    return int(printed) / 1024


def compare_memory(options: argparse.Namespace) -> None:
    """Print how many gradients of memory ordered reduction needs more than `ddp`."""
    gradient = 4 * (128 * WIDE + 2 * WIDE * WIDE + 16 * WIDE) / 2**20
    print(f"a gradient has {gradient:.0f} MiB\nprocesses  pieces  ordered  ddp MiB  more gradients")
    for processes in options.processes:
        ddp = peak_mib(processes=processes, shards=processes, reduction="ddp")
        for shards in (processes, 8, 64):
            ordered = peak_mib(processes=processes, shards=shards, reduction="ordered")
            more = (ordered - ddp) / gradient
            allowed = math.log2(shards) + 3
            print(
                f"{processes:9}  {shards:6}  {ordered:7.0f}  {ddp:7.0f}  {more:.1f} of {allowed:g}",
                flush=True,
            )


def main() -> None:
    """Compare steps, or memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=("mlp", "sine", "sine-torch"), default="mlp")
    parser.add_argument("--processes", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--batch", type=int, nargs="*", default=[64, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    (compare_memory if options.memory else compare_steps)(options)


if __name__ == "__main__":
    main()
