"""Rows that are replayed from CUDA graphs have the bits of rows whose kernels start one by one."""

import gc

import pytest
import torch
from gpu_runs import DEVICE

from sinlstm_dist import lstm, sine
from sinlstm_dist.config import load_config
from sinlstm_dist.data.steps import pieces
from sinlstm_dist.graphed_rows import GraphedRows
from sinlstm_dist.optimizers import copied
from sinlstm_dist.piece_rows import PieceRows, Place
from sinlstm_dist.task import Counts

PLACE = Place(0, 0)
NEW = {"seed": 0, "device": torch.device(DEVICE), "num_threads": 1}
MODELS = {
    "fused": {"model.lstm": "fused"},
    "torch": {"model.lstm": "torch"},
    "two layers": {"model.lstm": "torch", "model.hidden_size": 128, "model.num_layers": 2},
}


class Both:
    """The same task's rows in both ways, and batches for them."""

    def __init__(self, name: str) -> None:
        config = load_config(overrides={**MODELS[name], "data.noise": 0.1})
        kind = "fused" if name == "fused" else "torch"
        self.task = sine.build(config, lstm.Choice(kind, "for a test"))
        self.task.model.to(DEVICE)
        self.usual = PieceRows(self.task, Counts(), **NEW)
        self.graphed = GraphedRows(self.task, Counts(), **NEW)

    def check(self, sizes: list[int], first: int = 0) -> None:
        """That both compute the same gradients and totals."""
        indices = torch.arange(first, first + sum(sizes)).numpy()
        whole = tuple(tensor.to(DEVICE) for tensor in self.task.train_data[indices])
        found = {}
        for kind in ("usual", "graphed"):
            rows = getattr(self, kind)
            batch = whole if rows.is_whole else pieces(whole, sizes)
            out = torch.full((len(sizes), rows.width), torch.nan, device=DEVICE)
            rows.gradients(batch, sizes=sizes, place=PLACE, out=out)
            with rows.testing():
                found[kind] = [out, rows.totals(batch, sizes=sizes, place=PLACE)]
        for usual, graphed in zip(found["usual"], found["graphed"], strict=True):
            assert usual.isfinite().all()
            assert torch.equal(usual.view(torch.int32), graphed.view(torch.int32))

    @torch.no_grad()
    def move_weights(self) -> None:
        """As a step of the optimizer does: in place."""
        for parameter in self.task.model.parameters():
            parameter.mul_(0.9)


@pytest.fixture(params=MODELS)
def both(request, world):
    """The world sets torch up for the same bits each time."""
    return Both(request.param)


def test_each_call_reads_the_batch_and_the_weights_again(both):
    for first in (0, 7, 400):
        both.check([13, 12, 12, 13], first)
        both.move_weights()


def test_batches_of_other_sizes_have_graphs_of_their_own(both):
    for sizes in ([13, 12], [1, 0, 40, 0, 3], [13, 12], [5] * 9, [1, 0, 40, 0, 3]):
        both.check(sizes)


def test_parameters_may_move_to_other_memory(both):
    both.check([20, 20])
    for parameter in both.task.model.parameters():
        parameter.data = parameter.data.clone()
    both.move_weights()
    if not both.usual.is_whole:  # cuDNN wants its weights in one vector, or torch warns
        both.task.model.rnn.flatten_parameters()
    both.check([20, 20])


def test_a_copy_and_its_original_take_turns(both):
    """Each has memory of its own; also after the copy is gone and its memory is written to."""
    both.check([20, 20, 3, 3, 3])
    before, original = copied(both.task.model, both.task.optimizer), both.graphed
    with torch.no_grad():
        for parameter in before[0].parameters():
            parameter.mul_(0.5)
    for model, graphed in ((before[0], original.of(before[0])), (both.task.model, original)) * 2:
        both.usual, both.graphed = both.usual.of(model), graphed
        both.check([20, 20, 3, 3, 3], 5)
    del before, model, graphed, both.usual
    gc.collect()
    torch.cuda.empty_cache()
    written = [torch.full((1 << size,), torch.nan, device=DEVICE) for size in range(8, 24)]
    both.usual = PieceRows(both.task, Counts(), **NEW)
    both.check([20, 20, 3, 3, 3], 9)
    assert all(tensor.isnan().all() for tensor in written)
