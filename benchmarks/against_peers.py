"""Measure seconds per epoch, train and test, of this package and its peers, in turn.

python benchmarks/against_peers.py
python benchmarks/against_peers.py --batch 100 1000 10000 --rounds 5 --json peers.json

Every peer trains the same windows, each in a process of its own, with one thread and with one per
core, of which the better counts. This package runs as its ordinary command,
with its files and metrics written; its time is that of the whole run after the imports, shared out
over the epochs, while a peer's is that of its epochs alone. Other settings than the article's are
in settings.py.
"""

import argparse
import functools
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import machine
from rich.console import Console
from rich.table import Table

PEERS = Path(__file__).parent / "peers"
sys.path.insert(0, str(PEERS))
from workload import Workload  # noqa: E402

OURS = "sinlstm_dist"
NEEDS = {
    OURS: "sinlstm_dist",
    "article": "torch",
    "plain_pytorch": "torch",
    "accelerate_loop": "accelerate",
    "hf_trainer": "transformers",
    "lightning_trainer": "lightning",
    "jax_scan": "jax",
}
WARM_UP = 2  # epochs of a peer that do not count: compilers and caches
THREADS = sorted({1, os.cpu_count() or 1})
OUR_EPOCHS = 10  # for each of a peer's: they are short, and a few would be noise

Runner = Callable[..., float]  # a workload, and `environment=`; returns seconds per epoch
Program = tuple[str, int]  # a peer or this package, and its number of threads
Times = dict[Program, list[float]]  # seconds per epoch in each round


def run_peer(name: str, workload: Workload, *, environment: Mapping[str, str]) -> float:
    """Run a peer in a process of its own; returns its median seconds per epoch."""
    command = [sys.executable, str(PEERS / f"{name}.py"), *workload.flags()]
    printed = _run(command, environment)
    return statistics.median(json.loads(printed.splitlines()[-1])["epoch_s"][WARM_UP:])


def run_ours(workload: Workload, *, environment: Mapping[str, str]) -> float:
    """Run the ordinary command; returns its wall time over its epochs."""
    epochs = OUR_EPOCHS * workload.epochs
    with tempfile.TemporaryDirectory() as folder:
        train(replace(workload, epochs=epochs), folder, environment=environment)
        return json.loads(Path(folder, "summary.json").read_text())["wall_s"] / epochs


def train(workload: Workload, folder: str, *flags: str, environment: Mapping[str, str]) -> None:
    """This package's ordinary command, with a workload in its own words."""
    settings = {
        "data.train_size": workload.train_windows,
        "data.test_size": workload.test_windows,
        "data.window": workload.window,
        "data.noise": workload.noise,
        "model.hidden_size": workload.hidden_size,
        "model.num_layers": workload.num_layers,
        "optim.momentum": workload.momentum,
        "train.global_batch_size": workload.batch,
        "train.epochs": workload.epochs,
        "output.dir": folder,
    }
    words = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    _run([sys.executable, "-m", "sinlstm_dist.train", *words, *flags], environment)


def _run(command: list[str], environment: Mapping[str, str]) -> str:
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    if ended.returncode:
        sys.exit(f"{' '.join(command)}\n{ended.stderr}")
    return ended.stdout


RUNNERS = {**{name: functools.partial(run_peer, name) for name in NEEDS}, OURS: run_ours}


def measure(
    programs: Iterable[Program],
    workload: Workload,
    *,
    title: str,
    rounds: int,
    console: Console,
    runners: Mapping[str, Runner] = RUNNERS,
) -> Times:
    """Run all programs in turn, `rounds` times, so that the machine's moods meet all alike."""
    times: Times = defaultdict(list)
    with console.status("") as status:
        for number, (name, threads) in itertools.product(range(rounds), programs):
            status.update(f"{title}, round {number + 1}: {name}, {threads} threads")
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            times[name, threads].append(runners[name](workload, environment=environment))
    return times


def rows(times: Times) -> list[dict[str, Any]]:
    """Each peer's better number of threads, fastest peer first."""
    best: dict[str, int] = {}
    for name, threads in times:
        known = best.setdefault(name, threads)
        if statistics.median(times[name, threads]) < statistics.median(times[name, known]):
            best[name] = threads
    ours = times[OURS, best[OURS]]
    table = []
    for name, threads in best.items():
        seconds = times[name, threads]
        ratios = [theirs / own for theirs, own in zip(seconds, ours, strict=True)]
        table.append(
            {
                "peer": name,
                "threads": threads,
                "epoch_s": statistics.median(seconds),
                "epoch_s_min": min(seconds),
                "epoch_s_max": max(seconds),
                "times_ours": statistics.median(ratios),
                "times_ours_min": min(ratios),
                "times_ours_max": max(ratios),
            }
        )
    return sorted(table, key=lambda row: row["epoch_s"])


def show(console: Console, batch: int, table: list[dict[str, Any]]) -> None:
    """Print one batch size's table."""
    shown = Table("peer", "threads", "s an epoch (min-max)", "times ours (min-max)")
    shown.title = f"batch {batch:,}"
    for row in table:
        seconds = f"{row['epoch_s']:.4f} ({row['epoch_s_min']:.4f}-{row['epoch_s_max']:.4f})"
        ratio = f"{row['times_ours']:.1f} ({row['times_ours_min']:.1f}-{row['times_ours_max']:.1f})"
        shown.add_row(row["peer"], str(row["threads"]), seconds, ratio)
    console.print(shown)


def installed(names: Iterable[str], console: Console) -> list[str]:
    """This package, and those of the peers whose packages are here; the others are named."""
    found = [OURS, *(name for name in names if name != OURS)]
    for name in [name for name in found if importlib.util.find_spec(NEEDS[name]) is None]:
        console.print(f"{name} is skipped: {NEEDS[name]} is not installed")
        found.remove(name)
    return found


def main() -> None:
    """Measure, and print a table for each batch size as it is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8, help="of a peer; ours has ten times more")
    parser.add_argument("--peers", nargs="*", choices=NEEDS, default=list(NEEDS))
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    console = Console()
    names = installed(options.peers, console)
    programs = [(name, count) for count in THREADS for name in names]
    found = {}
    for batch in options.batch:
        workload = Workload(batch=batch, epochs=options.epochs)
        title = f"batch {batch}"
        found[batch] = rows(
            measure(programs, workload, title=title, rounds=options.rounds, console=console)
        )
        show(console, batch, found[batch])
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "batches": found}, indent=1))


if __name__ == "__main__":
    main()
