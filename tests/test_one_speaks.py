"""One process tells the user what is wrong, and another one's exit does not end it before that.

Both launchers end all processes as soon as one has failed; here the one that is to speak comes
last.
"""

import os
import sys
from pathlib import Path

import launching
import pytest

from sinlstm_dist import command
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.processes import launcher

LATE = str(Path(__file__).with_name("late"))
RUN = ("train", "--output.dir", "run", "--train.timeout_s", "20")
WRONG = {
    "misspelt": (("train", "--train.epohcs", "3"), {}, "did you mean train.epochs?"),
    "fault": (("verify", "--inject", "x"), {}, "the known faults are"),
    "no-run": (("evaluate", "nowhere"), {}, "nowhere is not a run folder"),
    "export": (("export", "run", "--outptu", "x"), {}, "--output"),
    "world": (RUN, {"SINLSTM_DIST_WORLD_SIZE": "4"}, "SINLSTM_DIST_WORLD_SIZE=4"),
    "pieces": ((*RUN, "--train.virtual_shards", "1"), {}, "train.virtual_shards=1"),
    "folder": (("train", "--output.dir", "/proc/run"), {}, "/proc/run"),
}


def start(
    launcher: list[str], arguments: tuple[str, ...], *, cwd: Path, **variables: str
) -> launching.Ended:
    """A command on two processes of which rank 0 comes late."""
    command, *rest = arguments
    path = os.pathsep.join(filter(None, [LATE, os.environ.get("PYTHONPATH")]))
    words = [*launcher, "-m", f"sinlstm_dist.{command}", *rest]
    return launching.run(words, cwd=cwd, PYTHONPATH=path, **variables)


def with_mpirun(arguments: tuple[str, ...], *, cwd: Path, **variables: str) -> launching.Ended:
    options = ["--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable]
    return start(["mpirun", *options], arguments, cwd=cwd, **variables)


def with_torchrun(arguments: tuple[str, ...], *, cwd: Path, **variables: str) -> launching.Ended:
    options = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    return start(["torchrun", *options], arguments, cwd=cwd, **variables)


def check_told_once(ended: launching.Ended, what: str) -> None:
    assert ended.code != 0
    told = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1, ended.stderr
    assert what in told[0]


@pytest.mark.parametrize("wrong", WRONG)
def test_under_mpirun(mpirun, tmp_path, wrong):
    arguments, variables, what = WRONG[wrong]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launching.free_port())}
    check_told_once(with_mpirun(arguments, cwd=tmp_path, **where, **variables), what)


@pytest.mark.parametrize("wrong", ["misspelt", "pieces"])  # before and after the processes meet
def test_under_torchrun(tmp_path, wrong):
    arguments, variables, what = WRONG[wrong]
    check_told_once(with_torchrun(arguments, cwd=tmp_path, **variables), what)


def test_mpirun_without_an_address(mpirun, tmp_path):
    check_told_once(with_mpirun(RUN, cwd=tmp_path), "MASTER_ADDR is not set")
    ended = with_mpirun(("verify",), cwd=tmp_path)
    assert ended.stdout.count("MASTER_ADDR is not set") == 1


def test_what_is_wrong_on_another_node_alone_is_told_there(tmp_path):
    """Two launchers as on two machines, and a file that only the first machine has."""
    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()
    (tmp_path / "0/run.toml").touch()
    where = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port"]
    where += [str(launching.free_port()), "--nproc-per-node", "1", "--local-addr", "127.0.0.1"]
    program = ["-m", "sinlstm_dist.train", "--config", "run.toml", "--train.timeout_s", "5"]
    started = [
        launching.spawn(["torchrun", "--node-rank", node, *where, *program], cwd=tmp_path / node)
        for node in ("0", "1")
    ]
    _, other = (launching.finish(process) for process in started)
    check_told_once(other, "run.toml")


def test_a_silent_process_that_nobody_ends_tells_its_own_error(monkeypatch, capsys):
    """The mistake may be on its rank alone."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(launcher, "_have_met", False)  # an earlier test here may have met others
    monkeypatch.setattr(command.time, "sleep", lambda seconds: None)
    command.tell(ConfigError("what is wrong"))
    assert capsys.readouterr().err == "error: rank 1: what is wrong\n"
