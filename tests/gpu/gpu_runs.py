"""What the tests on a GPU train, and how they start it."""

from pathlib import Path

import launching
import pytest
import torch
from launching import flags

ROOT = Path(__file__).parents[2]
DEVICE = "cuda"
BACKENDS = pytest.mark.parametrize("backend", ["nccl", "gloo"])
ON_CPU = {"CUDA_VISIBLE_DEVICES": ""}

SETTINGS = {
    "data.train_size": 1000,
    "data.test_size": 300,
    "data.noise": 0.02,
    "optim.momentum": 0.9,
    "optim.lr": 0.1,
    "train.epochs": 2,
    "train.timeout_s": 60,
    "output.dir": "run",
}
OWN_MODEL = {
    "task.build": f"{ROOT}/examples/own_model.py:build",
    "train.epochs": 2,
    "train.timeout_s": 60,
    "output.dir": "run",
}
# "shared out": its gradients are too large to be gathered
TRAINED = {
    "torch": {**SETTINGS, "model.lstm": "torch"},
    "fused": {**SETTINGS, "model.lstm": "fused"},
    "shared out": {**SETTINGS, "model.hidden_size": 192},
    "two layers": {**SETTINGS, "model.hidden_size": 512, "model.num_layers": 2},
    "own model": OWN_MODEL,
}


def python_arguments(backend: str, module: str) -> list[str]:
    """Python's arguments for one of two processes; over NCCL each has a GPU if there are two."""
    if backend == "nccl" and torch.cuda.device_count() > 1:
        return ["-m", f"sinlstm_dist.{module}"]
    return [str(ROOT / "tests/gpu/on_one_gpu.py"), backend, f"sinlstm_dist.{module}"]


def on_two(backend: str, module: str, *arguments: str) -> list[str]:
    """The command line that starts `module` on two processes."""
    return [*launching.torchrun(2), *python_arguments(backend, module), *arguments]


def start(folder: Path, settings: dict[str, object], **variables: str):
    """Start one training process in a folder of its own."""
    folder.mkdir(exist_ok=True)
    return launching.start(flags(settings), cwd=folder, **variables)


def train(folder: Path, settings: dict[str, object], **variables: str) -> launching.Ended:
    """Train on one process to the end."""
    ended = launching.finish(start(folder, settings, **variables))
    assert ended.code == 0, ended.stdout + ended.stderr
    return ended


def train_both(
    folder: Path, settings: dict[str, object], *others: dict[str, str]
) -> tuple[Path, Path]:
    """Train the same twice at the same time; returns the two run folders.

    Args:
        others: variables of the second start.
    """
    one, other = folder / "one", folder / "other"
    (variables,) = others or ({},)
    for process in (start(one, settings), start(other, settings, **variables)):
        ended = launching.finish(process)
        assert ended.code == 0, ended.stdout + ended.stderr
    assert launching.summary(one / "run")["device"] == DEVICE
    return one / "run", other / "run"
