"""Killed at any instant and started again, a run ends with the bits of the undisturbed one.

A sample of the instants runs every time; the whole matrix, with a count of the kills, is

    python -m pytest tests/test_kill_matrix.py --full-kill-matrix
"""

import itertools
import random
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from launching import SETTINGS, check_same, flags, metrics, summary, weights_digest
from nursery import Launch, Nursery

from sinlstm_dist.run import checkpoint

WORLD_SIZES = (4, 1, 3, 2)  # of successive starts
EVERY_STEP = {"checkpoint.every_steps": 1}
STEPS_AN_EPOCH, NUM_STEPS = 3, 9
NUM_INSTANTS = 20
LONGEST_LIFE_S = 1.5  # from before the processes join to some hundred steps


@dataclass(frozen=True)
class Undisturbed:
    """How a run ends that nobody kills."""

    weights: str
    metrics: list[dict[str, float]]
    operations: list[str]  # on files, in order


@pytest.fixture(scope="module")
def undisturbed(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    root = tmp_path_factory.mktemp("undisturbed")
    launch = start(nursery, root, faults=[file_fault(root, at=0, do="count")])
    assert nursery.wait(launch).codes == [0]
    run = root / "run"
    return Undisturbed(weights_digest(run), metrics(run), launch.events())


@pytest.fixture
def is_full(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--full-kill-matrix"))


def start(nursery: Nursery, root: Path, *, processes: int = 1, **keywords) -> Launch:
    settings = {**SETTINGS, **keywords.pop("settings", {})}
    return nursery.start(flags(settings), cwd=root, processes=processes, **keywords)


def file_fault(root: Path, *, at: int, do: str) -> dict[str, object]:
    return {"rank": 0, "of": "file", "at": at, "do": do, "below": str(root / "run")}


def check_ends_as(expected: Undisturbed, nursery: Nursery, root: Path, *, processes: int) -> None:
    """Start the run once more, let it end, and compare."""
    launch = nursery.wait(start(nursery, root, processes=processes))
    assert launch.codes == [0] * processes, launch.stderr
    run = root / "run"
    assert weights_digest(run) == expected.weights
    assert metrics(run) == expected.metrics
    assert summary(run)["outcome"] == "completed"
    leftovers = [path.name for path in run.glob("**/.*") if path.name != ".lock"]
    assert not [name for name in leftovers if "step-" in name], leftovers


def chosen(operations: list[str], *, do: str, is_full: bool) -> list[int]:
    """The operations, counted from 1, at which a fault strikes."""
    syncs = [at for at, what in enumerate(operations, 1) if what.startswith("fsync")]
    candidates = syncs if do == "tear" else list(range(1, len(operations) + 1))
    if do.startswith("error"):
        candidates.pop()  # lets the lock go at the very end: a failure there costs nothing
    if is_full:
        return candidates
    publishing = [at for at in candidates if operations[at - 1].startswith("os.rename")]
    return sorted({*candidates[3 :: len(candidates) // 5], *(publishing[3:5] or publishing[-1:])})


@pytest.mark.parametrize("do", ["kill", "tear", "error ENOSPC"])
def test_at_every_file_operation(
    undisturbed: Undisturbed, nursery: Nursery, tmp_path: Path, capsys, *, do: str, is_full: bool
) -> None:
    """Killed; killed with half of the file on disk; or told that the disk is full."""
    worlds = itertools.cycle(WORLD_SIZES)
    assert len(undisturbed.operations) > 80
    instants = chosen(undisturbed.operations, do=do, is_full=is_full)
    for at in instants:
        what = f"{do} at {at}: {undisturbed.operations[at - 1]}"
        root = tmp_path / str(at)
        root.mkdir()
        launch = nursery.wait(start(nursery, root, faults=[file_fault(root, at=at, do=do)]))
        if do.startswith("error"):
            assert launch.codes in ([1], [2]), what
            assert launch.stderr.count("error:") == 1, (what, launch.stderr)
            assert "No space left on device" in launch.stderr, (what, launch.stderr)
            assert "Traceback" not in launch.stderr, (what, launch.stderr)
            assert "None" not in launch.stderr, (what, launch.stderr)
        else:
            assert launch.codes == [-signal.SIGKILL], what
        try:
            check_ends_as(undisturbed, nursery, root, processes=next(worlds))
        except AssertionError as error:
            raise AssertionError(what) from error
    with capsys.disabled():
        if is_full:
            print(f"\n{do} at file operations: survived {len(instants)}")


def test_while_several_processes_save(
    undisturbed: Undisturbed, nursery: Nursery, tmp_path: Path, *, is_full: bool
) -> None:
    """The same with four processes, of which the one that writes dies: the others end too."""
    operations = undisturbed.operations
    published = [at for at, what in enumerate(operations, 1) if "rename" in what and "step" in what]
    for at in published if is_full else published[1:2]:
        root = tmp_path / str(at)
        root.mkdir()
        faults = [file_fault(root, at=at, do="kill")]
        launch = nursery.wait(start(nursery, root, processes=4, faults=faults))
        assert launch.codes == [-signal.SIGKILL, 1, 1, 1]
        check_ends_as(undisturbed, nursery, root, processes=3)


def test_at_every_step(
    undisturbed: Undisturbed, nursery: Nursery, tmp_path: Path, capsys, *, is_full: bool
) -> None:
    """All processes of a start are killed before the same step; the next start is the last."""
    worlds = itertools.cycle(WORLD_SIZES)
    survived = 0
    for at in range(1, NUM_STEPS + 1, 1 if is_full else 2):
        root = tmp_path / str(at)
        root.mkdir()
        processes = next(worlds)
        faults = [{"rank": rank, "of": "step", "at": at, "do": "kill"} for rank in range(processes)]
        settings = {"checkpoint.every_steps": 2}
        launch = start(nursery, root, processes=processes, faults=faults, settings=settings)
        codes = nursery.wait(launch).codes
        assert -signal.SIGKILL in codes
        assert 0 not in codes
        check_ends_as(undisturbed, nursery, root, processes=next(worlds))
        survived += 1
    with capsys.disabled():
        if is_full:
            print(f"\nkill at steps: survived {survived}")


@pytest.fixture(scope="module")
def interrupted(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed while it saved its second checkpoint."""
    root = tmp_path_factory.mktemp("interrupted")
    faults = [{"rank": 0, "of": "save", "at": 2, "do": "kill"}]
    launch = nursery.wait(start(nursery, root, faults=faults))
    assert launch.codes == [-signal.SIGKILL]
    return root


@pytest.mark.parametrize("do", ["kill", "tear"])
def test_while_it_resumes(
    undisturbed: Undisturbed,
    interrupted: Path,
    nursery: Nursery,
    tmp_path: Path,
    capsys,
    *,
    do: str,
    is_full: bool,
) -> None:
    """Killed again after reading its checkpoint, before its first step, or in its first save."""

    def resume(name: str, **fault: object) -> Launch:
        root = tmp_path / name
        shutil.copytree(interrupted, root)
        fault = {**file_fault(root, at=0, do="count"), **fault}
        return nursery.wait(start(nursery, root, faults=[fault]))

    every = resume("undisturbed").events()
    published = next(
        at for at, what in enumerate(every, 1) if re.fullmatch("fsync .*/checkpoints", what)
    )
    operations = every[:published]
    assert any("checkpoints/step-00000003/state.json" in what for what in operations[:10])
    assert "os.rename run/checkpoints/.unfinished-step-00000006" in operations[-5:]
    worlds = itertools.cycle(WORLD_SIZES)
    instants = chosen(operations, do=do, is_full=is_full)
    for at in instants:
        assert resume(str(at), at=at, do=do).codes == [-signal.SIGKILL]
        check_ends_as(undisturbed, nursery, tmp_path / str(at), processes=next(worlds))
    assert resume("step", of="step", at=1, do="kill").codes == [-signal.SIGKILL]
    check_ends_as(undisturbed, nursery, tmp_path / "step", processes=next(worlds))
    with capsys.disabled():
        if is_full:
            print(f"\n{do} while it resumes: survived {len(instants) + 1}")


def test_while_a_complete_run_is_extended(
    undisturbed: Undisturbed, nursery: Nursery, tmp_path: Path, capsys, *, is_full: bool
) -> None:
    """Killed when the folder is neither the short run's any more nor the long one's yet."""
    short = nursery.wait(start(nursery, tmp_path, settings={"train.epochs": 1}))
    assert short.codes == [0], short.stderr

    def extend(name: str, **fault: object) -> Launch:
        root = tmp_path / name
        shutil.copytree(tmp_path / "run", root / "run")
        fault = {**file_fault(root, at=0, do="count"), **fault}
        return nursery.wait(start(nursery, root, faults=[fault]))

    operations = extend("undisturbed").events()
    begun = next(at for at, what in enumerate(operations) if what.endswith("starts.jsonl"))
    instants = range(1, begun + 3)
    for at in instants:
        assert extend(str(at), at=at, do="kill").codes == [-signal.SIGKILL]
        check_ends_as(undisturbed, nursery, tmp_path / str(at), processes=1)
    with capsys.disabled():
        if is_full:
            print(f"\nkill while a complete run is extended: survived {len(instants)}")


def test_again_and_again_at_each_step(
    undisturbed: Undisturbed, nursery: Nursery, tmp_path: Path
) -> None:
    """One run, one step a start: nine kills, on changing numbers of processes."""
    for start_number, processes in zip(range(NUM_STEPS), itertools.cycle(WORLD_SIZES)):
        faults = [{"rank": rank, "of": "step", "at": 2, "do": "kill"} for rank in range(processes)]
        launch = start(nursery, tmp_path, processes=processes, faults=faults, settings=EVERY_STEP)
        codes = nursery.wait(launch).codes
        if start_number < NUM_STEPS - 1:
            assert -signal.SIGKILL in codes
            assert 0 not in codes
            steps = [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")]
            assert max(steps) == f"step-{start_number + 1:08d}"
    check_ends_as(undisturbed, nursery, tmp_path, processes=4)


def test_at_random_instants(nursery: Nursery, tmp_path: Path, capsys, *, is_full: bool) -> None:
    """Chains of four kills, each of a world of another size, at instants that a seed draws.

    The run has no end until its last start gives it one: whenever the kill comes, it disturbs.
    """
    draw = random.Random(20_261_124)
    survived = 0
    for chain in range(NUM_INSTANTS // 4 if is_full else 1):
        root = tmp_path / str(chain)
        root.mkdir()
        endless = {"train.epochs": 1_000_000, "checkpoint.every_steps": 2}
        for processes in WORLD_SIZES:
            launch = start(nursery, root, processes=processes, settings=endless)
            time.sleep(draw.uniform(0, LONGEST_LIFE_S))
            assert len(nursery.running(launch)) == processes, launch.stderr
            nursery.kill(launch)
            survived += 1
        newest = checkpoint.find(root / "run" / "checkpoints")[:1]
        some_more = {"train.epochs": sum(map(checkpoint.step_of, newest)) // STEPS_AN_EPOCH + 2}
        straight = {**some_more, "output.dir": "straight", "checkpoint.every_epochs": 0}
        assert nursery.wait(start(nursery, root, settings=straight)).codes == [0]
        launch = nursery.wait(start(nursery, root, processes=2, settings=some_more))
        assert launch.codes == [0, 0], launch.stderr
        check_same(root / "run", root / "straight")
    with capsys.disabled():
        if is_full:
            print(f"\nkill at random instants: survived {survived}")


def test_the_matrix_sees_a_lost_step(
    undisturbed: Undisturbed, nursery: Nursery, tmp_path: Path
) -> None:
    """Negative control: weights of another step under a checkpoint's name change the result."""
    settings = {"train.epochs": 1}
    assert nursery.wait(start(nursery, tmp_path, settings=settings)).codes == [0]
    folder = checkpoint.find(tmp_path / "run" / "checkpoints")[0]
    found = checkpoint.read(folder)
    weights = {name: value.clone() for name, value in found.weights.items()}
    weights["output_layer.bias"] += 2.0**-20
    checkpoint.set_aside(folder, "true")
    altered = checkpoint.Checkpoint(found.state, weights, found.optimizer)
    checkpoint.write(folder.parent, altered, keep=2)
    with pytest.raises(AssertionError):
        check_ends_as(undisturbed, nursery, tmp_path, processes=1)
