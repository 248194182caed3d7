"""Which graph is replayed on which batch; tests/gpu/test_gpu_graphs.py has the graphs themselves.

Here a capture is what a GPU makes of it: the computation again, in the same memory.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinlstm_dist import graphed_rows, job, lstm, sine
from sinlstm_dist.config import load_config
from sinlstm_dist.data.steps import pieces
from sinlstm_dist.graphed_rows import GraphedRows
from sinlstm_dist.piece_rows import PieceRows, Place
from sinlstm_dist.task import Counts
from sinlstm_dist.verify.broken import OtherRows, RoundedRows, break_rows

ROOT = Path(__file__).parents[1]
PLACE = Place(0, 0)
MOST_PIECES = 6
RECURRENCES = ["torch", pytest.param("fused", marks=pytest.mark.kernel)]
CAPTURED: list[Tensor] = []


def repeat(compute: Callable[[], Tensor], *, memory: object) -> tuple[Tensor, Callable[[], None]]:
    result = compute()
    CAPTURED.append(result)
    return result, lambda: result.copy_(compute())


@pytest.fixture(autouse=True)
def a_gpu(monkeypatch):
    """What a GPU has, without one."""
    CAPTURED.clear()
    monkeypatch.setattr(graphed_rows, "capture", repeat)
    monkeypatch.setattr(GraphedRows, "_each", PieceRows._each)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))


class Both:
    """The same task's rows, with graphs and without."""

    def __init__(self, recurrence: str) -> None:
        config = load_config(overrides={"data.window": 5, "data.noise": 0.1})
        self.task = sine.build(config, lstm.Choice(recurrence, "for a test"))
        new = {"seed": 0, "device": torch.device("cpu"), "num_threads": 1}
        self.usual = PieceRows(self.task, Counts(), **new)
        self.graphed = GraphedRows(self.task, Counts(), **new)

    def check(self, sizes: list[int], first: int = 0) -> None:
        """That both compute the same gradients and totals."""
        batch = self.task.train_data[np.arange(first, first + sum(sizes))]
        found = [self.numbers(rows, batch, sizes) for rows in (self.usual, self.graphed)]
        assert torch.equal(*found)

    @staticmethod
    def numbers(rows: PieceRows, batch: tuple[Tensor, ...], sizes: list[int]) -> Tensor:
        share = batch if rows.is_whole else pieces(batch, sizes)
        out = torch.zeros(len(sizes) + 1, rows.width)  # the caller's memory may have more
        rows.gradients(share, sizes=sizes, place=PLACE, out=out)
        out = out[:-1]
        with rows.testing():
            totals = rows.totals(share, sizes=sizes, place=PLACE)
        return torch.cat((out, totals), dim=1)

    @torch.no_grad()
    def update(self) -> None:
        """Change the weights in place, as an optimizer does."""
        for parameter in self.task.model.parameters():
            parameter.mul_(0.9)


@pytest.mark.parametrize("recurrence", RECURRENCES)
@settings(deadline=None, max_examples=30)
@given(batches=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=MOST_PIECES), min_size=1))
def test_any_batches_have_the_rows_of_single_calls(recurrence, batches):
    both = Both(recurrence)
    CAPTURED.clear()
    for number, sizes in enumerate(batches):
        both.check(sizes, first=number)
        both.update()
    most = both.graphed.at_once or MOST_PIECES
    groups = {tuple(s[first : first + most]) for s in batches for first in range(0, len(s), most)}
    assert len(CAPTURED) == 2 * len(groups)  # of gradients, and of totals


@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_parameters_that_move_get_new_graphs(recurrence):
    both = Both(recurrence)
    both.check([3, 4])
    for parameter in both.task.model.parameters():
        parameter.data = parameter.data.clone()
    both.update()
    both.check([3, 4])
    assert len(CAPTURED) == 4


def test_a_copy_of_the_model_has_graphs_of_its_own():
    both, other = Both("torch"), Both("torch")
    both.check([3, 4])
    other.update()
    copied = both.graphed.of(other.task.model)
    batch = both.task.train_data[np.arange(7)]
    numbers = both.numbers(copied, batch, [3, 4])
    assert torch.equal(numbers, both.numbers(other.usual, batch, [3, 4]))
    both.check([3, 4])


@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_batches_and_what_is_returned_stay_as_they_are(recurrence):
    both = Both(recurrence)
    first, other = (both.task.train_data[np.arange(start, start + 4)] for start in (0, 9))
    totals = both.graphed.totals(first, sizes=[4], place=PLACE)
    before = [tensor.clone() for tensor in (*first, totals)]
    both.graphed.totals(other, sizes=[4], place=PLACE)
    for tensor, expected in zip((*first, totals), before, strict=True):
        assert torch.equal(tensor, expected)


def test_rows_that_are_not_asked_for_are_not_changed():
    both = Both("torch")
    out = torch.full((3, both.graphed.width), torch.nan)
    both.graphed.gradients(both.task.train_data[np.arange(7)], sizes=[3, 4], place=PLACE, out=out)
    assert out[:2].isfinite().all()
    assert out[2].isnan().all()


def test_flags_stay_where_a_graph_reads_them():
    rows = Both("torch").graphed
    first, other = (True, True), (True, False)
    places = [rows._flags(used).data_ptr() for used in (first, other, first, other)]
    assert places[:2] == places[2:]
    assert rows._flags(other).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("how", [OtherRows, RoundedRows])
@pytest.mark.parametrize("kind", ["usual", "graphed"])
def test_rows_can_be_broken_for_verify(how, kind):
    """They take the batches that they took before."""
    both = Both("torch")
    batch = both.task.train_data[np.arange(7)]
    right = both.numbers(both.usual, batch, [3, 4])
    rows = getattr(both, kind)
    break_rows(rows, how)
    broken = both.numbers(rows, batch, [3, 4])
    assert torch.equal(broken, right) == (how is OtherRows)  # on a CPU its code is the same
    assert torch.allclose(broken, right)


def test_only_the_built_in_task_has_graphs(monkeypatch, world, tmp_path):
    """Other models may draw random numbers, or do otherwise with other batches."""
    monkeypatch.setattr(job, "can_replay", lambda device: True)
    own = {"task.build": f"{ROOT}/examples/own_model.py:build"}
    for changes, kind in (({}, GraphedRows), (own, PieceRows)):
        config = load_config(overrides={**changes, "output.dir": str(tmp_path / "run")})
        built = job.build(config, world)
        assert type(built.rows) is kind
        assert {type(rows) for rows, _ in built.baselines.values()} <= {PieceRows}


@pytest.mark.parametrize(("kind", "expected"), [("cpu", False), ("cuda", True), ("mps", False)])
def test_graphs_are_nvidias(kind, expected):
    assert graphed_rows.can_replay(torch.device(kind)) == expected
