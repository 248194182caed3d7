"""A step's gradient, both ways, against one plain backward over the whole batch."""

import functools
from collections.abc import Callable

import pytest
import torch
from launching import FUSED
from peers import Peer, Threads
from torch import nn

from sinlstm_dist import job, reduction
from sinlstm_dist.config import load_config
from sinlstm_dist.data.sine import SineDataset
from sinlstm_dist.data.steps import pieces
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.gradient import DdpGradient, OrderedGradient, StepResult
from sinlstm_dist.model import Predictor
from sinlstm_dist.piece_rows import PieceRows, Place
from sinlstm_dist.plan import Plan, epoch_order
from sinlstm_dist.processes.world import World
from sinlstm_dist.task import Counts, Task

SETTINGS = {
    "data.train_size": 53,
    "data.test_size": 21,
    "data.window": 9,
    "data.noise": 0.02,
    "train.global_batch_size": 20,
    "train.tolerance": 0.3,
}  # three steps, the last of them partial, and pieces of different sizes


def build(world: World, **settings: object) -> job.Job:
    """What a run is made of."""
    return job.build(load_config(overrides={**SETTINGS, **settings}), world)


def batches(built: job.Job):
    """The steps of an epoch as the training loop gets them."""
    return built.train.batches(whole=built.gradient.is_whole)


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
    sizes, model = [], built.task.model
    for step, share in batches(built):
        parts = [share] if built.gradient.is_whole else [piece for piece in share if piece]
        batch = tuple(map(torch.cat, zip(*parts, strict=True)))
        assert all(map(torch.equal, batch, sample_batch(step)))
        result = built.gradient(share, epoch=0, step=step, stop=False)
        loss, expected = plain_gradient(model, batch)
        for name, parameter in model.named_parameters():
            # float32 sums in another order: a few units in the last place
            torch.testing.assert_close(
                parameter.grad, expected[name], rtol=2e-5, atol=1e-6, msg=name
            )
        assert result.totals.loss == pytest.approx(loss, rel=1e-6)
        errors = (model(batch[0]) - batch[1]).abs()
        assert result.totals.correct == int((errors < 0.3).sum())
        sizes.append(result.totals.samples)
        built.update(step)
    assert sizes == [20, 20, 13]


@pytest.mark.parametrize("reduction", ["ordered", "ddp"])
def test_a_request_to_stop_is_heard(world, reduction):
    built = build(world, **{"train.reduction": reduction})
    _, batch = next(batches(built))
    assert built.gradient(batch, epoch=0, step=0, stop=True).stop
    assert not built.gradient(batch, epoch=0, step=0, stop=False).stop


# A task of any kind, on threads that stand for processes

BATCH, PIECES = 14, 7


class Branches(nn.Module):
    """Two of its layers are used for some samples only; one is frozen, one never used, two tied."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem, self.head = nn.Linear(5, 5), nn.Linear(5, 3)
        self.some, self.few = nn.Linear(5, 5), nn.Linear(5, 5)
        self.frozen, self.unused, self.tied = (nn.Linear(5, 5) for _ in range(3))
        self.frozen.requires_grad_(False)
        self.tied.weight = self.stem.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.tied(torch.tanh(self.frozen(self.stem(inputs[:, :5]))))
        if (inputs[:, 5] > 0).any():
            hidden = hidden + self.some(hidden) * (inputs[:, 5:] > 0)
        if (inputs[:, 5] > 1).any():
            hidden = hidden + self.few(hidden) * (inputs[:, 5:] > 1)
        return self.head(hidden)


def totals(model: nn.Module, batch) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = batch
    outputs = model(inputs)
    loss = nn.functional.cross_entropy(outputs, targets, reduction="sum")
    return loss, (outputs.argmax(1) == targets).sum()


def with_divisor(model: nn.Module, batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Some samples weigh more than others."""
    return *totals(model, batch), (batch[1] + 1).sum()


def steps() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches that use `some` and `few`: in no piece, in one, in all, in none again."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for kinds in ([0] * BATCH, [0] * 4 + [2] + [0] * 9, [2] * BATCH, [1] * BATCH):
        inputs = torch.randn(BATCH, 5, generator=generator)
        kind = torch.tensor(kinds)[:, None].float()
        found.append((torch.cat((inputs, kind), dim=1), torch.arange(BATCH) % 3))
    return found


def rows_of(
    model: nn.Module, totals: Callable, counts: Counts, *, num_threads: int = 1
) -> PieceRows:
    task = Task(model, [0], [0], totals, torch.optim.SGD(model.parameters(), lr=0.1))
    device = torch.device("cpu")
    return PieceRows(task, counts, seed=0, device=device, num_threads=num_threads)


Gradients = list[dict[str, torch.Tensor | None]]


def shared_gradients(
    processes: int, totals: Callable, *, num_threads: int = 1
) -> tuple[Gradients, list[StepResult]]:
    """Each step's `.grad`s and result; they are the same on all processes."""

    models = [Branches() for _ in range(processes)]  # threads share the seed

    def work(peer: Peer) -> tuple[Gradients, list[StepResult]]:
        model = models[peer.rank]
        plan = Plan(BATCH, BATCH, PIECES, processes, peer.rank)
        counts = Counts(divisor=totals is with_divisor)
        rows = rows_of(model, totals, counts, num_threads=num_threads)
        gradient = OrderedGradient(rows, plan=plan, peers=peer)
        grads, results = [], []
        for inputs, targets in steps():
            share = slice(*plan.span(0))
            batch = pieces((inputs[share], targets[share]), plan.piece_sizes(0))
            results.append(gradient(batch, epoch=0, step=0, stop=peer.rank == 1))
            grads.append({
                name: None if p.grad is None else p.grad.clone()
                for name, p in model.named_parameters()
            })  # fmt: skip
        return grads, results

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = Threads(processes).run(work)
    finally:
        torch.set_num_threads(before)
    for grads, results in found[1:]:
        assert results == found[0][1]
        assert all(map(same, grads, found[0][0]))
    return found[0]


def same(one: dict[str, torch.Tensor | None], other: dict[str, torch.Tensor | None]) -> bool:
    """Whether these are the same names and bits, and None for the same names."""
    return one.keys() == other.keys() and all(
        (a is b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(one.values(), other.values(), strict=True)
    )


@pytest.fixture(params=["gathered", "shared out"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of adding rows: so small a model takes the first."""
    if request.param == "shared out":
        monkeypatch.setattr(reduction, "GATHERED_BYTES", 0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("count", [totals, with_divisor])
def test_any_task_has_the_same_bits_on_any_number_of_processes_and_threads(count):
    grads, results = shared_gradients(1, count)
    for processes in (1, 2, 3, 5, 7):
        for num_threads in (1, 2):
            its_grads, its_results = shared_gradients(processes, count, num_threads=num_threads)
            assert all(map(same, its_grads, grads))
            assert [result.totals for result in its_results] == [r.totals for r in results]
            assert all(result.stop == (processes > 1) for result in its_results)


def ddp_gradients(world: World, totals: Callable) -> tuple[Gradients, list[StepResult]]:
    """As `shared_gradients`, by Accelerate's wrapper on one process."""
    model, plan = Branches(), Plan(BATCH, BATCH, 1)
    rows = rows_of(model, totals, Counts(divisor=totals is with_divisor))
    wrapped = world.wrap_model(model, find_unused=True)
    gradient = DdpGradient(rows, wrapped=wrapped, plan=plan, world=world, spare=lambda: None)
    results = [gradient([batch], epoch=0, step=0, stop=False) for batch in steps()]
    grads: Gradients = []
    for batch in steps():
        gradient([batch], epoch=0, step=0, stop=False)
        grads.append({
            name: None if p.grad is None else p.grad.clone()
            for name, p in model.named_parameters()
        })  # fmt: skip
    return grads, results


@pytest.mark.parametrize("count", [totals, with_divisor])
@pytest.mark.parametrize("reduction", ["ordered", "ddp"])
def test_any_task_has_the_gradient_of_its_mean_loss(world, count, reduction):
    ordered = reduction == "ordered"
    grads, results = shared_gradients(1, count) if ordered else ddp_gradients(world, count)
    for found, result, (inputs, targets) in zip(grads, results, steps(), strict=True):
        model = Branches()
        loss, correct, *divisor = count(model, (inputs, targets))
        mean = loss / (divisor[0] if divisor else BATCH)
        mean.backward()
        assert result.totals.loss == pytest.approx(mean.item(), rel=1e-6)
        assert result.totals.correct == correct
        assert result.totals.samples == BATCH
        for name, parameter in model.named_parameters():
            assert (parameter.grad is None) == (found[name] is None), name
            if parameter.grad is not None:
                torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_parameter_has_no_gradient_only_if_no_piece_of_the_global_batch_used_it(processes):
    """AdamW decays a parameter whose gradient is zeros, and leaves one alone that has none."""
    grads, _ = shared_gradients(processes, totals)
    without = [{n.split(".")[0] for n, g in grad.items() if g is None} for grad in grads]
    always = {"frozen", "unused"}
    assert without == [always | {"some", "few"}, always, always, always | {"few"}]


def test_gradients_are_views_of_one_vector_when_a_parameter_is_used_again():
    """Where the optimizer has laid them out, and clipping finds them."""
    model = Branches()
    gradient = OrderedGradient(
        rows_of(model, totals, Counts()), plan=Plan(BATCH, BATCH, PIECES), peers=Peer(Threads(1), 0)
    )
    storages = set()
    for batch in steps():
        gradient(pieces(batch, [2] * PIECES), epoch=0, step=0, stop=False)
        storages |= {p.grad.untyped_storage().data_ptr() for p in model.parameters()
                     if p.grad is not None}  # fmt: skip
    assert len(storages) == 1


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_each_piece_has_its_own_number_in_the_global_batch(monkeypatch, processes):
    """Which decides its random numbers; each piece of a step is seen once, by some process."""
    seen: list[tuple[int, int, int]] = []
    right = PieceRows.gradients

    def gradients(self: PieceRows, batch, *, sizes, place: Place, out: torch.Tensor) -> None:
        for number, _ in enumerate(batch):
            seen.append((place.epoch, place.step, place.first + number))
        right(self, batch, sizes=sizes, place=place, out=out)

    monkeypatch.setattr(PieceRows, "gradients", gradients)
    shared_gradients(processes, totals)
    assert sorted(seen) == sorted(4 * [(0, 0, piece) for piece in range(PIECES)])


def test_a_divisor_of_0_is_a_loss_that_is_no_number():
    """A batch of nothing but padding; pytest makes errors of warnings."""

    def padding(model: nn.Module, batch) -> tuple[torch.Tensor, None, float]:
        return totals(model, batch)[0], None, 0.0

    rows = rows_of(Branches(), padding, Counts(correct=False, divisor=True))
    plan = Plan(BATCH, BATCH, PIECES)
    gradient = OrderedGradient(rows, plan=plan, peers=Peer(Threads(1), 0))
    result = gradient(pieces(steps()[0], [2] * PIECES), epoch=0, step=0, stop=False)
    assert not result.totals.is_finite


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_buffer_that_changes_in_training_is_refused(is_replaced):
    """In place, or replaced by another one; the look at the task before the first step saw none."""
    model = Branches()
    model.register_buffer("seen", torch.zeros(1))
    plan = Plan(BATCH, BATCH, PIECES)
    rows = rows_of(model, totals, Counts())
    gradient = OrderedGradient(rows, plan=plan, peers=Peer(Threads(1), 0))
    gradient.settle()  # no step was made
    gradient(pieces(steps()[0], [2] * PIECES), epoch=0, step=0, stop=False)
    gradient.settle()
    if is_replaced:
        model.register_buffer("seen", torch.zeros(1))
    else:
        model.seen += 1
    with pytest.raises(ConfigError, match="seen has changed in training"):
        gradient.settle()


@pytest.mark.kernel
def test_the_built_in_task_computes_all_pieces_in_one_call(world, monkeypatch):
    built = build(world)
    calls = []
    rows = functools.partial(lambda real, *args, **kw: calls.append(kw["piece_sizes"]) or
                             real(*args, **kw), built.task.rows)  # fmt: skip
    object.__setattr__(built.task, "rows", rows)
    for step, batch in batches(built):
        built.gradient(batch, epoch=0, step=step, stop=False)
    assert calls == [built.train.plan.piece_sizes(step) for step in range(3)]
    assert built.rows.num_flags == 0
