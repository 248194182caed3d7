"""A wrong task is refused before its first step: one line that says what is wrong and what to do.

Here too: what a resume does with code that has been edited, and `train.reduction = "ddp"`.
"""

import json
from pathlib import Path

import launching
import pytest
import torch
from launching import check_same, content, flags, metrics, summary, weights_digest
from safetensors.torch import load_file
from test_own_model import ODD, settings

WRONG = {
    "batch_norm": (
        "2.running_mean of BatchNorm1d changes in each forward pass", "GroupNorm",
        'train.reduction="ddp"',
    ),
    "bfloat16": ("parameter net.0.weight is bfloat16", ".float()", 'train.reduction="ddp"'),
    "mean_loss": ("it seems to be a mean", 'reduction="sum"'),
    "lbfgs": ("LBFGS computes the loss more than once in a step", "AdamW"),
    "python_state": ("CountingSGD has count of 0.weight, which is not a tensor", "torch.optim"),
    "frozen_all": ("no parameter of the model is to be trained", "requires_grad is False"),
    "stateful": ("the loss had other bits the second time", "keeps a state"),
    "ema": ("mean of Average changes in each forward pass", 'train.reduction="ddp"'),
    "max_norm": ("embedding.weight of Embedding changes in each forward pass",),
    "counter": ("calls of Counter changes in each forward pass", 'train.reduction="ddp"'),
    "inner_counter": ("notes['calls'] of InnerCounter changes in each forward pass",),
    "scheduler": ("a scheduler of torch would never be stepped", "lr_factor"),
    "shared_state": ("SharedStateSGD keeps 'shared' for no parameter of the model",),
    "nan_targets": ("the loss is infinite or nan", "look at the data"),
    "own_draws": ("sample 0 of train_data had other values the second time", "seeded for each"),
    "own_generator": ("had other bits the second time", "a generator of its own"),
    "foreign_parameter": (
        "the optimizer has a parameter of shape (3,) that is not the model's",
        "make it a part of the model",
    ),
    "raises": ("odd_tasks.py, line ", "KeyError: 'no such thing'"),
    "one_by_one": ("odd_tasks.py, line ", "TypeError: only"),
    "raises_in_totals": ("odd_tasks.py, line ", "RuntimeError: mat1 and mat2 shapes"),
    "returns_none": ("returned None, not a Task",),
    "no_tensors": ("totals returned a float: a tuple of the sum of losses",),
    "empty": ("odd_tasks.py, line ", "train_data is empty"),
    "too_many_correct": ("counted 6 correct predictions of 3", "in the unit of the divisor"),
    "iterable": ("train_data is a Stream", "a map-style data set is needed"),
    "sparse": ("the gradient of embedding.weight is sparse", "sparse=False"),
    "no_gradient": ("the loss that totals returned does not depend on any parameter", "detach()"),
    "lazy": ("2.weight has no shape yet", "call the model once in build"),
    "expanded": ("zeros is expanded", "make it with .clone()"),
    "extra_state": ("_extra_state, which is not a tensor", "make it a buffer"),
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
    assert one_line(alone).startswith(f"error: task.build={ODD}:{name}: ")
    for what in WRONG[name]:
        assert what in one_line(alone)
    assert name != "nan_targets" or "deterministic" not in one_line(alone)
    assert one_line(two) == one_line(alone)
    assert not list(tmp_path.rglob("*"))


def test_processes_whose_weights_differ_are_refused(nursery, tmp_path):
    """On one process nothing is wrong; the weights follow from no seed."""
    two = nursery.run(settings("other_weights", "run"), cwd=tmp_path, processes=2)
    assert two.codes == [2, 2]
    assert "rank 1 on" in one_line(two)
    assert "has other initial weights than rank 0" in one_line(two)
    assert "draw them from torch's generators" in one_line(two)


@pytest.mark.parametrize("name", ["other_data", "other_test_data"])
def test_processes_whose_data_differ_are_refused(name, nursery, tmp_path):
    two = nursery.run(settings(name, "run"), cwd=tmp_path, processes=2)
    assert two.codes == [2, 2]
    assert "data differs from rank 0's on rank 1 on" in one_line(two)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("name", "value"), [("nan_schedule", "nan"), ("negative_schedule", "-0.5")]
)
def test_a_factor_that_no_rate_can_have_ends_the_run_in_one_line(
    name, value, processes, nursery, tmp_path
):
    ended = nursery.run(settings(name, "run"), cwd=tmp_path, processes=processes)
    assert ended.codes == [2] * processes, ended.stderr
    assert f"lr_factor(3, 12) is {value}" in one_line(ended)
    assert summary(tmp_path / "run")["outcome"] == "failed"


def test_a_launcher_shows_the_error_once(tmp_path):
    """torchrun adds its own lines, which say where it looked for errors."""
    for name in ("raises", "batch_norm"):
        ended = launching.train(settings(name, "run"), cwd=tmp_path, processes=2)
        assert ended.code != 0
        lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert all(what in lines[0] for what in WRONG[name])
        assert not [line for line in ended.stderr.splitlines() if 'odd_tasks.py", line' in line]


@pytest.mark.parametrize(
    ("more", "whats"),
    [
        ({"task.widht": 3}, ("unknown key task.widht", "did you mean task.width")),
        ({"task.width": "wide"}, ("task.width", "wide", "integer")),
        ({"optim.lr": 0.5}, ("optim.lr=0.5 is for the built-in task", "leave it out")),
        ({"train.init_from": "nowhere"}, ("nowhere",)),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(more, whats, nursery, tmp_path):
    ended = nursery.run([*settings("plain", "run"), *flags(more)], cwd=tmp_path)
    assert ended.codes == [2]
    assert all(what in one_line(ended) for what in whats), ended.stderr


def test_a_target_needs_correct_predictions(nursery, tmp_path):
    arguments = settings("regression", "run", target_accuracy=0.9)
    ended = nursery.run(arguments, cwd=tmp_path)
    assert ended.codes == [2]
    assert "train.target_accuracy=0.9: totals counts no correct predictions" in one_line(ended)


@pytest.mark.parametrize("reduction", ["ordered", "ddp"])
@pytest.mark.parametrize("processes", [1, 2])
def test_nothing_to_divide_by_ends_the_run_in_one_line(processes, reduction, nursery, tmp_path):
    for name, where in (("without_divisor", "samples of step 1"), ("without_test_divisor", "test")):
        arguments = settings(name, name, reduction=reduction)
        ended = nursery.run(arguments, cwd=tmp_path, processes=processes)
        assert ended.codes == [1] * processes, ended.stderr
        assert f"totals returned the divisor 0 for all {where}" in one_line(ended)
        assert "the divisor 0" in summary(tmp_path / name)["reason"]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_number_of_correct_predictions_that_is_none_ends_the_run(processes, nursery, tmp_path):
    """And not as one that has reached its target; the last step of an epoch counts it."""
    arguments = settings("nan_correct", "run", target_accuracy=0.9)
    ended = nursery.run([*arguments, "--train.global_batch_size", "50"], cwd=tmp_path,
                        processes=processes)  # fmt: skip
    assert ended.codes == [1] * processes, ended.stderr
    assert "totals counted nan correct predictions in the samples of step 3" in one_line(ended)


@pytest.mark.parametrize("processes", [1, 2])
def test_leaving_the_program_is_an_error(processes, nursery, tmp_path):
    """A job script takes the exit code 0 for a run that is done."""
    ended = nursery.run(settings("leaves", "run"), cwd=tmp_path, processes=processes)
    assert ended.codes == [1] * processes, ended.stderr
    assert "sys.exit(0) before the end" in ended.stderr
    assert 'odd_tasks.py", line ' in ended.stderr
    assert summary(tmp_path / "run")["outcome"] == "failed"


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_sample_that_cannot_be_read_ends_the_run(processes, num_workers, nursery, tmp_path):
    """It has begun by then: a traceback leads to the user's line, and no process waits for long."""
    arguments = settings("hole", "run", num_workers=num_workers)
    ended = nursery.run(arguments, cwd=tmp_path, processes=processes)
    assert ended.codes == [1] * processes, ended.stderr
    assert ended.stderr.count("ValueError: sample 89 is damaged\n") >= 1
    assert 'odd_tasks.py", line ' in ended.stderr
    recorded = summary(tmp_path / "run")
    assert recorded["outcome"] == "failed"
    assert "sample 89 is damaged" in recorded["reason"]


# ---- train.reduction = "ddp" ----


@pytest.mark.parametrize("name", ["batch_norm", "bfloat16", "unused", "tied", "dropout", "tokens"])
def test_ddp_trains_and_resumes(name, nursery, tmp_path):
    """The last batch has one sample, so a process has none there; BatchNorm needs two of each."""
    more = {"train.reduction": "ddp", "checkpoint.every_steps": 4}
    if name == "batch_norm":
        more["train.global_batch_size"] = 34
    arguments = [*settings(name, "run", epochs=1), *flags(more)]
    first = nursery.run(arguments, cwd=tmp_path, processes=2)
    assert first.codes == [0, 0], first.stderr
    longer = [*settings(name, "run", epochs=3), *flags(more)]
    second = nursery.run(longer, cwd=tmp_path, processes=2)
    assert second.codes == [0, 0], second.stderr
    assert "continues" in second.stdout
    straight = nursery.run(
        [*settings(name, "straight", epochs=3), *flags(more)], cwd=tmp_path, processes=2
    )
    assert straight.codes == [0, 0], straight.stderr
    check_same(tmp_path / "run", tmp_path / "straight")  # of the same number of processes
    losses = [record["train_loss"] for record in metrics(tmp_path / "run")]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("name", ["plain", "tokens", "unused", "tied"])
def test_ddp_gives_what_ordered_gives_up_to_rounding(name, nursery, tmp_path):
    """With SGD, so that a gradient that is some times too large would show."""
    for reduction, processes in (("ordered", 1), ("ddp", 2)):
        arguments = settings(f"{name}_sgd", reduction, reduction=reduction)
        ended = nursery.run(arguments, cwd=tmp_path, processes=processes)
        assert ended.codes == [0] * processes, ended.stderr
    ours, theirs = (load_file(tmp_path / f / "model.safetensors") for f in ("ddp", "ordered"))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-4, atol=1e-6)
    records = [metrics(tmp_path / folder) for folder in ("ddp", "ordered")]
    for our, their in zip(*records, strict=True):
        assert our == pytest.approx(their, rel=1e-5)
    assert records[0][0]["train_loss"] > 1.05 * records[0][1]["train_loss"]  # it learns


def test_ddp_stopped_in_an_epoch_goes_on_with_its_statistics(nursery, tmp_path):
    more = {"train.reduction": "ddp", "train.global_batch_size": 34, "train.epochs": 3}
    fault = {"rank": 1, "of": "step", "at": 4, "do": "signal 15"}  # of three steps an epoch

    def run(folder, code, faults=()):
        arguments = [*settings("batch_norm", folder), *flags(more)]
        ended = nursery.run(arguments, cwd=tmp_path, processes=2, faults=list(faults))
        assert ended.codes == [code] * 2, ended.stderr
        return ended

    run("straight", 0)
    run("run", 75, [fault])
    assert "step-00000005" in summary(tmp_path / "run")["reason"]
    assert "continues" in run("run", 0).stdout
    assert load_file(tmp_path / "run" / "model.safetensors")["2.num_batches_tracked"] == 9
    check_same(tmp_path / "run", tmp_path / "straight")


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("of_closure", "totals must call the model that it gets"),
        ("encodes", "totals can use model(...) alone, and not model.encode"),
    ],
)
def test_ddp_refuses_totals_that_go_past_its_wrapper(name, what, processes, nursery, tmp_path):
    """The gradients of the processes would not be added."""
    right = nursery.run(settings(name, "right"), cwd=tmp_path)
    assert right.codes == [0], right.stderr
    before = content(tmp_path)
    arguments = settings(name, "run", reduction="ddp")
    ended = nursery.run(arguments, cwd=tmp_path, processes=processes)
    assert ended.codes == [2] * processes, ended.stderr
    assert what in one_line(ended)
    assert content(tmp_path) == before


# ---- resume ----

CODE = """
import torch
from pydantic import BaseModel
from sinlstm_dist.task import Task

class Settings(BaseModel):
    width: int = 8

def totals(model, batch):
    loss = torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")
    return loss, None

def build(settings: Settings, config):
    inputs = {inputs}
    data = torch.utils.data.TensorDataset(inputs, inputs.argmax(1))
    model = torch.nn.Linear(4, {outputs})
    optimizer = torch.optim.SGD(model.parameters(), lr={lr})
    return Task(model, data, data, totals, optimizer, lr_factor={lr_factor})
"""


@pytest.fixture
def goes_on(nursery, tmp_path):
    """A run of two epochs, stopped after one of them, and the same command with changes."""

    def run(stops=False, build="mine.py:build", lr=0.1, outputs=4, lr_factor="None",
            inputs="torch.randn(40, 4)", **changes):  # fmt: skip
        text = CODE.format(lr=lr, outputs=outputs, lr_factor=lr_factor, inputs=inputs)
        (tmp_path / build.split(":")[0]).write_text(text)
        base = {
            "task.build": build, "train.epochs": 2, "train.global_batch_size": 10,
            "checkpoint.every_steps": 1, "output.plots": "false", "output.dir": "run",
        }  # fmt: skip
        fault = [{"rank": 0, "of": "step", "at": 6, "do": "signal 15"}] if stops else []
        arguments = flags({**base, **{k.replace("__", "."): v for k, v in changes.items()}})
        ended = nursery.run(arguments, cwd=tmp_path, faults=fault)
        assert not stops or ended.codes == [75], ended.stderr
        return ended

    return run


def refused(ended, run: Path, before: dict[str, bytes]) -> str:
    """The line of a start that was refused, and changed nothing in the folder."""
    assert ended.codes == [2], ended.stdout + ended.stderr
    assert content(run) == before
    return one_line(ended)


def test_a_changed_setting_is_another_run(goes_on, tmp_path):
    goes_on(stops=True)
    before = content(tmp_path / "run")
    line = refused(goes_on(task__width=9), tmp_path / "run", before)
    assert "task.width was 8 and is 9" in line


def test_a_moved_file_is_the_same_run(goes_on, tmp_path):
    goes_on(stops=True)
    ended = goes_on(build="moved.py:build")
    assert ended.codes == [0], ended.stderr
    assert "code" not in ended.stdout.split("continues", 1)[1].split("epoch")[0]


def starts(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]


def test_edited_code_is_one_note_and_recorded(goes_on, tmp_path):
    goes_on(stops=True)
    goes = goes_on(lr_factor="lambda step, num_steps: 1.0")
    assert goes.codes == [0], goes.stderr
    assert goes.stdout.count("code of task.build") == 1
    first, second = (start["arithmetic"] for start in starts(tmp_path / "run"))
    differing = {key for key in {**first, **second} if first.get(key) != second.get(key)}
    assert differing == {"code of task.build"}


def test_a_resized_layer_is_refused_with_its_shapes(goes_on, tmp_path):
    goes_on(stops=True)
    before = content(tmp_path / "run")
    line = refused(goes_on(outputs=5), tmp_path / "run", before)
    assert "'weight' is float32 [4, 4], needed float32 [5, 4]" in line
    assert "restore its code" in line


@pytest.mark.parametrize(
    ("num_steps", "reason"),
    [
        ("num_steps", "lr_factor depends on it: step 1 had the factor 0.875"),
        ("(4 * config.train.epochs)", "the learning rates depend on it"),  # not by its argument
    ],
)
def test_epochs_that_change_the_schedule_are_refused(num_steps, reason, goes_on, tmp_path):
    falls = f"lambda step, num_steps: 1 - step / {num_steps}"
    goes_on(stops=True, lr_factor=falls)
    before = content(tmp_path / "run")
    line = refused(goes_on(lr_factor=falls, train__epochs=3), tmp_path / "run", before)
    assert "train.epochs was 2 and is 3" in line
    assert reason in line
    assert "keep train.epochs=2" in line


@pytest.mark.parametrize("inputs", ["torch.randn(40, 4) * 1.001", "torch.randn(41, 4)"])
def test_edited_data_are_refused(inputs, goes_on, tmp_path):
    goes_on(stops=True)
    before = content(tmp_path / "run")
    line = refused(goes_on(inputs=inputs), tmp_path / "run", before)
    assert "was trained on other samples than task.build=mine.py:build gives now" in line
    assert "restore its code and its data" in line


def test_epochs_that_do_not_change_the_schedule_go_on(goes_on):
    half = "lambda step, num_steps: 0.5"
    goes_on(stops=True, lr_factor=half)
    assert goes_on(lr_factor=half, train__epochs=3).codes == [0]


def test_an_edited_learning_rate_is_one_note_and_the_checkpoints_goes_on(goes_on, tmp_path):
    assert goes_on(output__dir="straight").codes == [0]
    goes_on(stops=True)
    ended = goes_on(lr=0.7)
    assert ended.codes == [0], ended.stderr
    text = " ".join(ended.stdout.split())
    assert (
        text.count("the checkpoint's optimizer settings are kept: lr=0.1 (your code now says 0.7)")
        == 1
    )
    assert weights_digest(tmp_path / "run") == weights_digest(tmp_path / "straight")
