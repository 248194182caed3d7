"""launch/torchrun, started as its files say: right worlds, one process's weights."""

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import launching
import pytest

from sinlstm_dist import train

SCRIPTS = Path(__file__).parents[1] / "launch/torchrun"
PAGE = Path(__file__).parents[1] / "docs/clusters.md"
BRIEF = {**launching.SMALL, "output.dir": "run", "train.timeout_s": 60}
UNENDING = {
    **BRIEF,
    "data.train_size": 2030,
    "train.epochs": 1_000_000,
    "checkpoint.every_epochs": 50,
}


class Machines:
    """Starts of a script, each as on a machine of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def start(self, script: str, settings: dict[str, object], **variables: str) -> None:
        with (self.folder / f"said-{len(self.started)}").open("w") as said:
            self.started.append(
                subprocess.Popen(
                    [SCRIPTS / script, *launching.flags(settings)],
                    cwd=self.folder,
                    env=launching.environment(PET_LOCAL_ADDR="127.0.0.1", **variables),
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=subprocess.STDOUT,
                )
            )

    def said(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("said-*")))

    def wait_for(self, what: str, *, times: int = 1) -> None:
        self._until(lambda: self.said().count(what) >= times, f"no {what!r}")

    def wait(self) -> list[int]:
        """Until all have ended; their exit codes."""
        self._until(lambda: None not in [launcher.poll() for launcher in self.started], "no end")
        return [launcher.returncode for launcher in self.started]

    def _until(self, what: Callable[[], bool], lacking: str) -> None:
        try:
            launching.wait_for(what)
        except AssertionError:
            raise AssertionError(f"{lacking} in:\n{self.said()}") from None

    def lose(self, number: int) -> None:
        """End a machine without a word."""
        launcher = self.started[number]
        for pid in (launcher.pid, *launching.children(launcher.pid)):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def machines(tmp_path):
    machines = Machines(tmp_path)
    yield machines
    for number, launcher in enumerate(machines.started):
        if launcher.poll() is None:
            machines.lose(number)
        launcher.wait()


@pytest.fixture
def port() -> str:
    return str(launching.free_port())


def check_like_one_process(run: Path, settings: dict[str, object]) -> None:
    alone = run.parent / "alone"
    assert train.main(launching.flags({**settings, "output.dir": alone})) == 0
    launching.check_same(run, alone)


def test_single_node(machines, tmp_path):
    machines.start("single-node.sh", BRIEF, PROCESSES="3")
    assert machines.wait() == [0], machines.said()
    assert launching.summary(tmp_path / "run")["world_size"] == 3
    check_like_one_process(tmp_path / "run", BRIEF)


def test_several_nodes(machines, tmp_path, port):
    for rank in ("1", "0"):
        where = {"NODES": "2", "NODE_RANK": rank, "HEAD": "127.0.0.1", "PORT": port}
        machines.start("several-nodes.sh", BRIEF, **where)
    assert machines.wait() == [0, 0], machines.said()
    assert launching.summary(tmp_path / "run")["world_size"] == 2
    check_like_one_process(tmp_path / "run", BRIEF)


def test_machines_that_come_and_go_do_not_change_the_weights(machines, tmp_path, port):
    """Three machines, of which one is lost; another joins; then one leaves, and all are stopped."""
    where = {"HEAD": "127.0.0.1", "PORT": port, "JOIN_S": "3"}
    for _ in range(3):
        machines.start("elastic.sh", UNENDING, **where)
        launching.wait_for(lambda: launching.listens(int(port)))  # the first one is HEAD
    machines.wait_for("processes   3")
    # Lost before the first checkpoint, the run would begin again, and not continue.
    launching.wait_for(lambda: list(tmp_path.glob("run/checkpoints/step-*")))
    machines.lose(2)
    machines.wait_for("processes   2")
    machines.start("elastic.sh", UNENDING, **where)
    machines.wait_for("processes   3", times=2)
    machines.wait_for("continues in epoch", times=2)
    machines.started[3].terminate()
    machines.wait_for("processes   2", times=2)
    machines.wait_for("continues in epoch", times=3)
    for launcher in machines.started[:2]:
        launcher.terminate()
    machines.wait()

    enough = {**UNENDING, "train.epochs": launching.summary(tmp_path / "run")["epochs"] + 2}
    ended = launching.train(launching.flags(enough), cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    check_like_one_process(tmp_path / "run", enough)


@pytest.mark.parametrize("how", ["script", "torchrun", "accelerate"])
def test_one_machine_needs_no_name(nameless, tmp_path, how):
    """torchrun has processes meet at their machine's name, unless told otherwise."""
    page = PAGE.read_text().replace("\\\n", "")
    two = re.findall(r"^(?:torchrun|accelerate) .* 2 .*", page, flags=re.MULTILINE)
    command = next((line for line in two if line.startswith(how)), f"{SCRIPTS}/single-node.sh")
    words = [*nameless, *shlex.split(command), *launching.flags(BRIEF)]
    ended = launching.run(words, cwd=tmp_path, HF_HOME=str(tmp_path))
    assert ended.code == 0, ended.stderr
    assert launching.summary(tmp_path / "run")["world_size"] == 2
