"""The same bits on any number of processes, and what would change them."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import FUSED, SMALL, flags, metrics, train, weights_digest
from nursery import Nursery

from sinlstm_dist.processes.joining import join_world
from sinlstm_dist.reduction import GATHERED_BYTES

WORLD_SIZES = (1, 2, 3, 4, 5, 8)  # of both recurrences; some of them are enough for a variant
# A partial last batch, noise, momentum; and steps so large that a gradient's last bits reach the
# weights within an epoch.
HARD = {**SMALL, "optim.momentum": 0.9, "optim.lr": 0.1}

VARIANTS = {
    "fused": {"model.lstm": "fused"},
    "torch": {"model.lstm": "torch"},
    "batches smaller than the pieces": {"train.global_batch_size": 5, "data.train_size": 23},
    "three pieces": {"train.virtual_shards": 3},
    "with replacement": {"train.sampling": "replacement"},
    "two layers": {"model.num_layers": 2},
    "two layers of nn.LSTM": {"model.num_layers": 2, "model.lstm": "torch"},
    "one batch smaller than the world": {"data.train_size": 3, "data.test_size": 2},
}


def result(run: Path) -> tuple[str, list[dict[str, float]]]:
    return weights_digest(run), metrics(run)


def test_through_the_ordinary_command(nursery: Nursery, tmp_path: Path) -> None:
    """As a user starts it, with torchrun; python for one process is in the next test."""
    assert nursery.run(flags({**HARD, "output.dir": "one"}), cwd=tmp_path).codes == [0]
    assert len(metrics(tmp_path / "one")) == 3
    arguments = flags({**HARD, "output.dir": "three"})
    ended = train(arguments, cwd=tmp_path, processes=3, OMP_NUM_THREADS="2")
    assert ended.code == 0, ended.stderr
    assert "terminate called" not in ended.stderr
    assert result(tmp_path / "three") == result(tmp_path / "one")


WIDE = {"model.hidden_size": 64, "data.train_size": 2000, "train.global_batch_size": 2000}


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("lstm", [FUSED, "torch"])
def test_with_any_number_of_threads(
    nursery: Nursery, tmp_path: Path, lstm: str, layers: int
) -> None:
    """So wide that torch would share out its sums, and their order, if it were allowed to."""
    settings = {**HARD, **WIDE, "model.lstm": lstm, "train.epochs": 2, "model.num_layers": layers}
    assert nursery.run(flags({**settings, "output.dir": "one"}), cwd=tmp_path).codes == [0]
    arguments = flags({**settings, "output.dir": "two"})
    assert train(arguments, cwd=tmp_path, OMP_NUM_THREADS="2").code == 0
    assert result(tmp_path / "two") == result(tmp_path / "one")


@pytest.mark.parametrize(
    ("lstm", "hidden_size", "shards"),
    [
        pytest.param("fused", 64, 17, marks=pytest.mark.kernel),
        ("torch", 64, 17),
        ("torch", 128, 5),
    ],
)
def test_a_wide_models_gradients_are_shared_out(
    nursery: Nursery, tmp_path: Path, lstm: str, hidden_size: int, shards: int
) -> None:
    """Its rows are too large to be gathered: every process finishes a part of their sum."""
    settings = {**HARD, "data.train_size": 100, "model.hidden_size": hidden_size}
    settings |= {"model.lstm": lstm, "train.epochs": 2, "train.virtual_shards": shards}
    assert 4 * shards * 4 * hidden_size * hidden_size > GATHERED_BYTES
    results = []
    for processes in (1, 2, 3, 5):
        run = f"{processes}"
        launch = nursery.run(
            flags({**settings, "output.dir": run}), cwd=tmp_path, processes=processes
        )
        assert launch.codes == [0] * processes, launch.stderr
        results.append(result(tmp_path / run))
    assert all(found == results[0] for found in results)


@pytest.mark.parametrize("reduction", ["ordered", "ddp"])
def test_variables_of_accelerate_change_nothing(
    nursery: Nursery, tmp_path: Path, reduction: str
) -> None:
    """Left by a user's `accelerate config`: other numbers, a compiled model, fewer updates."""
    settings = {**HARD, "model.lstm": "torch", "train.reduction": reduction}
    left = {
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    }
    for run, variables in (("without", {}), ("with", left)):
        arguments = flags({**settings, "output.dir": run})
        launch = nursery.run(arguments, cwd=tmp_path, processes=2, variables=variables)
        assert launch.codes == [0, 0], launch.stderr
    assert result(tmp_path / "with") == result(tmp_path / "without")


def test_no_variable_has_the_model_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    with join_world(timeout_s=60, one_thread=True) as world:
        model = torch.nn.Linear(1, 1)
        assert world.accelerator.prepare_model(model) is model


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.kernel] if n == "fused" else []) for n in VARIANTS],
)
def test_on_any_number_of_processes(nursery: Nursery, tmp_path: Path, name: str) -> None:
    settings = {**HARD, **VARIANTS[name]}
    results = []
    sizes = {"fused": WORLD_SIZES, "torch": WORLD_SIZES, "three pieces": (1, 2, 3)}
    sizes["two layers"] = (1, 2, 3, 4)
    for processes in sizes.get(name, (1, 3, 8)):
        run = f"run-{processes}"
        arguments = flags({**settings, "output.dir": run})
        launch = nursery.run(arguments, cwd=tmp_path, processes=processes)
        assert launch.codes == [0] * processes, launch.stderr
        results.append(result(tmp_path / run))
    assert all(found == results[0] for found in results)


def test_what_would_change_the_bits(nursery: Nursery, tmp_path: Path) -> None:
    """Negative controls: the comparison sees another seed, other pieces, another recurrence."""
    digests, curves = [], []
    for changes in (
        {},
        {"train.seed": 1},
        {"data.seed": 1},
        {"train.virtual_shards": 4},
        {"optim.momentum": 0.8},
        {"train.reduction": "ddp"},
    ):
        run = f"run-{len(digests)}"
        arguments = flags({**HARD, **changes, "output.dir": run})
        assert nursery.run(arguments, cwd=tmp_path, processes=2).codes == [0, 0]
        weights, records = result(tmp_path / run)
        digests.append(weights)
        curves.append(str(records))
    assert len(set(digests)) == len(digests)
    assert len(set(curves)) == len(curves)


def one_after_the_other(rows: np.ndarray) -> np.ndarray:
    """A sum as right as `tree_sum`'s, to the last bits."""
    total = rows[0]
    for row in rows[1:]:
        total = total + row
    return total


@pytest.mark.parametrize("lstm", [FUSED, "torch"])
def test_the_order_of_addition_decides_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lstm: str
) -> None:
    from sinlstm_dist import reduction, train
    from sinlstm_dist.config import load_config
    from sinlstm_dist.stepping import StepByStep

    def run(name: str) -> tuple[str, list[dict[str, float]]]:
        settings = {**HARD, "model.lstm": lstm, "output.dir": str(tmp_path / name)}
        assert train.train(load_config(None, settings)).outcome == "completed"
        return result(tmp_path / name)

    one = run("one")
    monkeypatch.setattr(
        train, "new_stepping", lambda job, world: StepByStep(job.gradient, job.update)
    )
    assert run("two") == one
    weights = weights_digest(tmp_path / "one")
    monkeypatch.setattr(reduction, "tree_sum", one_after_the_other)
    assert run("another order")[0] != weights


def losses(run: Path, name: str) -> torch.Tensor:
    return torch.tensor([record[name] for record in metrics(run)], dtype=torch.float64)


def test_ddp_has_the_same_curve(nursery: Nursery, tmp_path: Path) -> None:
    """Uneven shares, an empty one in the last batch, one step per epoch, and 20 steps or more.

    1e-5: float32 sums of a hundred terms in another order, through twenty updates.
    """
    settings = {
        **SMALL,
        "data.train_size": 101,  # 100 and 1: in the last batch all but one share are empty
        "train.epochs": 10,  # 20 steps
        "optim.lr": 0.1,
    }
    ordered = flags({**settings, "output.dir": "ordered"})
    assert nursery.run(ordered, cwd=tmp_path).codes == [0]
    for processes in (1, 2, 3, 4):
        run = f"ddp-{processes}"
        arguments = flags({**settings, "output.dir": run, "train.reduction": "ddp"})
        launch = nursery.run(arguments, cwd=tmp_path, processes=processes)
        assert launch.codes == [0] * processes, launch.stderr
        for name in ("train_loss", "test_loss"):
            expected = losses(tmp_path / "ordered", name)
            assert expected[0] - expected[-1] > 1e-2  # it learns: equality says something
            torch.testing.assert_close(losses(tmp_path / run, name), expected, rtol=0, atol=1e-5)
        for name in ("train_samples", "test_samples", "step"):
            assert torch.equal(losses(tmp_path / run, name), losses(tmp_path / "ordered", name))


@pytest.mark.parametrize("apart", [False, True])
def test_one_collective_a_step(nursery: Nursery, tmp_path: Path, apart: bool) -> None:
    counted = ("step", "collective", "memory")
    faults = [{"rank": 0, "of": of, "at": 0, "do": "count"} for of in counted]
    settings = {**SMALL, "checkpoint.every_epochs": 0, "output.dir": "run"}
    launch = nursery.run(flags(settings), cwd=tmp_path, processes=2, faults=faults, apart=apart)
    assert launch.codes == [0, 0], launch.stderr
    events = [event.split()[0] for event in launch.events()]
    assert ("memory" in events) is not apart
    events = [event for event in events if event != "memory"]
    starts = [at for at, event in enumerate(events) if event == "step"]
    between = [later - earlier - 1 for earlier, later in itertools.pairwise(starts)]
    assert len(between) == 8
    assert [between[at] for at in (0, 1, 3, 4, 6, 7)] == [1] * 6
    assert max(between[2], between[5]) > 1  # negative control: an epoch's end has more, counted


def test_exits_are_clean(nursery: Nursery, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """A process that leaves while others still use the group aborts them, some of the time.

    python -m pytest tests/test_same_bits.py -k exits --exits 200
    """
    settings = {**SMALL, "data.train_size": 20, "train.epochs": 1}
    for repetition in range(pytestconfig.getoption("--exits")):
        arguments = flags({**settings, "output.dir": f"run-{repetition}"})
        launch = nursery.run(arguments, cwd=tmp_path, processes=3, is_whole=True)
        assert launch.codes == [0, 0, 0], (repetition, launch.stderr)
        assert launch.stderr == "", repetition
