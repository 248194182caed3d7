"""On a GPU a step sends nothing from the processor, reads once, and divides as a CPU does.

Tensors of torch's device "meta" have no numbers: they stand for those of a GPU. What took a numpy
view of one, or mixed it with a tensor of the CPU, would fail. tests/gpu looks at a real one.
"""

import functools
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from sinlstm_dist import reduction, sine
from sinlstm_dist.gradient import OrderedGradient
from sinlstm_dist.model import Predictor
from sinlstm_dist.optim import SGD
from sinlstm_dist.piece_rows import PieceRows
from sinlstm_dist.plan import Plan
from sinlstm_dist.task import Counts, Task

GPU = torch.device("meta")
PIECES = 4
READING = (torch.Tensor.tolist, torch.Tensor.item)


class Watch(TorchFunctionMode):
    """Notes what a processor would send, what it would read, and each divisor."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.read: list[str] = []
        self.divisors: list[Any] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in READING:
            self.read.append(function.__name__)
            return [1.0] * args[0].numel()
        if function is torch.divide:
            self.divisors.append(args[1])
        result = function(*args, **kwargs)
        is_sent = function in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor) or (
            function is torch.Tensor.to and args[0].is_cpu and not kwargs.get("non_blocking")
        )
        if is_sent and result.device == GPU:
            self.sent.append(function.__name__)
        return result


class Alone:
    """One process on a GPU."""

    device = GPU

    def gather(self, rows):
        return rows

    def exchange(self, rows, counts):
        return rows[:, 0]


def of_the_sine(model: nn.Module) -> Task:
    totals = functools.partial(sine.totals, tolerance=0.1)
    return Task(model, [0], [0], totals, SGD(model.parameters(), lr=0.1, momentum=0.9))


def with_divisor(model: nn.Module) -> Task:
    """A part of the model is not used; what is counted are numbers of Python's and tensors."""

    def totals(model, batch):
        windows, _ = batch
        return model[0](windows.flatten(1)).square().sum(), 3, torch.ones((), device=GPU)

    return Task(model, [0], [0], totals, torch.optim.SGD(model.parameters(), lr=0.1))


TASKS = {
    "sine": (lambda: of_the_sine(Predictor().to(GPU)), Counts()),
    "own model": (
        lambda: with_divisor(nn.ModuleList([nn.Linear(9, 3), nn.Linear(9, 3)]).to(GPU)),
        Counts(divisor=True),
    ),
}


@pytest.mark.parametrize("gathered", [True, False])
@pytest.mark.parametrize("name", TASKS)
def test_a_step_sends_nothing_and_reads_once(name, gathered, monkeypatch):
    monkeypatch.setattr(reduction, "GATHERED_BYTES", 2**20 if gathered else 0)
    build, counts = TASKS[name]
    task = build()
    rows = PieceRows(task, counts, seed=0, device=GPU, num_threads=1)
    plan = Plan(size=10, global_batch_size=10, num_pieces=PIECES)
    gradient = OrderedGradient(rows, plan=plan, peers=Alone())
    batch = [
        (torch.zeros(size, 9, 1, device=GPU), torch.zeros(size, 1, device=GPU))
        for size in plan.piece_sizes(0)
    ]
    with Watch() as watch:
        gradient(batch, epoch=0, step=0, stop=False)
        task.optimizer.step()
    assert watch.sent == []
    assert watch.read == ["tolist"]
    on_gpu = [isinstance(divisor, torch.Tensor) for divisor in watch.divisors]
    assert on_gpu == [True], "a GPU would multiply by the inverse of a number of the processor"
