"""A piece's row depends on its samples, its random numbers and the weights, and on nothing else."""

import copy
import random
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

from sinlstm_dist import job
from sinlstm_dist.config import load_config
from sinlstm_dist.data.steps import pieces
from sinlstm_dist.piece_rows import TESTING, PieceRows, Place
from sinlstm_dist.randomness import PIECES, seed_all, stream
from sinlstm_dist.task import Counts, Task

CPU = torch.device("cpu")
SEED, SIZES = 7, [5, 4, 0, 4, 13]
PLACE = Place(epoch=2, step=3, first=0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """In torch's own operations, as `join_world` has it: their threads would share out a sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Net(nn.Module):
    """Two layers, wide enough that a matrix library has something to choose."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(33, 47), nn.Linear(47, 3)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(self.dropout(torch.tanh(self.first(inputs))))


def cross_entropy(model: nn.Module, batch) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = batch
    outputs = model(inputs)
    loss = nn.functional.cross_entropy(outputs, targets, reduction="sum")
    return loss, (outputs.argmax(1) == targets).sum()


def new_rows(
    model: nn.Module, totals: Callable = cross_entropy, *, num_threads: int = 1, counts=None
) -> PieceRows:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    task = Task(model, [0], [0], totals, optimizer)
    return PieceRows(task, counts or Counts(), seed=SEED, device=CPU, num_threads=num_threads)


def new_model(dropout: float = 0.0) -> Net:
    torch.manual_seed(1)
    return Net(dropout)


def new_batch(sizes: list[int] = SIZES) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(sum(sizes), 33, generator=generator)
    return pieces((inputs, torch.arange(sum(sizes)) % 3), sizes)


def gradients(rows: PieceRows, batch, sizes: list[int] = SIZES, place: Place = PLACE):
    out = torch.full((len(sizes), rows.width), torch.nan)
    rows.gradients(batch, sizes=sizes, place=place, out=out)
    return out


def test_a_row_is_gradient_flags_and_totals_of_its_piece():
    model = new_model()
    rows, batch = new_rows(model), new_batch()
    found = gradients(rows, batch)
    width = sum(p.numel() for p in model.parameters())
    assert rows.width == width + 4 + 3
    for row, piece, size in zip(found, batch, SIZES, strict=True):
        if piece is None:
            assert not row.any()
            continue
        model.zero_grad()
        loss, correct = cross_entropy(model, piece)
        loss.backward()
        expected = torch.cat([p.grad.flatten() for p in model.parameters()])
        assert torch.equal(row[:width], expected)
        assert row[width:].tolist() == [1, 1, 1, 1, loss.item(), correct.item(), size]
    with rows.testing():
        assert torch.equal(rows.totals(batch, sizes=SIZES, place=PLACE), found[:, -3:])
    assert all(p.grad is p.grad for p in model.parameters())


def test_an_unused_parameter_has_flag_0_and_a_frozen_one_is_left_out():
    model = new_model()
    model.third = nn.Linear(3, 3)
    model.first.weight.requires_grad_(False)
    rows = new_rows(model)
    [row] = gradients(rows, new_batch([5]), [5])
    assert rows.parameters == [model.first.bias, *model.second.parameters(),
                               *model.third.parameters()]  # fmt: skip
    width = rows.width - 3 - 5
    assert row[width : width + 5].tolist() == [1, 1, 1, 0, 0]
    assert not row[width - 12 : width].any()  # the gradient of the third layer


def test_a_tied_parameter_is_there_once():
    model = new_model()
    model.third = nn.Linear(47, 3)
    model.third.weight = model.second.weight
    rows = new_rows(model)
    assert len(rows.parameters) == len(list(model.parameters())) == 5


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_row_does_not_depend_on_the_other_pieces(dropout):
    rows, batch = new_rows(new_model(dropout)), new_batch()
    together = gradients(rows, batch)
    for number, piece in enumerate(batch):
        place = Place(PLACE.epoch, PLACE.step, first=number)
        alone = gradients(rows, [piece], [SIZES[number]], place)
        assert torch.equal(alone[0], together[number])
    backwards = [
        gradients(rows, [batch[number]], [SIZES[number]], Place(2, 3, number))[0]
        for number in reversed(range(len(SIZES)))
    ]
    assert torch.equal(torch.stack(backwards[::-1]), together)


def test_a_row_does_not_depend_on_its_place_in_memory():
    rows, batch = new_rows(new_model()), new_batch()
    expected = gradients(rows, batch)
    for offset in range(1, 9):
        memory = torch.full((len(SIZES) * rows.width + offset,), torch.nan)
        out = memory[offset:].view(len(SIZES), rows.width)
        rows.gradients(batch, sizes=SIZES, place=PLACE, out=out)
        assert torch.equal(out, expected)
        # The same samples after others, as in a larger share: fetched whole and cut afterwards
        whole = [torch.cat([piece[i] for piece in batch if piece]) for i in (0, 1)]
        shifted = [torch.cat([tensor[:offset], tensor]) for tensor in whole]
        cut = pieces(shifted, [offset, *SIZES])[1:]
        assert torch.equal(gradients(rows, cut), expected)


def test_a_row_does_not_depend_on_what_was_drawn_before():
    rows, batch = new_rows(new_model(0.5)), new_batch()
    expected = gradients(rows, batch)
    torch.rand(3), np.random.rand(3), random.random()
    assert torch.equal(gradients(rows, batch), expected)
    for place in (Place(1, 3), Place(2, 4), Place(2, 3, 1)):  # negative control
        assert not torch.equal(gradients(rows, batch, place=place), expected)


def drawn(numbers: list[list[float]]) -> Callable:
    """Totals of a task that draws from every generator, and notes what."""

    def totals(model, batch):
        numbers.append([torch.rand(()).item(), np.random.rand(), random.random()])
        return cross_entropy(model, batch)

    return totals


@pytest.mark.parametrize("place", [Place(0, 0), Place(5, 2, first=3), Place(TESTING, 1, first=3)])
def test_random_numbers_are_those_of_seed_epoch_step_and_piece(place):
    numbers: list[list[float]] = []
    rows = new_rows(new_model(), drawn(numbers))
    gradients(rows, new_batch(), place=place)
    rows.totals(new_batch(), sizes=SIZES, place=place)
    expected = []
    for piece in (0, 1, 3, 4):  # the third has no samples
        seed_all(stream(PIECES, SEED, place.epoch, place.step, place.first + piece), CPU)
        expected.append([torch.rand(()).item(), np.random.rand(), random.random()])
    assert numbers == 2 * expected
    assert len({number for three in expected for number in three}) == 12


def test_the_loss_for_a_wrapper_has_the_random_numbers_of_its_piece():
    model = new_model(0.5)
    rows, batch = new_rows(model), new_batch()
    expected = gradients(rows, batch)[3]
    loss, totals = rows.loss(model, batch[3], num_samples=4, place=Place(2, 3, first=3))
    found = torch.autograd.grad(loss, rows.parameters)
    assert torch.equal(
        torch.cat([*(g.flatten() for g in found), expected[-7:-3], totals]), expected
    )


def test_threads_compute_at_the_same_time_and_change_no_bit():
    model, batch = new_model(), new_batch([4] * 8)
    together = threading.Barrier(2, timeout=60)  # one thread alone would wait in vain
    seen: set[int] = set()

    def totals(model, batch):
        together.wait()
        seen.add(threading.get_ident())
        return cross_entropy(model, batch)

    threaded = new_rows(model, totals, num_threads=2)
    assert (threaded.at_once, new_rows(model).at_once) == (2, 1)
    sizes = [4] * 8
    expected = gradients(new_rows(model), batch, sizes)
    for _ in range(3):
        assert torch.equal(gradients(threaded, batch, sizes), expected)
        found = threaded.totals(batch, sizes=sizes, place=PLACE)
        assert torch.equal(found, expected[:, -3:])
    assert len(seen) == 2
    assert threaded.at_once == 2


@pytest.mark.parametrize("draw", ["torch", "numpy", "python"])
@pytest.mark.parametrize("of", ["gradients", "totals"])
def test_threads_are_given_up_as_soon_as_a_piece_draws(of, draw):
    """And that very step has the bits of one thread."""
    generators = {
        "torch": lambda: torch.rand(()),
        "numpy": lambda: torch.tensor(np.random.rand()).float(),
        "python": lambda: torch.tensor(random.random()),
    }
    draws = threading.Event()

    def totals(model, batch):
        loss, correct = cross_entropy(model, batch)
        return (loss * generators[draw]() if draws.is_set() else loss), correct

    def compute(rows: PieceRows) -> torch.Tensor:
        if of == "gradients":
            return gradients(rows, new_batch())
        return rows.totals(new_batch(), sizes=SIZES, place=PLACE)

    model = new_model()
    threaded, alone = new_rows(model, totals, num_threads=2), new_rows(model, totals)
    seed_all(0, CPU)
    assert torch.equal(compute(threaded), compute(alone))
    assert threaded.at_once == 2
    draws.set()
    assert torch.equal(compute(threaded), compute(alone))
    assert threaded.at_once == 1
    assert torch.equal(compute(threaded), compute(alone))


def test_a_failure_in_a_thread_is_not_lost():
    def totals(model, batch):
        raise ValueError("it broke")

    with pytest.raises(ValueError, match="it broke"):
        gradients(new_rows(new_model(), totals, num_threads=2), new_batch())


def test_rows_of_a_copy_leave_the_model_alone():
    model = new_model()
    rows = new_rows(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.second.weight.mul_(2)
    of_copy = rows.of(other)
    assert (rows.model, of_copy.model) == (model, other)
    assert of_copy.parameters == list(other.parameters())
    assert torch.equal(gradients(of_copy, new_batch()), gradients(new_rows(other), new_batch()))
    assert torch.equal(gradients(rows, new_batch()), gradients(new_rows(model), new_batch()))


@pytest.mark.parametrize("num_threads", [1, 2])
def test_totals_keep_no_graph_in_any_thread(num_threads):
    kept: list[bool] = []

    def totals(model, batch):
        sums = cross_entropy(model, batch)
        kept.append(sums[0].requires_grad)
        return sums

    rows = new_rows(new_model(), totals, num_threads=num_threads)
    rows.totals(new_batch(), sizes=SIZES, place=PLACE)
    assert kept == [False] * 4
    gradients(rows, new_batch())  # negative control
    assert kept[4:] == [True] * 4


def test_testing_puts_the_model_into_evaluation_mode_and_back():
    model = new_model(0.5)
    rows, batch = new_rows(model), new_batch()
    with rows.testing():
        assert not model.dropout.training
        found = rows.totals(batch, sizes=SIZES, place=PLACE)
    assert model.dropout.training
    plain = new_model(0.0)
    assert torch.equal(found, new_rows(plain).totals(batch, sizes=SIZES, place=PLACE))
    with pytest.raises(KeyError), rows.testing():
        raise KeyError
    assert model.training


def test_testing_leaves_a_model_that_it_does_not_call_as_it_is(world):
    built = job.build(load_config(overrides={"data.train_size": 9, "data.test_size": 9}), world)
    with built.rows.testing():
        assert built.rows.model.training


@pytest.mark.parametrize(
    "changed",
    [
        lambda loss, correct: (loss, correct, 3.0),
        lambda loss, correct: (loss, None),
        lambda loss, correct: (loss.double(), correct),
        lambda loss, correct: (loss[None], correct),
        lambda loss, correct: loss,
    ],
)
def test_totals_that_return_other_things_for_a_later_batch_are_refused(changed):
    def totals(model, batch):
        sums = cross_entropy(model, batch)
        return changed(*sums) if len(batch[0]) == 13 else sums

    with pytest.raises(TypeError, match=r"totals (returned|must return)"):
        gradients(new_rows(new_model(), totals), new_batch())


def test_what_is_not_counted_is_0_in_the_row():
    def totals(model, batch):
        return cross_entropy(model, batch)[0], None, 2 * len(batch[0])

    counts = Counts(correct=False, divisor=True)
    [row] = gradients(new_rows(new_model(), totals, counts=counts), new_batch([5]), [5])
    assert row[-3:].tolist() == [0, 5, 10]
