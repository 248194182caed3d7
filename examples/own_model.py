"""Your own model: a GRU that tells four noisy waves apart. Copy this file and change it.

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
    """Draw noisy windows (40, 1) with random periods and phases, and their classes."""
    start, speed = torch.rand(2, size // 4, 1)
    saw = (start + torch.arange(40) / (10 + 10 * speed)) % 1 * 2 - 1  # (size / 4, 40)
    kinds = torch.stack(((torch.pi * saw).sin(), saw.sign(), 2 * saw.abs() - 1, saw), dim=1)
    return TensorDataset(torch.normal(kinds, 0.1).view(size, 40, 1), torch.arange(size) % 4)


class LastOutput(nn.GRU):
    """A GRU that returns its last output."""

    def forward(self, windows: Tensor) -> Tensor:  # type: ignore[override]
        """Windows (B, 40, 1) to outputs (B, width)."""
        return super().forward(windows)[0][:, -1]


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
    gru = LastOutput(1, settings.width, batch_first=True)
    model = nn.Sequential(gru, nn.Dropout(settings.dropout), nn.Linear(settings.width, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr)
    return Task(model, waves(2000), waves(400), totals, optimizer, lr_factor, clip_norm=1.0)
