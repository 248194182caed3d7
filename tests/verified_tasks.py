"""Tasks for `verify --task.build`: one that is right, and some that are not."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.utils.data import Dataset

from sinlstm_dist.config import Config
from sinlstm_dist.task import Task

SIZE, TEST_SIZE, WIDTH, KINDS = 200, 90, 6, 3


class Settings(BaseModel):
    """The settings of all tasks."""

    dropout: float = 0.5
    is_counted: bool = True


class Points(Dataset[dict[str, Any]]):
    """Noisy points of three kinds, some of them equal in all but the noise.

    Args:
        draw: gives the noise of a sample.
    """

    def __init__(self, size: int, draw: Callable[[], Tensor]) -> None:
        self.size, self._draw = size, draw

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        kind = index % KINDS
        return {"point": kind + torch.arange(WIDTH) / 5 + 0.1 * self._draw(), "kind": kind}


def augment() -> Tensor:
    """Noise by torch's generator, which is seeded for each sample."""
    return torch.randn(WIDTH)


def task(settings: Settings, draw: Callable[[], Tensor], *layers: nn.Module) -> Task:
    """A classifier with dropout."""
    model = nn.Sequential(nn.Linear(WIDTH, 16), *layers, nn.Dropout(settings.dropout))
    model.extend([nn.ReLU(), nn.Linear(16, KINDS)])

    def totals(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        logits, kinds = model(batch["point"]), batch["kind"]
        correct = (logits.argmax(1) == kinds).sum() if settings.is_counted else None
        return nn.functional.cross_entropy(logits, kinds, reduction="sum"), correct

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data = Points(SIZE, draw), Points(TEST_SIZE, draw)
    return Task(
        model, *data, totals, optimizer, lambda step, num_steps: 1 - step / num_steps, clip_norm=1.0
    )


def build(settings: Settings, config: Config) -> Task:
    """A task that is right."""
    return task(settings, augment)


def build_norm(settings: Settings, config: Config) -> Task:
    """A task that only `reduction = "ddp"` takes."""
    return task(settings, augment, nn.BatchNorm1d(16))


def build_weighted(settings: Settings, config: Config) -> Task:
    """A task whose divisor is a sum that is rounded."""

    def totals(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, None, Tensor]:
        weights = batch["point"][:, 0].abs()
        losses = nn.functional.cross_entropy(model(batch["point"]), batch["kind"], reduction="none")
        return (losses * weights).sum(), None, weights.sum()

    return replace(task(settings, augment), totals=totals)


def build_own_generator(settings: Settings, config: Config) -> Task:
    """Its samples depend on the order in which they are fetched: nothing seeds their generator."""
    generator = torch.Generator()
    return task(settings, lambda: torch.randn(WIDTH, generator=generator))
