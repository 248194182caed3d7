"""Whatever a checkpoint was made into: no traceback, no crash, and never other bits in silence.

A sample of the alterations runs every time; with more, and a count of what came of them:

    python -m pytest tests/test_altered_checkpoints.py --alterations 1000
"""

import collections
import contextlib
import random
import shutil
import signal
from pathlib import Path

import pytest
from alterations import Alteration, alter
from launching import SMALL, content, flags, metrics, weights_digest
from nursery import Launch, Nursery

SETTINGS = {**SMALL, "optim.momentum": 0.9, "checkpoint.every_steps": 1, "output.dir": "run"}
SEED = 20_261_125
NEWEST, OLDER = "step-00000007", "step-00000006"  # in the middle of an epoch, and at its beginning


@pytest.fixture(scope="module")
def killed(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run killed after its seventh step of nine, and the same run unbroken."""
    root = tmp_path_factory.mktemp("killed")
    straight = nursery.run(flags({**SETTINGS, "output.dir": "straight"}), cwd=root)
    assert straight.codes == [0], straight.stderr
    faults = [{"rank": 0, "of": "step", "at": 8, "do": "kill"}]
    assert nursery.run(flags(SETTINGS), cwd=root, faults=faults).codes == [-signal.SIGKILL]
    names = sorted(path.name for path in (root / "run" / "checkpoints").iterdir())
    assert names == [OLDER, NEWEST]
    return root


def check_told(launch: Launch, alteration: Alteration) -> None:
    """A command that did not do its work says so in one line."""
    [code] = launch.codes
    assert code in (0, 1, 2), (alteration, code, launch.stderr[-2000:])
    assert "Traceback" not in launch.stderr, (alteration, launch.stderr[-2000:])
    errors = [line for line in launch.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == (code != 0), (alteration, launch.stderr[-2000:])


def outcome(nursery: Nursery, killed: Path, root: Path, *, seed: int) -> str:
    """Alter a copy of the run, read it, continue it, and name what came of that."""
    draw = random.Random(seed)
    shutil.copytree(killed / "run", root / "run")
    outside = root / "outside"
    outside.mkdir()
    (outside / "precious").write_text("not the run's")
    checkpoints = root / "run" / "checkpoints"
    alteration = alter(checkpoints / NEWEST, draw, outside=outside)
    before = content(outside)
    older = content(checkpoints / OLDER)
    if draw.random() < 0.3:
        read = nursery.run(
            [f"run/checkpoints/{NEWEST}"], cwd=root, module=draw.choice(["evaluate", "forecast"])
        )
        check_told(read, alteration)
    launch = nursery.run(flags(SETTINGS), cwd=root)
    check_told(launch, alteration)
    assert content(outside) == before, alteration
    assert sorted(path.name for path in root.iterdir()) == ["outside", "run"], alteration
    if launch.codes != [0]:
        assert content(checkpoints / OLDER) == older, alteration
        return "refused" if launch.codes == [2] else "failed"
    run, straight = root / "run", killed / "straight"
    is_same = weights_digest(run) == weights_digest(straight) and metrics(run) == metrics(straight)
    assert is_same or alteration.plausible, alteration
    if not is_same:
        return "plausible value, other bits"
    if "set aside as damaged-" in launch.stdout:
        return "damaged, the one before used, same bits"
    return "taken, same bits"


def test_random_alterations(
    nursery: Nursery, killed: Path, tmp_path: Path, request: pytest.FixtureRequest, capsys
) -> None:
    number = request.config.getoption("--alterations")
    outcomes: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    for seed in range(SEED, SEED + number):
        root = tmp_path / str(seed)
        root.mkdir()
        try:
            outcomes[outcome(nursery, killed, root, seed=seed)] += 1
        except AssertionError as error:
            wrong.append(f"seed {seed}: {error}")
        with contextlib.suppress(OSError):
            shutil.rmtree(root)
    with capsys.disabled():
        if number > 100:
            print(f"\n{number} alterations: {dict(outcomes)}, wrong: {len(wrong)}")
    assert not wrong, "\n\n".join(wrong)
    assert outcomes["damaged, the one before used, same bits"] > number / 3
