"""The task that every peer trains, and the output of its timings, for the scripts in this folder.

Each script takes the same flags, trains, and prints one JSON object as its last line:

    python benchmarks/peers/plain_pytorch.py --batch 100 --epochs 12
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass

import numpy as np

PERIOD, LR, TOLERANCE = 60.0, 0.01, 0.1
TEST_PHASE = 0.5  # test windows lie between the train windows, as in this package


@dataclass(frozen=True)
class Workload:
    """What is trained, and how much of it; the defaults are the article's."""

    batch: int = 100
    epochs: int = 12
    train_windows: int = 10_000
    test_windows: int = 1_000
    hidden_size: int = 5
    num_layers: int = 1
    window: int = 50
    momentum: float = 0.0
    noise: float = 0.0  # standard deviation, on inputs only

    def flags(self) -> list[str]:
        """The command line that `parse` reads back."""
        pairs = ((f"--{key.replace('_', '-')}", str(value)) for key, value in asdict(self).items())
        return [part for pair in pairs for part in pair]


def parse(description: str | None) -> Workload:
    """The workload that the command line asks for."""
    parser = argparse.ArgumentParser(description=description)
    for key, value in asdict(Workload()).items():
        parser.add_argument(f"--{key.replace('_', '-')}", type=type(value), default=value)
    workload = Workload(**vars(parser.parse_args()))
    if workload.train_windows % workload.batch:
        parser.error(
            f"--batch {workload.batch} does not divide --train-windows {workload.train_windows}: "
            "peers with a partial last batch would take other steps than those without"
        )
    return workload


def windows(size: int, *, window: int, noise: float, phase: float) -> tuple[np.ndarray, np.ndarray]:
    """Windows (size, window, 1) of the sine and the value after each (size, 1), float32."""
    steps = np.arange(size + window) + phase
    series = np.sin(2 * np.pi * steps / PERIOD).astype(np.float32)
    inputs = np.lib.stride_tricks.sliding_window_view(series, window)[:size, :, None].copy()
    if noise:  # drawn once: a sample is the same in every epoch, as in this package
        drawn = np.random.default_rng(0).standard_normal(inputs.shape, dtype=np.float32)
        inputs += np.float32(noise) * drawn
    return inputs, series[window:, None].copy()


def train_and_test(workload: Workload) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """The windows and targets to train on, and those to test on."""
    kind = {"window": workload.window, "noise": workload.noise}
    train = windows(workload.train_windows, phase=0.0, **kind)
    return train, windows(workload.test_windows, phase=TEST_PHASE, **kind)


class Record:
    """The epochs of a run as they end: seconds from the end of the one before, and its metrics."""

    def __init__(self) -> None:
        self._epochs: dict[str, list[float]] = {}

    def start(self) -> None:
        """The first epoch begins now."""
        self._mark = time.perf_counter()

    def end_epoch(self, *, train_loss: float, test_loss: float, test_accuracy: float) -> None:
        """An epoch, its test included, ends now."""
        now = time.perf_counter()
        values = {
            "epoch_s": now - self._mark,
            "train_loss": train_loss,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
        }
        for key, value in values.items():
            self._epochs.setdefault(key, []).append(float(value))
        self._mark = time.perf_counter()

    def print(self) -> None:
        """The last line of a peer's output."""
        print(json.dumps(self._epochs), flush=True)
