"""A step's gradient, both ways, against one plain backward over the whole batch."""

import math

import numpy as np
import pytest
import torch
from launching import FUSED
from torch import nn

from sinlstm_dist import job, metrics
from sinlstm_dist.config import load_config
from sinlstm_dist.data.sine import SineDataset
from sinlstm_dist.data.steps import FETCH_SAMPLES
from sinlstm_dist.gradient import gradient_rows
from sinlstm_dist.model import Persistence, Predictor
from sinlstm_dist.plan import Plan, epoch_order
from sinlstm_dist.processes.joining import join_world
from sinlstm_dist.processes.world import World
from sinlstm_dist.reduction import totals_over, totals_rows
from sinlstm_dist.tree import tree_sum

SETTINGS = {
    "data.train_size": 53,
    "data.test_size": 21,
    "data.window": 9,
    "data.noise": 0.02,
    "train.global_batch_size": 20,
    "train.tolerance": 0.3,
}  # three steps, the last of them partial, and pieces of different sizes


@pytest.fixture
def world():
    with join_world(timeout_s=60, one_thread=True) as joined:
        yield joined


def build(world: World, **settings: object) -> job.Job:
    """What a run is made of."""
    return job.build(load_config(overrides={**SETTINGS, **settings}), world)


def sample_batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    order = epoch_order(seed=0, epoch=0, size=53)[step * 20 : (step + 1) * 20]
    return SineDataset(size=53, window=9, noise=0.02)[order]


def plain_gradient(model: nn.Module, batch) -> tuple[float, dict[str, torch.Tensor]]:
    """The oracle: nn.LSTM, nn.MSELoss and one backward over the whole batch."""
    plain = Predictor()
    plain.load_state_dict(model.state_dict())
    loss = nn.MSELoss()(plain(batch[0]), batch[1])
    loss.backward()
    return loss.item(), {name: p.grad for name, p in plain.named_parameters()}


@pytest.mark.parametrize("shards", [1, 3, 8, 40])
@pytest.mark.parametrize("lstm", [FUSED, "torch"])
@pytest.mark.parametrize("reduction", ["ordered", "ddp"])
def test_gradient_is_that_of_the_mean_of_the_whole_batch(world, reduction, lstm, shards):
    built = build(world, **{
        "train.reduction": reduction, "model.lstm": lstm, "train.virtual_shards": shards
    })  # fmt: skip
    sizes = []
    for step, batch in built.train.batches():
        assert torch.equal(batch[0], sample_batch(step)[0])
        result = built.gradient(batch, step=step, stop=False)
        loss, expected = plain_gradient(built.model, batch)
        for name, parameter in built.model.named_parameters():
            # float32 sums in another order: a few units in the last place
            torch.testing.assert_close(
                parameter.grad, expected[name], rtol=2e-5, atol=1e-6, msg=name
            )
        assert result.totals.loss == pytest.approx(loss, rel=1e-6)
        errors = (built.model(batch[0]) - batch[1]).abs()
        assert result.totals.correct == int((errors < 0.3).sum())
        sizes.append(result.totals.samples)
        built.optimizer.step()
    assert sizes == [20, 20, 13]


@pytest.mark.parametrize("reduction", ["ordered", "ddp"])
def test_a_request_to_stop_is_heard(world, reduction):
    built = build(world, **{"train.reduction": reduction})
    _, batch = next(built.train.batches())
    assert built.gradient(batch, step=0, stop=True).stop
    assert not built.gradient(batch, step=0, stop=False).stop


@pytest.mark.kernel
@pytest.mark.parametrize("sizes", [[5, 4, 4], [13], [6, 0, 7, 0]])
def test_fused_rows_are_those_of_autograd(sizes):
    torch.manual_seed(1)
    plain, fused = Predictor(hidden_size=6), Predictor(hidden_size=6, fused=True)
    fused.load_state_dict(plain.state_dict())
    batch = SineDataset(size=13, window=11, noise=0.1)[np.arange(13)]
    arguments = {"piece_sizes": sizes, "tolerance": 0.5}
    width = sum(p.numel() for p in plain.parameters()) + metrics.NUM_TOTALS
    rows = {}
    for model in (plain, fused):
        rows[model.fused] = torch.full((len(sizes), width), math.nan)
        parameters = list(model.parameters())
        gradient_rows(model, parameters, batch, num_threads=1, out=rows[model.fused], **arguments)
        totals = totals_rows(model, batch, num_threads=1, **arguments)
        torch.testing.assert_close(totals.float(), rows[model.fused][:, -3:], rtol=1e-6, atol=0)
    torch.testing.assert_close(rows[True], rows[False], rtol=2e-5, atol=2e-6)
    assert torch.equal(rows[True][:, -2:], rows[False][:, -2:])  # counts
    assert rows[True][:, -1].tolist() == sizes


def test_a_row_is_the_gradient_of_the_sum_of_squares_of_its_piece():
    """Whatever module it is, and whatever its neighbours are."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    windows, targets = torch.randn(5, 4, 1), torch.randn(5, 1)
    out = torch.empty(2, 5 + metrics.NUM_TOTALS)
    gradient_rows(
        model, list(model.parameters()), (windows, targets), piece_sizes=[3, 2], tolerance=0.5,
        num_threads=1, out=out,
    )  # fmt: skip
    for row, part in zip(out, (slice(0, 3), slice(3, 5)), strict=True):
        model.zero_grad()
        errors = model(windows[part]) - targets[part]
        errors.square().sum().backward()
        assert row[:4].tolist() == pytest.approx(model[1].weight.grad[0].tolist(), rel=1e-5)
        assert row[4].item() == pytest.approx(model[1].bias.grad.item(), rel=1e-5)
        assert row[5].item() == pytest.approx(errors.square().sum().item(), rel=1e-6)
        assert row[6:].tolist() == [int((errors.abs() < 0.5).sum()), len(errors)]


@pytest.mark.parametrize(
    ("num_rows", "order"),
    [
        (1, 0),
        (2, (0, 1)),
        (3, ((0, 1), 2)),
        (4, ((0, 1), (2, 3))),
        (5, (((0, 1), (2, 3)), 4)),
        (6, (((0, 1), (2, 3)), (4, 5))),
        (7, (((0, 1), (2, 3)), ((4, 5), 6))),
    ],
)
def test_tree_sum_adds_neighbours_first(num_rows, order):
    rows = torch.randn(num_rows, 1000, generator=torch.Generator().manual_seed(0))

    def add(order):
        return rows[order] if isinstance(order, int) else add(order[0]) + add(order[1])

    assert torch.equal(tree_sum(rows), add(order))
    assert tree_sum(rows.numpy()).tolist() == add(order).tolist()
    if num_rows > 3:  # this many float32 numbers tell one order of adding from another
        assert not torch.equal(add(order), sum(rows))


@pytest.mark.parametrize("lstm", [FUSED, "torch"])
@pytest.mark.parametrize("size", [21, 2 * FETCH_SAMPLES + 5])
def test_evaluation_counts_every_test_window_once(world, lstm, size):
    built = build(world, **{"model.lstm": lstm, "data.test_size": size})
    found = {
        model: totals_over(model, built.test, peers=world, tolerance=0.3)
        for model in (built.model, Persistence())
    }
    windows, targets = built.test.data[np.arange(size)]
    for model, totals in found.items():
        errors = (model(windows) - targets).detach()
        assert totals.samples == size
        assert totals.correct == int((errors.abs() < 0.3).sum())
        assert totals.loss == pytest.approx(errors.square().mean().item(), rel=1e-6)


def test_test_batches_are_as_large_as_a_fetch(world):
    built = build(world)
    assert built.test.plan == Plan(21, FETCH_SAMPLES, 8, 1, 0)
    large = build(world, **{"train.global_batch_size": 5000})
    assert large.test.plan == Plan(21, 5000, 8, 1, 0)
