"""Your own model: a GRU that tells four noisy waves apart. Copy this file and change it:
python -m sinlstm_dist.train --task.build examples/own_model.py:build --train.epochs 20
"""

import math

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from sinlstm_dist.config import Config
from sinlstm_dist.task import Task


class Settings(BaseModel):
    """Your settings: [task] in a TOML file, --task.width 24 on a command line."""

    width: int = 16
    dropout: float = 0.1
    lr: float = 0.02


def waves(size: int) -> TensorDataset:
    """Draw noisy windows (40, 1) with a random period and phase, and their classes."""
    classes, (start, speed) = torch.arange(size) % 4, torch.rand(2, size, 1, 1)
    saw = (start + torch.arange(40)[:, None] / (10 + 10 * speed)) % 1 * 2 - 1  # (size, 40, 1)
    kinds = torch.stack(((torch.pi * saw).sin(), saw.sign(), 2 * saw.abs() - 1, saw))
    return TensorDataset(kinds[classes, range(size)] + 0.1 * torch.randn(size, 40, 1), classes)


class Classifier(nn.GRU):
    """A GRU, and a linear layer on its last output."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(1, settings.width, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(settings.dropout), nn.Linear(settings.width, 4))

    def forward(self, waves: Tensor) -> Tensor:  # type: ignore[override]
        """Windows (B, 40, 1) to logits (B, 4)."""
        return self.head(super().forward(waves)[0][:, -1])


def totals(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the sum of the losses and the number of correct predictions: sums, not means."""
    logits, classes = model(batch[0]), batch[1]
    loss = nn.functional.cross_entropy(logits, classes, reduction="sum")
    return loss, (logits.argmax(1) == classes).sum()


def lr_factor(step: int, num_steps: int) -> float:
    """Warm up for 20 steps, then follow a cosine down to 0."""
    return min((step + 1) / 20, 0.5 + 0.5 * math.cos(math.pi * step / num_steps))


def build(settings: Settings, config: Config) -> Task:
    """Return what is trained: it is called on every process."""
    data, model = (waves(2000), waves(400)), Classifier(settings)  # data first, for any width
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr)
    return Task(model, *data, totals, optimizer, lr_factor, clip_norm=1.0)
