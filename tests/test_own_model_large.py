"""A model with large rows: `World.exchange` and `World.gather` by messages, and processes lost."""

import itertools
import signal
import socket
import time
from pathlib import Path

import pytest
from launching import check_same, flags, summary
from nursery import Launch, Nursery
from test_own_model import settings

from sinlstm_dist.command import LATE_START_S
from sinlstm_dist.processes.world import LARGE
from sinlstm_dist.reduction import GATHERED_BYTES
from sinlstm_dist.run import checkpoint

# They have 10 * width + 3 weights. A batch has 8 rows, of weights, flags and totals. Those of the
# first are gathered, by messages; those of the second are shared out: each has more than 1 MiB.
GATHERED, SHARED_OUT = 3200, 30_000
TIMEOUT_S, MARGIN_S = 3, 25
HOST = socket.gethostname()


def arguments(width: int, folder: str, **more: object) -> list[str]:
    return [*settings("plain", folder, **more), *flags({"task.width": width})]


def test_the_widths_are_on_both_sides():
    """Of what is gathered, and above what travels as messages, on three processes too."""
    gathered, shared_out = (4 * (10 * width + 3) for width in (GATHERED, SHARED_OUT))
    assert 3 * LARGE / 2 < 8 / 2 * gathered < 8 * gathered < GATHERED_BYTES < shared_out
    assert shared_out / 3 > LARGE


@pytest.mark.parametrize("width", [GATHERED, SHARED_OUT])
def test_the_same_bits(width: int, nursery: Nursery, tmp_path: Path) -> None:
    for processes in (1, 2, 3):
        ended = nursery.run(arguments(width, f"run-{processes}"), cwd=tmp_path, processes=processes)
        assert ended.codes == [0] * processes, ended.stderr
        check_same(tmp_path / f"run-{processes}", tmp_path / "run-1")


def counted(words: list[str], nursery: Nursery, cwd: Path, *, rank: int = 1) -> list[list[int]]:
    """The numbers of a rank's collectives from each step's beginning to that of the next one."""
    faults = [{"rank": rank, "of": of, "at": 0, "do": "count"} for of in ("step", "collective")]
    ended = nursery.run(words, cwd=cwd, processes=3, faults=faults)
    assert ended.codes == [0, 0, 0], ended.stderr
    events = [event.split() for event in ended.events(rank)]
    starts = [at for at, (what, _) in enumerate(events) if what == "step"]
    return [
        [int(number) for _, number in events[first + 1 : last]]
        for first, last in itertools.pairwise([*starts, len(events)])
    ]


@pytest.mark.parametrize(("width", "number"), [(GATHERED, 1), (SHARED_OUT, 2)])
def test_collectives_a_step(width, number, nursery: Nursery, tmp_path: Path) -> None:
    found = list(map(len, counted(arguments(width, "run"), nursery, tmp_path)))
    assert len(found) == 12
    assert found[:5] == found[6:11] == [number] * 5
    assert found[5] > number  # an epoch's end has more


@pytest.mark.parametrize(
    ("do", "lost", "place"),
    [("kill", 1, 0), ("kill", 0, 1), ("kill", 2, 1), ("hang", 1, 0), ("hang", 1, 1)],
)
def test_a_process_is_lost_before_a_message(
    do: str, lost: int, place: int, nursery: Nursery, tmp_path: Path
) -> None:
    """`place` 0: while the others exchange; 1: while they gather the parts of the sum."""
    more = flags({"train.timeout_s": TIMEOUT_S, "checkpoint.every_steps": 4})
    straight = [*arguments(SHARED_OUT, "straight"), *more]
    numbers = counted(straight, nursery, tmp_path, rank=lost)[8]
    assert len(numbers) == 2
    fault = {"rank": lost, "of": "collective", "at": numbers[place], "do": do}
    words = [*arguments(SHARED_OUT, "run"), *more]
    launch = ended(nursery, nursery.start(words, cwd=tmp_path, processes=3, faults=[fault]), lost)
    codes, stderr = list(launch.codes), launch.stderr
    nursery.kill(launch)
    assert codes[:lost] + codes[lost + 1 :] == [1, 1]
    assert codes[lost] == (-signal.SIGKILL if do == "kill" else None)
    kept_the_store = f"the connection to rank 0 on {HOST} was lost"
    expected = f"rank {lost} on {HOST} died, hangs or cannot be reached"
    assert stderr.count("error:") == 1, stderr
    assert expected in stderr or (lost == 0 and kept_the_store in stderr), stderr
    assert "Traceback" not in stderr
    if lost:
        assert expected in summary(tmp_path / "run")["reason"]
    published = checkpoint.find(tmp_path / "run" / "checkpoints")
    assert "step-00000008" in [folder.name for folder in published]
    again = nursery.run(words, cwd=tmp_path, processes=2)
    assert again.codes == [0, 0], again.stderr
    assert "continues" in again.stdout
    check_same(tmp_path / "run", tmp_path / "straight")


def ended(nursery: Nursery, launch: Launch, lost: int) -> Launch:
    """The world when all but the lost one have ended, in time."""
    deadline = time.monotonic() + TIMEOUT_S + MARGIN_S + LATE_START_S
    while {child.rank for child in nursery.running(launch)} - {lost}:
        if time.monotonic() > deadline:
            nursery.kill(launch)
            raise AssertionError(f"some never noticed:\n{launch.stderr}")
        time.sleep(0.01)
    return launch
