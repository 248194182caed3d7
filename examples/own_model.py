"""Your own model: a GRU that tells four noisy waves apart. Copy this file and change it.

python -m sinlstm_dist.train --task.build examples/own_model.py:build --train.epochs 20
"""

import math

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from sinlstm_dist.config import Config
from sinlstm_dist.task import Task


class Settings(BaseModel):
    """Your settings: [task] in a TOML file, --task.width 24 on a command line."""

    width: int = 16
    dropout: float = 0.1
    lr: float = 0.02


def waves(size: int) -> torch.utils.data.TensorDataset:
    """Draw noisy windows (40, 1) with a random period and phase, and their classes."""
    start, speed, classes = torch.rand(size, 1), torch.rand(size, 1), torch.arange(size) % 4
    saw = (start + torch.arange(40) / (10 + 10 * speed)) % 1 * 2 - 1  # (size, 40)
    kinds = torch.stack(((torch.pi * saw).sin(), saw.sign(), 2 * saw.abs() - 1, saw))
    noisy = kinds[classes, torch.arange(size)] + 0.1 * torch.randn(size, 40)
    return torch.utils.data.TensorDataset(noisy[..., None], classes)


class Classifier(nn.Module):
    """A GRU, and a linear layer on its last output."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, settings.width, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(settings.dropout), nn.Linear(settings.width, 4))

    def forward(self, waves: Tensor) -> Tensor:
        """Windows (B, 40, 1) to logits (B, 4)."""
        return self.head(self.rnn(waves)[0][:, -1])


def totals(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the sum of the losses and the number of correct predictions: sums, not means."""
    logits, classes = model(batch[0]), batch[1]
    loss = nn.functional.cross_entropy(logits, classes, reduction="sum")
    return loss, (logits.argmax(1) == classes).sum()


def build(settings: Settings, config: Config) -> Task:
    """Return what is trained: called on every process."""
    train, test, model = waves(2000), waves(400), Classifier(settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr)
    return Task(
        model, train, test, totals=totals, optimizer=optimizer, clip_norm=1.0,
        lr_factor=lambda step, n: min((step + 1) / 20, 0.5 + 0.5 * math.cos(math.pi * step / n)),
    )  # fmt: skip
