"""A wrong task is refused before its first step: one line that says what is wrong and what to do.

Here too: what a resume does with code that has been edited, and `train.reduction = "ddp"`.
"""

import json
import shutil
from pathlib import Path

import launching
import pytest
from launching import check_same, content, flags, metrics, weights_digest
from test_own_model import ODD, settings

FILE_AND_LINE = rf"{ODD}, line \d+: "
WRONG = {
    "batch_norm": (
        "2.running_mean of BatchNorm1d changes in each forward pass", "GroupNorm",
        'train.reduction="ddp"',
    ),
    "bfloat16": ("parameter 2.weight is bfloat16", ".float()", 'train.reduction="ddp"'),
    "mean_loss": ("it seems to be a mean", 'reduction="sum"'),
    "lbfgs": ("LBFGS", "closure", "torch.optim.AdamW"),
    "python_state": ("CountingSGD has count of 0.weight, which is no tensor", "torch.optim"),
    "frozen_all": ("no parameter of the model is to be trained",),
    "stateful": ("the gradient of net.0.weight had other bits the second time", "keeps a state"),
    "own_generator": ("had other bits the second time", "a generator of its own"),
    "foreign_parameter": (
        "the optimizer has a parameter of shape (3,) that is not the model's",
        "make it a part of the model",
    ),
    "raises": ("odd_tasks.py, line ", "KeyError: 'no such thing'"),
    "raises_in_totals": ("odd_tasks.py, line ", "RuntimeError: mat1 and mat2 shapes"),
    "returns_none": ("returned None, not a Task",),
    "no_tensors": ("totals returned a float: a tuple of the sum of losses",),
    "empty": ("odd_tasks.py, line ", "train_data is empty"),
    "too_many_correct": ("counted 26 correct predictions of 13", "return the number that is"),
    "iterable": ("train_data is a Stream", "a map-style data set is needed"),
    "sparse": ("embedding.weight", "sparse", "sparse=False"),
    "no_gradient": ("the loss", "does not depend on any parameter"),
    "extra_state": ("_extra_state, which is no tensor",),
}  # fmt: skip


def one_line(ended) -> str:
    """The only line of standard error, without its mark."""
    (line,) = [line for line in ended.stderr.splitlines() if line.strip()]
    assert line.startswith("error: "), ended.stderr
    return line


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_task_is_refused_in_one_line(name, nursery, tmp_path):
    alone = nursery.run(settings(name, "run"), cwd=tmp_path)
    two = nursery.run(settings(name, "run"), cwd=tmp_path, processes=2)
    assert (alone.codes, two.codes) == ([2], [2, 2]), alone.stderr + two.stderr
    for what in ("task.build", *WRONG[name]):
        assert what in one_line(alone)
    assert one_line(two) == one_line(alone)
    assert not list(tmp_path.rglob("*"))
