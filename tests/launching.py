"""Real processes for tests: training started as a user starts it, on one process or many."""

import contextlib
import hashlib
import inspect
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

HANGS_S = 300.0  # after which a test gives up; how long a thing takes decides no test
# Variables that a launcher around the tests may have set
FOREIGN = ("ACCELERATE_", "SLURM_", "SINLSTM_DIST_WORLD_SIZE")
FUSED = pytest.param("fused", marks=pytest.mark.kernel)  # a parameter of tests: a recurrence
TIMINGS = ("epoch_s", "samples_per_s")
SMALL = {
    "data.train_size": 230,
    "data.test_size": 101,
    "data.window": 12,
    "data.noise": 0.02,
    "train.global_batch_size": 100,
    "train.epochs": 3,
    "checkpoint.every_epochs": 1,
}  # three steps per epoch, the last of them partial; with noise
SETTINGS = {**SMALL, "optim.momentum": 0.9, "train.timeout_s": 20, "output.dir": "run"}


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on, and that no other pytest worker gives away.

    Below 32768: from there on the kernel gives ports to whoever connects to something.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for number in _numbers:
        port = 12_000 + 2000 * (worker % 10) + number % 2000
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


_numbers = itertools.count(os.getpid())


def flags(settings: dict[str, object]) -> list[str]:
    """{"train.epochs": 3} -> ["--train.epochs", "3"]"""
    return [part for key, value in settings.items() for part in (f"--{key}", str(value))]


def command(*arguments: str, processes: int = 1, module: str = "sinlstm_dist.train") -> list[str]:
    """The command line that starts `module` on this many processes."""
    if processes == 1:
        return [sys.executable, "-m", module, *arguments]
    return [*torchrun(processes), "-m", module, *arguments]


def torchrun(processes: int) -> list[str]:
    """The command line that starts what follows on this many processes."""
    address = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    return [sys.executable, *launcher, *address]


def environment(**variables: str) -> dict[str, str]:
    """This environment without what a launcher or a user may have left in it."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
    for name in (
        "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT",
        "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR",
    ):  # fmt: skip
        inherited.pop(name, None)
    inherited["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # has torchrun
    return {**inherited, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", **variables}


def start(
    arguments: list[str],
    *,
    cwd: Path,
    processes: int = 1,
    module: str = "sinlstm_dist.train",
    **variables: str,
) -> subprocess.Popen[str]:
    """Start training in the background."""
    return spawn(command(*arguments, processes=processes, module=module), cwd=cwd, **variables)


def spawn(
    words: list[str], *, cwd: Path, stdout: int = subprocess.PIPE, **variables: str
) -> subprocess.Popen[str]:
    """Start any command in the background, in a process group of its own."""
    return subprocess.Popen(
        words,
        cwd=cwd,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(words: list[str], *, cwd: Path, **variables: str) -> Ended:
    """Run any command to its end."""
    return finish(spawn(words, cwd=cwd, **variables))


def finish(process: subprocess.Popen[str], *, timeout: float = HANGS_S) -> Ended:
    """Wait for a started command; one that does not end is killed with all that it started."""
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        raise AssertionError(f"still running after {timeout} s:\n{stdout}\n{stderr}") from None
    return Ended(process.returncode, stdout, stderr)


def train(arguments: list[str], *, cwd: Path, processes: int = 1, **variables: str) -> Ended:
    """Run training to its end."""
    return finish(start(arguments, cwd=cwd, processes=processes, **variables))


def each(
    arguments: list[str],
    *,
    cwd: Path,
    variables: list[dict[str, str]],
    module: str = "sinlstm_dist.train",
) -> list[Ended]:
    """Run a world whose processes have variables of their own, from before they import torch."""
    world = {
        "WORLD_SIZE": str(len(variables)),
        "LOCAL_WORLD_SIZE": str(len(variables)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    started = [
        start(
            arguments, cwd=cwd, module=module, RANK=str(rank), LOCAL_RANK=str(rank), **world, **own
        )
        for rank, own in enumerate(variables)
    ]
    return [finish(process) for process in started]


def weights_digest(run: Path) -> str:
    """SHA-256 of the final weights."""
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def metrics(run: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what differs from run to run: the timings."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in TIMINGS} for record in records]


def summary(run: Path) -> dict[str, object]:
    """summary.json"""
    return json.loads((run / "summary.json").read_text())


def check_same(run: Path, other: Path) -> None:
    """That two runs have the same weights and metrics."""
    assert weights_digest(run) == weights_digest(other)
    assert metrics(run) == metrics(other)


def has_begun(run: Path) -> bool:
    """Whether a run has finished its first epoch."""
    return (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size > 0


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, links and folders too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        if path.is_file() and not path.is_symlink()
        else b""
        for path in folder.rglob("*")
    }


def listens(port: int) -> bool:
    """Whether somebody on 127.0.0.1 waits for connections to a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(what: Callable[[], object], *, timeout: float = HANGS_S) -> None:
    """Wait until `what` returns something true."""
    deadline = time.monotonic() + timeout
    while not what():
        if time.monotonic() > deadline:
            raise AssertionError(f"still false after {timeout} s: {inspect.getsource(what)}")
        time.sleep(0.01)


def state_of(pid: int) -> str:
    """A process's state: "T" once it is stopped, for SIGCONT before that would be lost."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def children(pid: int) -> list[int]:
    """The processes that process `pid` started, in order of their start."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def is_alive(pid: int) -> bool:
    """Whether a process runs or is stopped, and has not ended."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
