"""examples/own_model.py: the same bits anywhere, and after being killed or stopped at any step."""

import json
import math
import random
import signal
from pathlib import Path

import launching
import pytest
from launching import check_same, flags
from nursery import Nursery

from sinlstm_dist.run import checkpoint

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_model.py"
EVERY, STEPS = 4, 40  # of two epochs


def arguments(folder: str, **train: object) -> list[str]:
    return flags({
        "task.build": f"{EXAMPLE}:build", "train.epochs": 2, "train.timeout_s": 20,
        "checkpoint.every_steps": EVERY, "checkpoint.keep": STEPS, "output.plots": "false",
        "output.dir": folder, **{f"train.{key}": value for key, value in train.items()},
    })  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to, on one process with one thread."""
    root = tmp_path_factory.mktemp("unbroken")
    ended = nursery.run(arguments("run"), cwd=root)
    assert ended.codes == [0], ended.stderr
    return root / "run"


def test_the_example_is_short():
    assert len(EXAMPLE.read_text().splitlines()) <= 60


@pytest.mark.parametrize(
    ("processes", "num_workers", "threads"),
    [(1, 2, 3), (2, 1, 2), (3, 0, 1), (4, 0, 1), (8, 0, 1)],
)
def test_the_same_bits(processes, num_workers, threads, nursery, tmp_path, unbroken):
    ended = nursery.run(
        arguments("run", num_workers=num_workers),
        cwd=tmp_path,
        processes=processes,
        variables={"OMP_NUM_THREADS": str(threads)},
    )
    assert ended.codes == [0] * processes, ended.stderr
    check_same(tmp_path / "run", unbroken)


def test_the_same_bits_by_the_line_in_its_docstring(tmp_path, unbroken):
    """From the folder above `examples`, under torchrun, as a user has it."""
    (line,) = [line for line in EXAMPLE.read_text().splitlines() if line.startswith("python -m")]
    words = line.split()[3:]
    words[words.index("--train.epochs") + 1] = "2"
    run = tmp_path / "run"
    ended = launching.train(
        [*words, "--output.dir", str(run), "--output.plots", "false"],
        cwd=EXAMPLE.parents[1],
        processes=2,
    )
    assert ended.code == 0, ended.stderr
    check_same(run, unbroken)


def check_states(run: Path, unbroken: Path) -> None:
    """That every checkpoint of a run is that of the unbroken one: tensors, schedule and totals."""
    folders = {folder.name: folder for folder in checkpoint.find(run / "checkpoints")}
    for folder in checkpoint.find(unbroken / "checkpoints"):
        if other := folders.pop(folder.name, None):
            for name in ("model.safetensors", "optimizer.safetensors"):
                assert (other / name).read_bytes() == (folder / name).read_bytes(), folder
            ours, theirs = (json.loads((f / "state.json").read_text()) for f in (other, folder))
            assert ours["optimizer"] == theirs["optimizer"]
            assert ours["totals"] == theirs["totals"]
    assert len(folders) <= 2  # at a request, between those of every few steps


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_steps_and_continued_on_others(seed, nursery, tmp_path, unbroken):
    draw = random.Random(seed)
    sizes = [3, 1, 2, 4, 1, 2]
    draw.shuffle(sizes)
    for number, processes in enumerate(sizes):
        is_last = number == len(sizes) - 1
        fault = {
            "rank": draw.randrange(processes), "of": "step", "at": draw.randint(2, 9), "do": "kill",
        }  # fmt: skip
        launch = nursery.start(
            arguments("run", num_workers=(0, 2, 1)[number % 3]),
            cwd=tmp_path,
            processes=processes,
            faults=[] if is_last else [fault],
            variables={"OMP_NUM_THREADS": str(draw.choice([1, 2, 3]))},
        )
        if not is_last:
            launching.wait_for(
                lambda launch=launch: len(nursery.running(launch)) < len(launch.children)
            )
            nursery.kill(launch)
            assert -signal.SIGKILL in launch.codes, launch.stderr
        else:
            assert nursery.wait(launch).codes == [0] * processes, launch.stderr
    check_same(tmp_path / "run", unbroken)
    check_states(tmp_path / "run", unbroken)


def test_stopped_by_sigterm_and_continued_on_others(nursery, tmp_path, unbroken):
    for processes, step in ((2, 7), (1, 11), (3, 9)):
        fault = {
            "rank": processes - 1,
            "of": "step",
            "at": step,
            "do": f"signal {signal.SIGTERM:d}",
        }
        stopped = nursery.run(
            arguments("run", num_workers=processes - 1),
            cwd=tmp_path,
            processes=processes,
            faults=[fault],
        )
        assert stopped.codes == [75] * processes, stopped.stderr
    ended = nursery.run(arguments("run"), cwd=tmp_path, processes=4)
    assert ended.codes == [0] * 4, ended.stderr
    check_same(tmp_path / "run", unbroken)
    check_states(tmp_path / "run", unbroken)


def test_the_schedule_is_in_the_checkpoints(unbroken):
    """Warm-up over 20 steps, then a cosine: state.json has the last step's learning rate."""
    rates = {}
    for folder in checkpoint.find(unbroken / "checkpoints"):
        state = json.loads((folder / "state.json").read_text())
        (group,) = state["optimizer"]
        rates[state["step"]] = group["lr"]
        assert group["initial_lr"] == 0.02
    assert rates.keys() >= {4, 20, 24, 40}
    for done, rate in rates.items():
        step = done - 1
        factor = min((step + 1) / 20, 0.5 + 0.5 * math.cos(math.pi * step / STEPS))
        assert rate == 0.02 * factor, done
