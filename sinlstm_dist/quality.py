"""The quality of a trained model of the built-in task, and of two baselines."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from sinlstm_dist.config import SINE, Config, Data
from sinlstm_dist.data.source import WindowDataset, datasets, last_values, period_ago
from sinlstm_dist.data.steps import pieces
from sinlstm_dist.differences import NO_SCALE
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.metrics import NUM_TOTALS, Totals
from sinlstm_dist.model import Persistence
from sinlstm_dist.new_task import trained_task
from sinlstm_dist.piece_rows import TESTING, PieceRows, Place
from sinlstm_dist.processes.world import World
from sinlstm_dist.reduction import sum_over
from sinlstm_dist.splits import deal_out_test, prepared
from sinlstm_dist.task import Counts, Task
from sinlstm_dist.trained import Trained

SECTORS = 12  # of the cycle, 30 degrees each


@dataclass(frozen=True)
class Quality:
    """The quality of predictions for the test windows.

    Args:
        totals: loss and accuracy, as training counts them.
        errors: (SECTORS,) sum of absolute errors, by the target's place in the cycle.
        samples: (SECTORS,) number of samples there.
        largest: (SECTORS,) largest absolute error there.
    """

    totals: Totals
    errors: np.ndarray
    samples: np.ndarray
    largest: np.ndarray

    @property
    def mean_error(self) -> float:
        """Mean absolute error over all samples."""
        return float(self.errors.sum() / self.samples.sum())


@dataclass(frozen=True)
class Evaluation:
    """The quality of a model and of two baselines.

    Args:
        model: of the trained model.
        last_value: of the baseline "the last value again".
        period_ago: of the baseline "the value one period ago"; None if there is no such value.
        notes: what a reader must know.
    """

    model: Quality
    last_value: Quality
    period_ago: Quality | None
    notes: list[str]


def evaluate_trained(trained: Trained, *, world: World) -> Evaluation:
    """Test a model on the test windows of its configuration.

    Raises:
        ConfigError: the weights do not fit the configuration, or there are more processes than
            pieces.

    Collective: yes.
    """
    config = trained.config
    task = trained_task(config, trained.weights, world)
    _, test = datasets(config.data, trained.series, trained.scale)
    notes = trained.notes
    unit = (trained.scale or NO_SCALE).std
    assess = functools.partial(_assess, targets=test, unit=unit, config=config, world=world)
    persistence = replace(task, model=Persistence(), rows=None)
    try:
        ago = period_ago(config.data, trained.series, trained.scale)
    except ConfigError as error:  # the same on every process
        ago, notes = None, [*notes, str(error)]
    return Evaluation(
        model=assess(task, inputs=test),
        last_value=assess(persistence, inputs=last_values(test)),
        period_ago=assess(persistence, inputs=ago) if ago else None,
        notes=notes,
    )


class _TestSamples(Dataset[tuple[torch.Tensor, ...]]):
    """A data set of inputs (B, W, 1), targets (B, 1) and the targets' sectors (B,)."""

    by_array = True  # see data/steps.py

    def __init__(self, inputs: WindowDataset, targets: WindowDataset, settings: Data) -> None:
        self._inputs, self._targets = inputs, targets
        phase = settings.test_phase if settings.source == SINE else 0.0
        self._first, self._period = phase + settings.context, settings.period

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, indices: np.ndarray) -> tuple[torch.Tensor, ...]:
        turns = (indices + self._first) / self._period
        # A target at the edge of a sector, which is rounded, belongs to the sector that begins.
        sectors = np.floor(turns % 1 * SECTORS + 1e-6).astype(np.int64) % SECTORS
        inputs, targets = self._inputs[indices][0], self._targets[indices][1]
        return inputs, targets, torch.from_numpy(sectors)


@torch.no_grad()
def _assess(
    task: Task,
    *,
    inputs: WindowDataset,
    targets: WindowDataset,
    unit: float,
    config: Config,
    world: World,
) -> Quality:
    """Count a model's predictions and errors, errors times `unit`. Collective: yes, two."""
    task = replace(task, test_data=_TestSamples(inputs, targets, config.data))
    split = deal_out_test(task, config, world, num_pieces=config.train.virtual_shards)
    split = prepared(split, world)
    counter = PieceRows(task, Counts(), seed=0, device=world.device, num_threads=world.num_threads)
    largest = torch.zeros(1, SECTORS, device=world.device)

    def rows(step: int, batch: Any, sizes: Sequence[int]) -> torch.Tensor:
        """(pieces, NUM_TOTALS + 2 * SECTORS): totals, then errors and samples by sector."""
        cut = pieces(batch, sizes) if counter.is_whole else batch
        pairs = batch[:2] if counter.is_whole else [piece and piece[:2] for piece in batch]
        totals = counter.totals(pairs, sizes=sizes, place=Place(TESTING, step))
        by_sector = torch.zeros(len(sizes), 2 * SECTORS, device=world.device).double()
        for row, piece in zip(by_sector, cut, strict=True):
            if piece is not None:
                errors, place = _errors_by_sector(task.model, piece)
                row[:] = torch.cat((errors * unit, place), dim=1).double().sum(0)
                largest.copy_(torch.cat((largest, errors * unit)).amax(0, keepdim=True))
        return torch.cat((totals, by_sector), dim=1)

    width = NUM_TOTALS + 2 * SECTORS
    numbers = sum_over(
        split, rows, width=width, peers=world, whole=counter.is_whole
    ).tolist()  # collective
    errors, samples = np.reshape(numbers[NUM_TOTALS:], (2, SECTORS))
    return Quality(
        totals=Counts().to_totals(numbers[:NUM_TOTALS]),
        errors=errors,
        samples=samples,
        largest=world.gather(largest).amax(0).cpu().numpy(),  # collective
    )


def _errors_by_sector(
    model: nn.Module, piece: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Absolute errors, each in its sector's column, and where they are: both (B, SECTORS)."""
    windows, targets, sectors = piece
    place = sectors[:, None] == torch.arange(SECTORS, device=sectors.device)
    return (model(windows) - targets).abs() * place, place
