"""verify on a user's own task: right ones pass, and each fault fails its claim."""

import json
import os
from pathlib import Path

import pytest
from test_verify import ONE, SOUND, check_red, problems, red, results, run

from sinlstm_dist.verify.faults import FAULTS

FILE = Path(__file__).with_name("verified_tasks.py")
BATCH = ["--train.global_batch_size", "24"]


def own(name: str = "build") -> list[str]:
    """The flags for a task of `verified_tasks.py`."""
    return ["--task.build", f"{FILE}:{name}", *BATCH]


def check_passes(launch, path: Path) -> str:
    """That all claims hold; a busy machine may fail Speed. Returns what was measured."""
    found = results(path)
    expected = ONE if len(launch.children) == 1 else SOUND
    assert found == {**expected, "Speed": found["Speed"]}, launch.stdout + launch.stderr
    return "; ".join(claim["measured"] for claim in json.loads(path.read_text())["claims"])


@pytest.mark.parametrize("processes", [1, 2])
def test_a_sound_task_passes(nursery, tmp_path, processes):
    """With dropout, AdamW, a schedule, clipping, workers and samples that are drawn at random."""
    workers = ["--train.num_workers", "1"]
    launch = run(nursery, tmp_path, *own(), *workers, processes=processes)
    measured = check_passes(launch, tmp_path / "v.json")
    alike, counts = {
        1: ("as without a data loader", "as counted without a data loader"),
        2: ("on all processes and on one alone", "as one process alone counts"),
    }[processes]
    for part in (
        "each of 57 train samples drawn once in each of 2 epochs, 9 in the last batch of 24",
        f"12 steps: the same bits {alike}",
        f"{counts}, the same bits",
        "the weights and metrics of the unbroken run",
        "the built-in model: test accuracy",
    ):
        assert part in measured
    assert os.listdir(tmp_path) == ["v.json"]


def test_the_example_passes(nursery, tmp_path):
    example = FILE.parents[1] / "examples" / "own_model.py"
    launch = run(nursery, tmp_path, "--task.build", f"{example}:build", processes=2)
    check_passes(launch, tmp_path / "v.json")


@pytest.mark.parametrize("name", ["build", "build_norm", "build_weighted"])
def test_the_data_parallel_wrapper_is_compared_up_to_rounding(nursery, tmp_path, name):
    ddp = ["--train.reduction", "ddp", "--task.is_counted", "false"]
    launch = run(nursery, tmp_path, *own(name), *ddp, processes=2)
    measured = check_passes(launch, tmp_path / "v.json")
    assert "the same bits on all processes; gradients of one alone within" in measured
    assert " and accuracy " not in measured  # of a task that counts no correct predictions


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        (["--train.global_batch_size", "500"], "200 train samples"),  # one step in an epoch
        (["--train.global_batch_size", "100", "--train.virtual_shards", "3"], "100 in the last"),
        (["--train.global_batch_size", "2"], "1 in the last batch of 2"),
    ],
)
def test_any_number_of_steps_in_an_epoch(nursery, tmp_path, flags, steps):
    launch = run(nursery, tmp_path, *own(), *flags, processes=2)
    assert steps in check_passes(launch, tmp_path / "v.json")


QUICK = ("sample-twice", "dropped-gradient", "flipped-bit", "averaged-metrics", "stale-checkpoint")


def pytest_generate_tests(metafunc):
    if "fault" in metafunc.fixturenames:
        every = metafunc.config.getoption("--full-verify")
        metafunc.parametrize("fault", [name for name in FAULTS if every or name in QUICK])


def test_a_fault_turns_its_claim_red_and_no_other(nursery, tmp_path, fault):
    launch = run(nursery, tmp_path, "--inject", fault, *own(), processes=2)
    path = tmp_path / "v.json"
    if fault == "dies":
        assert red(path) == [FAULTS[fault].claim]
        return
    assert launch.codes == [1, 1], launch.stdout + launch.stderr
    check_red(launch, path, fault)


@pytest.mark.parametrize("name", ["dropped-gradient", "flipped-later"])
def test_with_the_data_parallel_wrapper_too(nursery, tmp_path, name):
    ddp = ["--train.reduction", "ddp"]
    launch = run(nursery, tmp_path, "--inject", name, *own(), *ddp, processes=2)
    check_red(launch, tmp_path / "v.json", name)


def test_samples_that_depend_on_the_order_of_fetching_are_found(nursery, tmp_path):
    """A start of `train` does not look for it where no bits are promised."""
    ddp = ["--train.reduction", "ddp"]
    launch = run(nursery, tmp_path, *own("build_own_generator"), *ddp, processes=2)
    path = tmp_path / "v.json"
    assert red(path) == ["Data"]
    assert "has other values when it is fetched again" in problems(path)
    assert "look at: your data sets" in " ".join(launch.stdout.split())


def test_a_task_that_train_refuses_is_refused_alike(nursery, tmp_path):
    launch = run(nursery, tmp_path, *own("build_norm"))
    assert launch.codes == [2]
    assert launch.stderr.startswith("error: task.build=")
    assert "BatchNorm" in launch.stderr
