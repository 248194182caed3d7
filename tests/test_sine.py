"""The built-in task: its loss and its correct predictions, and those of the fused kernel."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from sinlstm_dist import lstm, sine
from sinlstm_dist.config import load_config
from sinlstm_dist.data.sine import SineDataset
from sinlstm_dist.metrics import Totals
from sinlstm_dist.model import Predictor
from sinlstm_dist.piece_rows import REHEARSAL, PieceRows, Place
from sinlstm_dist.task import Counts, row_of


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None]


def count(
    predictions: torch.Tensor, targets: torch.Tensor, *, tolerance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The totals of a model that predicts what it is given."""
    return sine.totals(nn.Identity(), (predictions, targets), tolerance=tolerance)


def test_totals_by_hand():
    error, correct = count(column(1.0, 2.0, 3.0), column(1.0, 2.5, 5.0), tolerance=0.6)
    assert (error.item(), correct.item()) == (4.25, 2)


def test_an_error_of_just_the_tolerance_is_not_correct():
    below, at = math.nextafter(0.5, 0), 0.5
    assert count(column(0.5), column(0.0), tolerance=at)[1] == 0
    assert count(column(-0.5), column(0.0), tolerance=at)[1] == 0
    assert count(column(-0.25), column(0.0), tolerance=below)[1] == 1


def test_nan_is_not_correct():
    error, correct = count(column(math.nan, 0.0), column(0.0, 0.0), tolerance=0.1)
    assert correct == 1
    assert not Totals(error.item(), 1, 2).is_finite


def test_no_samples_count_nothing():
    error, correct = count(torch.empty(0, 1), torch.empty(0, 1), tolerance=0.1)
    assert (error.item(), correct.item()) == (0, 0)


def test_squared_error_is_differentiable():
    predictions = column(1.0, 3.0).requires_grad_()
    count(predictions, column(0.0, 1.0), tolerance=0.1)[0].backward()
    assert predictions.grad.tolist() == [[2.0], [4.0]]


def test_the_mean_of_parts_is_not_the_mean_of_their_means():
    """The trap: parts of 3 and 1 samples, with means 1 and 5."""
    parts = [
        (column(1.0, 1.0, 1.0), column(0.0, 0.0, 0.0)),
        (column(math.sqrt(5)), column(0.0)),
    ]
    rows = [row_of(count(*part, tolerance=2.0), len(part[0])).tolist() for part in parts]
    total = sum(map(Counts().to_totals, rows), Totals())
    assert total.loss == pytest.approx(2.0)  # (3 * 1 + 5) / 4; the mean of means is 3
    assert total.accuracy == 0.75  # and not (1 + 0) / 2


def rows_of(task, batch, *, sizes: list[int], fill: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of pieces, written over `fill`, and their totals alone."""
    device = torch.device("cpu")
    rows = PieceRows(task, Counts(), seed=0, device=device, num_threads=1)
    place, out = Place(REHEARSAL, 0), torch.full((len(sizes), rows.width), fill)
    rows.gradients(batch, sizes=sizes, place=place, out=out)
    return out, rows.totals(batch, sizes=sizes, place=place)


def pieces_of(batch, sizes: list[int]) -> list[tuple[torch.Tensor, ...] | None]:
    cut = zip(*(tensor.split(sizes) for tensor in batch), strict=True)
    return [piece if len(piece[0]) else None for piece in cut]


@pytest.mark.kernel
@pytest.mark.parametrize("sizes", [[5, 4, 4], [13], [6, 0, 7, 0]])
def test_fused_rows_are_those_of_autograd(sizes):
    keys = {"model.hidden_size": 6, "train.tolerance": 0.5, "data.train_size": 13}
    config = load_config(overrides=keys)
    torch.manual_seed(1)
    plain = sine.build(config, lstm.Choice("torch", "asked for"))
    fused = sine.build(config, lstm.Choice("fused", "asked for"))
    fused.model.load_state_dict(plain.model.state_dict())
    batch = SineDataset(size=13, window=11, noise=0.1)[np.arange(13)]
    rows, totals = rows_of(fused, batch, sizes=sizes, fill=math.nan)
    expected, its_totals = rows_of(plain, pieces_of(batch, sizes), sizes=sizes, fill=math.nan)
    width = sum(p.numel() for p in plain.model.parameters())
    flags = expected[:, width:-3]  # which the kernel needs not: it uses all parameters
    assert torch.equal(flags, torch.tensor(sizes)[:, None].sign().expand_as(flags).float())
    expected = torch.cat((expected[:, :width], expected[:, -3:]), dim=1)
    torch.testing.assert_close(rows, expected, rtol=2e-5, atol=2e-6)
    assert torch.equal(rows[:, -2:], expected[:, -2:])  # counts
    assert rows[:, -1].tolist() == sizes
    torch.testing.assert_close(totals.float(), rows[:, -3:], rtol=1e-6, atol=0)
    torch.testing.assert_close(its_totals, expected[:, -3:], rtol=1e-6, atol=0)


def test_the_task_is_what_the_configuration_says():
    keys = {
        "data.train_size": 70, "data.test_size": 130, "data.window": 9, "model.hidden_size": 6,
        "optim.lr": 0.25, "optim.momentum": 0.5,
    }  # fmt: skip
    task = sine.build(load_config(overrides=keys), lstm.Choice("torch", "asked for"))
    assert (len(task.train_data), len(task.test_data)) == (70, 130)
    assert isinstance(task.model, Predictor)
    assert task.model.rnn.hidden_size == 6
    (group,) = task.optimizer.param_groups
    assert (group["lr"], group["momentum"]) == (0.25, 0.5)
    assert set(group["params"]) == set(task.model.parameters())
    assert task.rows is None
    targets, predictions = task.preview()
    assert len(targets) == len(predictions) == 60  # one cycle
    assert targets == task.test_data[np.arange(60)][1][:, 0].tolist()
    assert task.facts["model"].endswith("recurrence: torch (asked for)")
