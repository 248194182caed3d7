"""A task says what is wrong with its parts; what its `totals` returns becomes numbers in a row."""

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sinlstm_dist.metrics import Totals
from sinlstm_dist.task import Counts, Task, counts_of, row_of

LOSS = torch.tensor(2.5)


def new_task(**changed: Any) -> Task:
    model = nn.Linear(2, 1)
    parts = {
        "model": model, "train_data": [0, 1], "test_data": [0],
        "totals": lambda model, batch: (LOSS, None),
        "optimizer": torch.optim.AdamW(model.parameters()),
    }  # fmt: skip
    return Task(**{**parts, **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": None}, "Task: model is None, not a Module"),
        ({"model": nn.Linear}, "Task: model is a type, not a Module"),
        ({"optimizer": nn.Linear(1, 1)}, "Task: optimizer is a Linear, not an Optimizer"),
        ({"train_data": iter([1])}, "Task: train_data is a list_iterator: a map-style data set"),
        ({"test_data": None}, "Task: test_data is None: a map-style data set"),
        ({"totals": 3}, "Task: totals is an int, not a function"),
        ({"totals": None}, "Task: totals is None, not a function"),
        ({"lr_factor": 0.5}, "Task: lr_factor is a float, not a function"),
    ],
)
def test_a_part_of_another_kind_is_refused_by_name(changed, message):
    with pytest.raises(TypeError) as raised:
        new_task(**changed)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_data": []}, "Task: train_data is empty"),
        ({"test_data": []}, "Task: test_data is empty"),
        *[
            ({"clip_norm": norm}, f"Task: clip_norm is {norm}: a number from 0 on is needed")
            for norm in (-1.0, float("nan"), float("inf"))
        ],
    ],
)
def test_a_part_with_a_wrong_value_is_refused_by_name(changed, message):
    with pytest.raises(ValueError, match="Task: ") as raised:
        new_task(**changed)
    assert str(raised.value) == message


def test_the_least_that_a_task_needs():
    task = new_task()
    assert (task.lr_factor, task.clip_norm, task.rows) == (None, 0.0, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.clip_norm = 1.0


@pytest.mark.parametrize(
    ("sums", "expected", "totals"),
    [
        ((LOSS, 3), Counts(), Totals(2.5, 3, 7)),
        ((LOSS, None), Counts(correct=False), Totals(2.5, None, 7)),
        ((LOSS, torch.tensor(3), 5), Counts(divisor=True), Totals(2.5, 3, 7, 5.0)),
        ((LOSS, None, torch.tensor(5)), Counts(False, True), Totals(2.5, None, 7, 5.0)),
        ((LOSS, np.int64(3), np.float32(5)), Counts(divisor=True), Totals(2.5, 3, 7, 5.0)),
    ],
)
def test_what_totals_returns_becomes_a_row_and_totals_again(sums, expected, totals):
    counts, row = counts_of(sums), row_of(sums, 7)
    assert counts == expected
    assert (row.shape, row.dtype) == ((counts.width,), torch.float32)
    assert counts.to_totals(row.tolist()) == totals


def test_a_row_takes_no_part_in_backward():
    weight = torch.tensor(2.0, requires_grad=True)
    assert not row_of((weight * 3, weight * 5, weight), 1).requires_grad


@pytest.mark.parametrize(
    ("sums", "what"),
    [
        (LOSS, "a Tensor: a tuple of the sum of losses and the number of correct predictions"),
        ((LOSS,), "1 values: a tuple"),
        ([LOSS, 1], "a list: a tuple"),
        ((LOSS, 1, 2, 3), "4 values: a tuple"),
        (None, "None: a tuple"),
        ((2.5, 1), "the loss 2.5: one float32 number in a tensor"),
        ((LOSS[None], 1), "the loss torch.float32 of shape (1,): one float32 number"),
        ((LOSS.double(), 1), "the loss torch.float64 of shape (): one float32 number"),
        ((LOSS.bfloat16(), 1), "the loss torch.bfloat16 of shape (): one float32 number"),
        ((LOSS, torch.ones(3)), "a Tensor of shape (3,) for correct predictions: one number"),
        ((LOSS, "3"), "a str for correct predictions: one number"),
        ((LOSS, 3, None), "None for the divisor: one number"),
        ((LOSS, None, [5]), "a list for the divisor: one number"),
    ],
)
def test_wrong_returns_are_named(sums, what):
    with pytest.raises(TypeError) as raised:
        counts_of(sums)
    assert str(raised.value).startswith(f"totals returned {what}")


def test_totals_of_pieces_add_up_exactly():
    """Sums of counts up to 2**24 are exact in a row's float32."""
    rows = [row_of((torch.tensor(0.5), 2**20, 2**21), 2**21) for _ in range(8)]
    total = Counts(divisor=True).to_totals(torch.stack(rows).sum(0).tolist())
    assert total == Totals(4.0, 2**23, 2**24, float(2**24))
    assert Fraction(total.loss) == Fraction(4, 2**24)
