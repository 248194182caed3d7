"""Your own model: a GRU that tells four noisy waves apart. Copy this file and change it.

    python -m sinlstm_dist.train --task.build examples/own_model.py:build --train.epochs 10
    torchrun --nproc-per-node 2 --local-addr 127.0.0.1 -m sinlstm_dist.train \
        --task.build examples/own_model.py:build --task.width 24 --output.dir runs/width-24
"""

import math

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.utils.data import Dataset

from sinlstm_dist.config import Config
from sinlstm_dist.task import Task


class Settings(BaseModel):  # [task] in a TOML file, --task.width 24 on a command line
    width: int = 16
    dropout: float = 0.2
    lr: float = 1e-2


class Waves(Dataset[tuple[Tensor, int]]):  # drawn at random, and yet the same on any process
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        turns = (torch.rand(()) + torch.arange(40) / (10 + 20 * torch.rand(()))) % 1  # (40,)
        triangle, saw = 4 * (turns - 0.5).abs() - 1, 2 * turns - 1
        wave = ((2 * math.pi * turns).sin(), saw.sign(), triangle, saw)[index % 4]
        return (wave + 0.3 * torch.randn(40))[:, None], index % 4  # (40, 1) and its class


class Classifier(nn.Module):
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, settings.width, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(settings.dropout), nn.Linear(settings.width, 4))

    def forward(self, waves: Tensor) -> Tensor:
        return self.head(self.rnn(waves)[0][:, -1])  # (B, 40, 1) to (B, 4)


def totals(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    logits, classes = model(batch[0]), batch[1]  # sums over the batch, not means
    loss = nn.functional.cross_entropy(logits, classes, reduction="sum")
    return loss, (logits.argmax(1) == classes).sum()


def lr_factor(step: int, num_steps: int) -> float:  # warm-up, then a cosine down to 0
    return min((step + 1) / 20, 0.5 + 0.5 * math.cos(math.pi * step / num_steps))


def build(settings: Settings, config: Config) -> Task:
    model = Classifier(settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr)
    return Task(model, Waves(2000), Waves(400), totals, optimizer, lr_factor, clip_norm=1.0)
