"""A process that dies, hangs, fails or never comes: the others end in time and one names it."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest
from launching import (
    SMALL,
    check_same,
    children,
    finish,
    flags,
    is_alive,
    start,
    summary,
    wait_for,
)
from nursery import Launch, Nursery

from sinlstm_dist.command import LATE_START_S
from sinlstm_dist.processes.roll_call import LONGEST_STEP_S
from sinlstm_dist.run import checkpoint

TIMEOUT_S = 3
PATIENT_S = 10  # where it is a limit on calls of sound processes too, on a busy machine
MARGIN_S = 25  # roll call and leaving, on a busy machine; no launcher ends those that stay silent
SETTINGS = {**SMALL, "train.timeout_s": TIMEOUT_S, "output.dir": "run"}
HOST = socket.gethostname()


def train(
    nursery: Nursery,
    cwd: Path,
    faults: list[dict[str, object]],
    reduction: str = "ordered",
    timeout_s: int = TIMEOUT_S,
    **keywords,
) -> Launch:
    """A world of 3 until all but those that hang have ended, in time."""
    changed = {"train.reduction": reduction, "train.timeout_s": timeout_s}
    arguments = flags({**SETTINGS, **changed})
    launch = nursery.start(arguments, cwd=cwd, faults=faults, **{"processes": 3, **keywords})
    hanging = {fault["rank"] for fault in faults if fault["do"] == "hang"}
    deadline = time.monotonic() + timeout_s + MARGIN_S + LATE_START_S
    while {child.rank for child in nursery.running(launch)} - hanging:
        if time.monotonic() > deadline:
            nursery.kill(launch)
            raise AssertionError(f"some never noticed:\n{launch.stderr}")
        time.sleep(0.01)
    return launch


def check_resumes(nursery: Nursery, cwd: Path) -> None:
    """Nothing that was published is lost, and the run ends as it would have."""
    for folder in checkpoint.find(cwd / "run" / "checkpoints"):
        checkpoint.read(folder)
    straight = flags({**SETTINGS, "output.dir": "straight"})
    assert nursery.run(straight, cwd=cwd).codes == [0]
    assert nursery.run(flags(SETTINGS), cwd=cwd, processes=2).codes == [0, 0]
    check_same(cwd / "run", cwd / "straight")


@pytest.mark.parametrize(("lost", "apart"), [(0, False), (1, False), (2, False), (1, True)])
@pytest.mark.parametrize("do", ["kill", "hang"])
def test_died_or_hangs(nursery: Nursery, tmp_path: Path, lost: int, do: str, apart: bool) -> None:
    faults = [{"rank": lost, "of": "step", "at": 5, "do": do}]
    launch = train(nursery, tmp_path, faults, apart=apart)
    codes, stderr = list(launch.codes), launch.stderr
    nursery.kill(launch)
    assert codes[:lost] + codes[lost + 1 :] == [1, 1]
    assert stderr.count("error:") == 1, stderr
    # a store kept by rank 0 is lost with it, and that is what the others can say
    kept_the_store = f"the connection to rank 0 on {HOST} was lost"
    expected = f"rank {lost} on {HOST} died, hangs or cannot be reached"
    assert expected in stderr or (lost == 0 and kept_the_store in stderr), stderr
    assert "Traceback" not in stderr
    assert "terminate called" not in stderr
    published = checkpoint.find(tmp_path / "run" / "checkpoints")
    assert [folder.name for folder in published] == ["step-00000003"]
    if lost != 0:
        assert summary(tmp_path / "run")["outcome"] == "failed"
        assert expected in summary(tmp_path / "run")["reason"]
    check_resumes(nursery, tmp_path)


@pytest.mark.parametrize("apart", [False, True])
def test_one_of_five_is_named_alone(nursery: Nursery, tmp_path: Path, apart: bool) -> None:
    """Apart, only its neighbours wait for it; the others wait for them, and all must learn it."""
    faults = [{"rank": 3, "of": "step", "at": 5, "do": "kill"}]
    launch = train(nursery, tmp_path, faults, processes=5, apart=apart)
    assert launch.codes == [1, 1, 1, -signal.SIGKILL, 1]
    assert launch.stderr == f"error: rank 3 on {HOST} died, hangs or cannot be reached\n"


@pytest.mark.parametrize("reduction", ["ordered", "ddp"])
def test_all_learn_of_it_at_once(nursery: Nursery, tmp_path: Path, reduction: str) -> None:
    """Those who leave close their connections, so that those who wait for them leave too."""
    settings = {**SETTINGS, "train.timeout_s": 600, "train.reduction": reduction}
    survivors = (0, 1, 2, 4)
    faults = [{"rank": 3, "of": "step", "at": 5, "do": "kill"}]
    faults += [{"rank": rank, "of": "leave", "at": 1, "do": "hang"} for rank in survivors]
    launch = nursery.start(flags(settings), cwd=tmp_path, faults=faults, processes=5)
    wait_for(lambda: all(launch.events(rank) for rank in survivors))
    assert len(nursery.running(launch)) == 4  # stopped where they leave, so nobody ended
    nursery.kill(launch)


def test_a_killed_one_is_named_at_once(nursery: Nursery, tmp_path: Path) -> None:
    """Those of its machine see that it has ended, and nobody waits for its answer."""
    settings = flags({**SETTINGS, "train.timeout_s": 600})
    fault = {"rank": 1, "of": "step", "at": 5, "do": "kill"}
    launch = nursery.start(settings, cwd=tmp_path, faults=[fault], processes=3)
    wait_for(lambda: len(nursery.running(launch)) == 2)
    wait_for(lambda: "error:" in launch.stderr, timeout=LONGEST_STEP_S)
    nursery.wait(launch)
    assert launch.stderr == f"error: rank 1 on {HOST} died, hangs or cannot be reached\n"


def test_two_of_five(nursery: Nursery, tmp_path: Path) -> None:
    faults = [{"rank": rank, "of": "step", "at": 5, "do": "kill"} for rank in (1, 4)]
    launch = train(nursery, tmp_path, faults, processes=5)
    assert launch.stderr.count("error:") == 1
    for rank in (1, 4):
        assert f"rank {rank} on {HOST} died" in launch.stderr
    for rank in (0, 2, 3):
        assert f"rank {rank} on" not in launch.stderr


NEVER_S = 600


@pytest.mark.parametrize(
    ("lost", "do", "timeout_s"),
    [(0, "kill", NEVER_S), (1, "kill", NEVER_S), (1, "hang", PATIENT_S)],
)
def test_lost_where_collectives_end_late(
    nursery: Nursery, tmp_path: Path, lost: int, do: str, timeout_s: int
) -> None:
    """As on a GPU: nothing raises, and the wait for the end never ends."""
    faults = [{"rank": lost, "of": "step", "at": 5, "do": do}]
    settings = flags({**SETTINGS, "train.timeout_s": timeout_s})
    launch = nursery.start(settings, cwd=tmp_path, faults=faults, processes=3, ends_late=True)
    wait_for(lambda: len(nursery.running(launch)) == (do == "hang"))
    codes, stderr = list(launch.codes), launch.stderr
    nursery.kill(launch)
    assert codes[:lost] + codes[lost + 1 :] == [1, 1]
    expected = f"rank {lost} on {HOST} died, hangs or cannot be reached"
    kept_the_store = f"the connection to rank 0 on {HOST} was lost"
    [error] = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert expected in error or (lost == 0 and kept_the_store in error)
    assert "Traceback" not in stderr
    if lost != 0:
        assert summary(tmp_path / "run")["outcome"] == "failed"
        assert expected in summary(tmp_path / "run")["reason"]
    check_resumes(nursery, tmp_path)


def test_lost_while_the_others_wait_in_calls_of_torch(nursery: Nursery, tmp_path: Path) -> None:
    """NCCL is aborted from another thread, which lets these calls return."""
    faults = [{"rank": 1, "of": "step", "at": 5, "do": "kill"}]
    faults += [{"rank": rank, "of": "step", "at": 5, "do": "block"} for rank in (0, 2)]
    settings = flags({**SETTINGS, "train.timeout_s": NEVER_S})
    launch = nursery.run(settings, cwd=tmp_path, faults=faults, processes=3, ends_late=True)
    assert launch.codes == [1, -signal.SIGKILL, 1]
    assert launch.stderr == f"error: rank 1 on {HOST} died, hangs or cannot be reached\n"
    assert summary(tmp_path / "run")["outcome"] == "failed"


@pytest.mark.parametrize(("of", "at"), [("prepare_model", 2), ("reduce", 5), ("backward", 5)])
def test_one_hangs_while_the_others_wait_in_calls_of_torch(
    nursery: Nursery, tmp_path: Path, of: str, at: int
) -> None:
    """Nothing tells a process that hangs from one that computes, but the time in such a call.

    DDP's constructor is in the second `prepare_model`.
    """
    does = ["block", "hang", "block"]
    faults = [{"rank": rank, "of": of, "at": at, "do": do} for rank, do in enumerate(does)]
    launch = train(nursery, tmp_path, faults, "ddp", PATIENT_S, ends_late=True)
    assert [len(launch.events(rank)) for rank in range(3)] == [at] * 3, launch.stderr
    codes, stderr = list(launch.codes), launch.stderr
    nursery.kill(launch)
    assert codes == [1, None, 1]
    assert stderr == f"error: rank 1 on {HOST} died, hangs or cannot be reached\n"


def test_all_may_compute_for_longer_where_collectives_end_late(
    nursery: Nursery, tmp_path: Path
) -> None:
    long = f"sleep {PATIENT_S + 3}"
    faults = [{"rank": rank, "of": "step", "at": 5, "do": long} for rank in range(3)]
    launch = train(nursery, tmp_path, faults, timeout_s=PATIENT_S, ends_late=True)
    assert launch.codes == [0, 0, 0], launch.stderr


def test_one_fails_where_collectives_end_late(nursery: Nursery, tmp_path: Path) -> None:
    fault = {"rank": 2, "of": "step", "at": 5, "do": "raise", "text": "it broke"}
    settings = flags({**SETTINGS, "train.timeout_s": NEVER_S})
    launch = nursery.run(settings, cwd=tmp_path, faults=[fault], processes=3, ends_late=True)
    assert launch.codes == [1, 1, 1]
    assert launch.stderr.count("\nValueError: it broke") == 1
    assert launch.stderr.count("error:") == 1
    assert f"error: rank 2 on {HOST} failed: ValueError: it broke" in launch.stderr


def test_the_result_where_collectives_end_late(nursery: Nursery, tmp_path: Path) -> None:
    for name, ends_late in (("late", True), ("usual", False)):
        settings = flags({**SETTINGS, "output.dir": name})
        launch = nursery.run(settings, cwd=tmp_path, processes=2, ends_late=ends_late)
        assert launch.codes == [0, 0], launch.stderr
    check_same(tmp_path / "late", tmp_path / "usual")


@pytest.mark.parametrize(("failing", "apart"), [(0, False), (2, False), (2, True)])
def test_raises(nursery: Nursery, tmp_path: Path, failing: int, apart: bool) -> None:
    """Its own traceback once, and one line from the others that names it."""
    faults = [{"rank": failing, "of": "step", "at": 5, "do": "raise", "text": "it broke"}]
    launch = train(nursery, tmp_path, faults, apart=apart)
    assert launch.codes == [1, 1, 1]
    assert launch.stderr.count("\nValueError: it broke") == 1
    assert launch.stderr.count("error:") == 1
    assert f"error: rank {failing} on {HOST} failed: ValueError: it broke" in launch.stderr
    assert summary(tmp_path / "run")["outcome"] == "failed"
    assert "it broke" in summary(tmp_path / "run")["reason"]


@pytest.mark.parametrize(("failing", "codes"), [(0, [2, 1, 1]), (2, [1, 1, 2])])
def test_one_refuses(nursery: Nursery, tmp_path: Path, failing: int, codes: list[int]) -> None:
    """One line: its own, if it is the one that tells the user, or else one that names it."""
    fault = {"rank": failing, "of": "step", "at": 5, "do": "refuse", "text": "bad input"}
    launch = train(nursery, tmp_path, [fault])
    assert launch.codes == codes
    by_others = f"rank {failing} on {HOST} failed: ConfigError: "
    assert launch.stderr == f"error: {by_others * (failing > 0)}bad input\n"


def test_all_raise_alike(nursery: Nursery, tmp_path: Path) -> None:
    fault = {"of": "step", "at": 5, "do": "raise", "text": "it broke"}
    faults = [{"rank": rank, **fault} for rank in (0, 1, 2)]
    launch = train(nursery, tmp_path, faults)
    assert launch.codes == [1, 1, 1]
    assert launch.stderr.count("\nValueError: it broke") == 1
    assert launch.stderr.count("error:") == 0


@pytest.mark.parametrize("when", ["build", "evaluate", "save"])
def test_dies_elsewhere(nursery: Nursery, tmp_path: Path, when: str) -> None:
    lost = 0 if when == "save" else 1
    faults = [{"rank": lost, "of": when, "at": 1, "do": "kill"}]
    launch = train(nursery, tmp_path, faults)
    assert launch.stderr.count("error:") == 1, launch.stderr
    assert f"rank {lost} on {HOST}" in launch.stderr
    assert [code for code in launch.codes if code != 1] == [-signal.SIGKILL]


def test_dies_while_the_run_is_tracked(nursery: Nursery, tmp_path: Path) -> None:
    """Trackers end before the world does: Accelerate's would begin another one, and wait."""
    arguments = flags({**SETTINGS, "output.trackers": "tensorboard"})
    faults = [{"rank": 1, "of": "step", "at": 5, "do": "kill"}]
    launch = nursery.start(arguments, cwd=tmp_path, faults=faults, processes=2)
    nursery.wait(launch)
    assert launch.codes == [1, -signal.SIGKILL]
    assert launch.stderr.count("error:") == 1, launch.stderr
    assert summary(tmp_path / "run")["outcome"] == "failed"


@pytest.mark.parametrize("absent", [0, 2])
def test_never_comes(nursery: Nursery, tmp_path: Path, absent: int) -> None:
    launch = train(nursery, tmp_path, [], absent=(absent,))
    assert launch.codes == [1, 1]
    assert launch.stderr.count("error:") == 1, launch.stderr
    assert "Traceback" not in launch.stderr
    if absent:
        assert "error: rank 2 of 3 has not started within train.timeout_s=3" in launch.stderr
    else:
        assert "error: rank 0 cannot be reached at 127.0.0.1" in launch.stderr
    assert not (tmp_path / "run").exists()


def test_wakes_up_late(nursery: Nursery, tmp_path: Path) -> None:
    """A process that was stopped and goes on when the others have left says nothing more."""
    launch = train(nursery, tmp_path, [{"rank": 2, "of": "step", "at": 5, "do": "hang"}])
    nursery.kill(launch, signal.SIGCONT)
    nursery.wait(launch)
    assert launch.codes == [1, 1, 1]
    assert launch.stderr.count("error:") == 1, launch.stderr


@pytest.mark.parametrize(("lost", "number"), [(0, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_under_torchrun(nursery: Nursery, tmp_path: Path, lost: int, number: int) -> None:
    """The launcher's own store and its signals to the others; it ends too."""
    arguments = flags({**SETTINGS, "train.epochs": 100_000, "data.train_size": 5000})
    launcher = start(arguments, cwd=tmp_path, processes=3, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="1")
    checkpoints = tmp_path / "run" / "checkpoints"
    wait_for(lambda: len(list(checkpoints.glob("step-*"))) >= 2)
    pid = children(launcher.pid)[lost]
    os.kill(pid, number)
    if number == signal.SIGSTOP:  # torchrun kills such a process too, half a minute later
        wait_for(lambda: [p for p in children(launcher.pid) if is_alive(p)] == [pid])
        os.kill(pid, signal.SIGKILL)
    ended = finish(launcher)
    assert ended.code == 1
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert errors == [f"error: rank {lost} on {HOST} died, hangs or cannot be reached"]
    assert "terminate called" not in ended.stderr
    assert "sinlstm_dist/train.py" not in ended.stderr  # no traceback of ours
    for folder in checkpoint.find(checkpoints):
        checkpoint.read(folder)
