"""Measure milliseconds per training step with ordered reduction and with `ddp`, in turn.

python benchmarks/reduction.py
python benchmarks/reduction.py --processes 1 2 --rounds 5
"""

import argparse
import itertools
import statistics

from starting import train

EPOCHS = 8
FASTEST = 4  # epochs that count in a round: the machine's other work only ever slows one down


def measure(*, processes: int, batch: int, lstm: str, reduction: str) -> float:
    """Train a little; returns milliseconds per step, over the fastest epochs."""
    settings = {
        "train.epochs": EPOCHS,
        "train.global_batch_size": batch,
        "train.reduction": reduction,
        "model.lstm": lstm,
    }
    records = train(settings, processes=processes)
    seconds = sorted(record["train_samples"] / record["samples_per_s"] for record in records)
    return 1000 * statistics.mean(seconds[:FASTEST]) / records[0]["step"]


def main() -> None:
    """Print one line for each combination, as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="*", default=[100, 1000])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print("processes  batch  recurrence  ordered ms  ddp ms  ordered/ddp (rounds)")
    combinations = itertools.product(options.processes, options.batch, ("fused", "torch"))
    for processes, batch, lstm in combinations:
        pairs = [
            [
                measure(processes=processes, batch=batch, lstm=lstm, reduction=reduction)
                for reduction in ("ordered", "ddp")
            ]
            for _ in range(options.rounds)
        ]
        ordered, ddp = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratios = " ".join(f"{a / b:.2f}" for a, b in sorted(pairs))
        print(
            f"{processes:9}  {batch:5}  {lstm:10}  {ordered:10.3f}  {ddp:6.3f}  {ratios}",
            flush=True,
        )


if __name__ == "__main__":
    main()
