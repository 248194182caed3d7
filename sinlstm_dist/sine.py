"""The built-in task: predict the next value of a sine, or of a series from a file."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sinlstm_dist import lstm
from sinlstm_dist.config import SINE, Config
from sinlstm_dist.data.series import Series, SeriesDataset
from sinlstm_dist.data.sine import Batch
from sinlstm_dist.data.source import (
    WindowDataset,
    datasets,
    describe_source,
    last_values,
    open_source,
)
from sinlstm_dist.lstm import reference
from sinlstm_dist.model import Persistence, Predictor
from sinlstm_dist.optim import SGD
from sinlstm_dist.task import ADVICE, Baseline, BatchRows, Task
from sinlstm_dist.words import counted

_WEIGHTS = 2  # separates initial weights from sample orders of the same seed, see plan.py
PREVIEW_SAMPLES = 120  # at most; a picture in characters shows no more


def build(config: Config, recurrence: lstm.Choice) -> Task:
    """Build the built-in task.

    Args:
        config: its data, model, optim and train sections.
        recurrence: the implementation of the model's recurrence.

    Raises:
        ConfigError: the series cannot be used.
    """
    series = open_source(config.data)
    train, test = datasets(config.data, series)
    model = Predictor(
        hidden_size=config.model.hidden_size,
        num_layers=config.model.num_layers,
        scaled=config.data.source != SINE,
        difference=config.data.difference,
        fused=recurrence.name == "fused",
    )
    draw_weights(model, seed=config.train.seed)
    if model.scaling and isinstance(train, SeriesDataset):
        model.scaling.set(train.scale.mean, train.scale.std)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return Task(
        model=model,
        train_data=train,
        test_data=test,
        totals=functools.partial(totals, tolerance=config.train.tolerance),
        optimizer=SGD(model.parameters(), lr=config.optim.lr, momentum=config.optim.momentum),
        rows=_rows(recurrence, tolerance=config.train.tolerance),
        advice=_what_to_try(series),
        data_record=series.record() if series else None,
        baselines={"last value again": Baseline(Persistence(), last_values(test))},
        preview=functools.partial(_preview, model, test, period=config.data.period),
        facts={
            "data": f"{len(train):,} train and {counted(len(test), 'test window')} of "
            f"{counted(config.data.window, 'step')}, {describe_source(config.data, series)}",
            "model": f"{counted(num_parameters, 'parameter')}, recurrence: {recurrence.name} "
            f"({recurrence.reason})",
        },
    )


def _what_to_try(series: Series | None) -> str:
    """What to try if a baseline is better; differences only where they deviate less than values."""
    n = 0 if series is None or series.settings.difference else series.suggested_difference()
    return f"--data.difference {n}, {ADVICE}" if n else ADVICE


def _rows(recurrence: lstm.Choice, *, tolerance: float) -> BatchRows | None:
    functions = {"fused": fused_rows, "reference": reference_rows}
    if recurrence.name not in functions:
        return None
    return functools.partial(functions[recurrence.name], tolerance=tolerance)


def kernel_tolerance(task: Task) -> float | None:
    """The tolerance of a task whose rows the fused kernel computes; None for any other task."""
    rows: Any = task.rows
    is_kernels = isinstance(rows, functools.partial) and rows.func is fused_rows
    return float(rows.keywords["tolerance"]) if is_kernels else None


@torch.no_grad()
def draw_weights(model: Predictor, *, seed: int) -> None:
    """Draw a model's weights as nn.LSTM and nn.Linear do, with the same bits on any CPU.

    They are uniform from -1 to 1, times 1 / sqrt(hidden size). torch's own numbers follow the CPU.

    Args:
        seed: 0 to 2**32 - 1.
    """
    bound = np.float32(1 / math.sqrt(model.rnn.hidden_size))
    generator = np.random.PCG64(np.random.SeedSequence([_WEIGHTS, seed]))
    for parameter in model.parameters():
        words = generator.random_raw(parameter.numel()) >> 40  # 24 bits: exact as float32
        uniform = words.astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
        parameter.copy_(torch.from_numpy(uniform * bound).view_as(parameter))


def totals(model: nn.Module, batch: Batch, *, tolerance: float) -> tuple[Tensor, Tensor]:
    """The sum of squared errors, and the number of correct predictions.

    The one definition of the built-in task's loss and accuracy; the fused kernel has the same.

    Args:
        model: (B, W, D) to (B, 1).
        batch: windows (B, W, D) and targets (B, 1).
        tolerance: a smaller absolute error counts as correct.

    Examples:
        >>> batch = torch.zeros(2, 50, 1), torch.tensor([[0.0], [0.5]])
        >>> loss, correct = totals(Persistence(), batch, tolerance=0.1)
        >>> loss.item(), correct.item()
        (0.25, 1)
    """
    windows, targets = batch
    error = model(windows) - targets  # (B, 1)
    return error.square().sum(), (error.detach().abs() < tolerance).sum()


def fused_rows(
    parameters: Sequence[Tensor],
    batch: Batch,
    *,
    piece_sizes: Sequence[int],
    num_threads: int,
    out: Tensor | None = None,
    tolerance: float,
) -> Tensor:
    """The rows of all pieces by the fused kernel; see `task.BatchRows`."""
    windows, targets = batch
    arguments: dict[str, Any] = {
        "windows": windows, "targets": targets, "piece_sizes": piece_sizes,
        "parameters": parameters, "tolerance": tolerance, "num_threads": num_threads,
    }  # fmt: skip
    if out is None:
        return lstm.predictor_totals(**arguments)
    return lstm.predictor_rows(**arguments, out=out)


def reference_rows(
    parameters: Sequence[Tensor],
    batch: Batch,
    *,
    piece_sizes: Sequence[int],
    num_threads: int,
    out: Tensor | None = None,
    tolerance: float,
) -> Tensor:
    """The rows of all pieces by the reference, on one thread; see `task.BatchRows`."""
    windows, targets, *weights = (tensor.detach().numpy() for tensor in (*batch, *parameters))
    rows = torch.from_numpy(
        reference.predictor_rows(
            windows=windows, targets=targets, piece_sizes=piece_sizes, parameters=weights,
            tolerance=tolerance, with_gradient=out is not None,
        )
    )  # fmt: skip
    return rows if out is None else out[: len(rows), : rows.shape[1]].copy_(rows)


@torch.no_grad()
def _preview(
    model: Predictor, data: WindowDataset, *, period: float
) -> tuple[list[float], list[float]]:
    """Targets and predictions of the first cycle of the test windows."""
    cycle = min(len(data), math.ceil(period))
    some = np.linspace(0, cycle - 1, min(cycle, PREVIEW_SAMPLES)).astype(np.int64)
    windows, targets = data[some]
    device = model.output_layer.weight.device
    return targets[:, 0].tolist(), model(windows.to(device))[:, 0].tolist()
