"""Each operation on a run's files fails once: said or survived, and nothing is lost.

A sample runs every time; every operation with every error, and a count of the outcomes, is

    python -m pytest tests/test_file_errors.py --full-kill-matrix
"""

import collections
import errno
import os
import shutil
import signal
from pathlib import Path

import pytest
from launching import metrics, weights_digest
from nursery import Nursery
from test_kill_matrix import Undisturbed, check_ends_as, file_fault, start

from sinlstm_dist.run import checkpoint

ERRORS = ("EIO", "ENOSPC", "ESTALE", "EACCES")
SAMPLE = 11  # operations of each kind of start
LATER = ("begins", "resumes", "is complete")


@pytest.fixture
def undisturbed(straight: Path) -> Undisturbed:
    return Undisturbed(weights_digest(straight), metrics(straight), [])


@pytest.fixture(scope="module")
def before(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where a start begins, resumes, or finds that its run is complete."""
    roots = {name: tmp_path_factory.mktemp(name.replace(" ", "-")) for name in LATER}
    faults = [{"rank": 0, "of": "save", "at": 3, "do": "kill"}]
    launch = nursery.wait(start(nursery, roots["resumes"], faults=faults))
    assert launch.codes == [-signal.SIGKILL]
    assert nursery.wait(start(nursery, roots["is complete"])).codes == [0]
    return roots


def is_asked(operation: str) -> bool:
    """Whether it is a look for a STOP file, of which there is one before every step."""
    return operation.endswith("/STOP")


@pytest.mark.parametrize("when", LATER)
def test_each_operation_fails_once(
    undisturbed: Undisturbed,
    before: dict[str, Path],
    nursery: Nursery,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys,
    *,
    when: str,
) -> None:
    is_full = bool(request.config.getoption("--full-kill-matrix"))

    def run(name: str, *, at: int, do: str):
        root = tmp_path / name
        shutil.copytree(before[when], root)
        fault = {**file_fault(root, at=at, do=do), "reads": True}
        return root, nursery.wait(start(nursery, root, faults=[fault]))

    operations = run("undisturbed", at=0, do="count")[1].events()
    assert len(operations) > 20
    asked = [at for at, what in enumerate(operations, 1) if is_asked(what)]
    instants = [at for at in range(1, len(operations) + 1) if at not in asked[2:]]
    if not is_full:
        instants = instants[3 :: max(1, len(instants) // SAMPLE)]
    outcomes: collections.Counter[str] = collections.Counter()
    for number, at in enumerate(instants):
        for error in ERRORS if is_full else ERRORS[number % 4 :][:1]:
            what = f"{error} at {at}: {operations[at - 1]}"
            root, launch = run(f"{at}-{error}", at=at, do=f"error {error}")
            try:
                outcomes[_told(launch, getattr(errno, error))] += 1
                _check_nothing_lost(root)
                check_ends_as(undisturbed, nursery, root, processes=1)
            except AssertionError as problem:
                raise AssertionError(what) from problem
            shutil.rmtree(root)
    with capsys.disabled():
        if is_full:
            print(f"\n{when}: {len(instants)} operations x {len(ERRORS)}: {dict(outcomes)}")


def _told(launch, number: int) -> str:
    """What came of a start in which an operation failed."""
    [code] = launch.codes
    assert code in (0, 1, 2), (code, launch.stderr)
    assert "Traceback" not in launch.stderr, launch.stderr
    assert launch.stderr.count("error: ") == (code != 0), launch.stderr
    if code == 0:
        return "went on"
    assert os.strerror(number) in launch.stderr, launch.stderr
    assert "run" in launch.stderr.split(os.strerror(number))[0], launch.stderr
    assert "None" not in launch.stderr, launch.stderr
    return f"named, exit {code}"


def _check_nothing_lost(root: Path) -> None:
    """What was published is whole and in its place, and nothing was written elsewhere."""
    assert [path.name for path in root.iterdir()] in (["run"], [])
    for folder in checkpoint.find(root / "run" / "checkpoints"):
        checkpoint.read(folder)
    assert not list(root.glob("run/checkpoints/damaged-*"))
