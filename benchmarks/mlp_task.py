"""A perceptron with a million parameters, for benchmarks/reduction.py: its gradient is large."""

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from sinlstm_dist.config import Config
from sinlstm_dist.task import Task

NUM_INPUTS, NUM_CLASSES = 128, 16


class Settings(BaseModel):
    """The sizes of model and data."""

    width: int = 672
    size: int = 1024


def points(size: int) -> TensorDataset:
    """Draw inputs (NUM_INPUTS,) and a class that follows from them."""
    inputs = torch.randn(size, NUM_INPUTS)
    return TensorDataset(inputs, inputs[:, :NUM_CLASSES].argmax(1))


def totals(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return sums of cross entropy and of correct predictions."""
    logits, classes = model(batch[0]), batch[1]
    loss = nn.functional.cross_entropy(logits, classes, reduction="sum")
    return loss, (logits.argmax(1) == classes).sum()


def build(settings: Settings, config: Config) -> Task:
    """Return the task: three layers and SGD."""
    width = settings.width
    model = nn.Sequential(
        nn.Linear(NUM_INPUTS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, width), nn.ReLU(), nn.Linear(width, NUM_CLASSES),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return Task(model, points(settings.size), points(64), totals, optimizer)
