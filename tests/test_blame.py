"""Mistakes in a user's code, and the one line that each of them ends with."""

from pathlib import Path

import pytest
from launching import flags

from sinlstm_dist.blame import is_users

ODD = Path(__file__).with_name("odd_tasks.py")
MISTAKES = {
    "raises": "KeyError: 'no such thing'",
    "raises_in_totals": "RuntimeError: mat1 and mat2 shapes cannot be multiplied (13x2 and 6x8)",
    "returns_none": "TypeError: returns_none returned None, not a Task",
    "no_tensors": "TypeError: totals returned a float: a tuple of the sum of losses and the number "
    "of correct predictions (or None) is needed",
    "mean_loss": 'it seems to be a mean; return the sum (reduction="sum")',
    "foreign_parameter": "ValueError: the optimizer has a parameter of shape (3,) that is not the "
    "model's, so no checkpoint would hold it: make it a part of the model",
    "empty": "ValueError: Task: train_data is empty",
    "lbfgs": "TypeError: LBFGS computes the loss more than once in a step: use an optimizer that "
    "takes the gradient as it is, such as AdamW",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_place(name, nursery, tmp_path):
    build = f"{ODD}:{name}"
    launch = nursery.run(flags({"task.build": build, "output.dir": "run"}), cwd=tmp_path)
    assert launch.codes == [2]
    (line,) = launch.stderr.splitlines()
    assert line.startswith("error: task.build")
    assert f"{ODD}, line " in line or name == "lbfgs"  # which has no line of the user's
    assert line.endswith(f": {MISTAKES[name]}")


def test_installed_code_and_this_package_are_not_the_users():
    assert is_users(str(ODD))
    assert not is_users(pytest.__file__)
    assert not is_users(str(Path(__file__).parents[1] / "sinlstm_dist" / "job.py"))
    assert not is_users("<string>")
