"""Counting a model's predictions over a data set, on any number of processes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from launching import FUSED
from peers import Peer, Threads
from torch import nn

from sinlstm_dist import job
from sinlstm_dist.config import load_config
from sinlstm_dist.data.steps import FETCH_BYTES, Split, deal_out
from sinlstm_dist.metrics import Totals
from sinlstm_dist.piece_rows import TESTING, PieceRows, Place
from sinlstm_dist.plan import Plan, in_order
from sinlstm_dist.processes.world import World
from sinlstm_dist.reduction import totals_over
from sinlstm_dist.splits import TEST_BATCH
from sinlstm_dist.task import Counts, Task

SETTINGS = {
    "data.train_size": 53, "data.test_size": 21, "data.window": 9, "data.noise": 0.02,
    "train.tolerance": 0.3,
}  # fmt: skip


def build(world: World, **settings: object) -> job.Job:
    """What a run is made of."""
    return job.build(load_config(overrides={**SETTINGS, **settings}), world)


@pytest.mark.parametrize("lstm", [FUSED, "torch"])
@pytest.mark.parametrize("size", [21, 2 * TEST_BATCH + 5])
def test_evaluation_counts_every_test_window_once(world, lstm, size):
    built = build(world, **{"model.lstm": lstm, "data.test_size": size})
    for rows, test in ((built.rows, built.test), *built.baselines.values()):
        windows, targets = test.data[np.arange(size)]
        totals = totals_over(rows, test, peers=world)
        errors = (rows.model(windows) - targets).detach()
        assert totals.samples == size
        assert totals.correct == int((errors.abs() < 0.3).sum())
        assert totals.loss == pytest.approx(errors.square().mean().item(), rel=1e-6)
    assert list(built.baselines) == ["last value again"]


def test_test_batches_may_be_larger_than_those_of_training(world):
    built = build(world)
    assert built.test.plan == Plan(21, TEST_BATCH, 8, 1, 0)
    large = build(world, **{"train.global_batch_size": 5000})
    assert large.test.plan == Plan(21, 5000, 8, 1, 0)


IN_A_FETCH = FETCH_BYTES // (4 * (SETTINGS["data.window"] + 1))


@pytest.mark.parametrize(("size", "passes"), [(IN_A_FETCH, 1), (IN_A_FETCH + 1, 3)])
def test_few_test_samples_are_fetched_once(world, monkeypatch, size, passes):
    built = build(world, **{"data.test_size": size})
    fetched = []
    fetch = built.test.shares.fetch
    monkeypatch.setattr(
        built.test.shares,
        "fetch",
        lambda indices, **rest: fetched.extend(indices) or fetch(indices, **rest),
    )
    totals = [totals_over(built.rows, built.test, peers=world) for _ in range(3)]
    assert totals[0] == totals[1] == totals[2]
    assert fetched == passes * list(range(size))


# Any task

SIZE, BATCH, PIECES = 53, 20, 5  # the last batch is partial


class Samples:
    """Inputs and targets by index."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        generator = torch.Generator().manual_seed(index)
        return torch.randn(6, generator=generator), index % 3


class Noisy(nn.Module):
    """A model that is another function in training than in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.layer = nn.Dropout(0.5), nn.Linear(6, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        return self.layer(self.dropout(inputs))


def sums(model: nn.Module, batch) -> tuple[torch.Tensor, None, torch.Tensor]:
    inputs, targets = batch
    loss = nn.functional.cross_entropy(model(inputs), targets, reduction="sum")
    return loss, None, (targets + 1).sum()


def draws_in_testing(model: nn.Module, batch) -> tuple[torch.Tensor, None, torch.Tensor]:
    """As a model that samples its answers."""
    loss, correct, divisor = sums(model, batch)
    return loss * torch.rand(()), correct, divisor


def split_of(processes: int, rank: int) -> Split:
    plan = Plan(SIZE, BATCH, PIECES, processes, rank)
    split = deal_out(Samples(), plan, order=in_order, seed=0)
    mine = [
        split.shares[share]
        for number, (share,) in enumerate(split.sampler)
        if number % processes == rank
    ]
    return Split(split.data, plan, split.sampler, mine, split.shares, by_array=False)


def rows_of(model: nn.Module, count: Callable) -> PieceRows:
    task = Task(model, Samples(), Samples(), count, torch.optim.SGD(model.parameters(), lr=0.1))
    counts = Counts(correct=False, divisor=True)
    return PieceRows(task, counts, seed=0, device=torch.device("cpu"), num_threads=1)


def counted(processes: int, count: Callable, model: nn.Module) -> Totals:
    """The totals that each of some processes finds."""
    splits = [split_of(processes, rank) for rank in range(processes)]

    def work(peer: Peer) -> Totals:
        return totals_over(rows_of(model, count), splits[peer.rank], peers=peer)

    found = Threads(processes).run(work)
    assert all(totals == found[0] for totals in found)
    return found[0]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    return Noisy()


def test_any_task_is_counted_the_same_on_any_number_of_processes(model):
    found = counted(1, sums, model)
    inputs, targets = map(torch.stack, zip(*[(x, torch.tensor(y)) for x, y in map(
        Samples().__getitem__, range(SIZE))], strict=True))  # fmt: skip
    with torch.no_grad():
        outputs = model.layer(inputs)
    loss = nn.functional.cross_entropy(outputs, targets, reduction="sum").item()
    assert found.samples == SIZE
    assert found.correct is None
    assert found.divisor == (targets + 1).sum()
    assert found.loss_sum == pytest.approx(loss, rel=1e-6)
    for processes in (2, 3, 5):
        assert counted(processes, sums, model) == found


def test_counting_leaves_the_model_in_training_mode(model):
    counted(1, sums, model)
    assert model.training
    assert model.dropout.training

    def fails(model, batch):
        assert not model.training
        raise ValueError("it broke")

    with pytest.raises(ValueError, match="it broke"):
        counted(1, fails, model)
    assert model.training


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_each_piece_has_its_own_number_in_the_global_batch(model, monkeypatch, processes):
    """Which decides its random numbers; each piece of a step is seen once, by some process."""
    seen: list[tuple[int, int, int]] = []
    right = PieceRows.totals

    def totals(self: PieceRows, batch, *, sizes, place: Place) -> torch.Tensor:
        for number, _ in enumerate(batch):
            seen.append((place.epoch, place.step, place.first + number))
        return right(self, batch, sizes=sizes, place=place)

    monkeypatch.setattr(PieceRows, "totals", totals)
    counted(processes, sums, model)
    assert sorted(seen) == [(TESTING, step, piece) for step in range(3) for piece in range(PIECES)]


def test_what_is_drawn_in_testing_is_the_same_every_time(model):
    first = counted(1, draws_in_testing, model)
    torch.rand(5)
    assert counted(1, draws_in_testing, model) == first
    assert counted(1, sums, model) != first
