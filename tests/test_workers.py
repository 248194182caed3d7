"""A loader's workers: the same samples for any number of them, and no trouble when a run ends."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from launching import (
    HANGS_S,
    children,
    finish,
    free_port,
    is_alive,
    run,
    spawn,
    torchrun,
    wait_for,
)

from sinlstm_dist.data import workers
from sinlstm_dist.data.steps import deal_out
from sinlstm_dist.plan import Plan, in_order
from sinlstm_dist.run.hold import Hold

SCRIPT = str(Path(__file__).with_name("with_workers.py"))
FOREVER = "1000000"
MEANT_FOR_A_RUN = {signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch starts workers")


@pytest.fixture
def begin(tmp_path):
    """Starts a loop with two workers on each process, each in a session of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(*, processes: int = 1) -> list[subprocess.Popen[str]]:
        world = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        words = [sys.executable, SCRIPT, "2", FOREVER]
        for rank in map(str, range(processes)):
            started.append(spawn(words, cwd=tmp_path, RANK=rank, LOCAL_RANK=rank, **world))
        for process in started:
            assert process.stdout.readline().startswith("begun")
        return started

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def mask_of(pid: int, name: str) -> set[int]:
    """The signals in a mask of a process, such as those that it ignores."""
    text = Path(f"/proc/{pid}/status").read_text()
    mask = int(re.search(rf"^{name}:\s*(\w+)", text, re.MULTILINE)[1], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def test_any_number_of_workers_and_processes_gives_the_same_samples(tmp_path):
    found = set()
    for processes, num_workers in ((1, "0"), (2, "0"), (2, "1"), (3, "3")):
        ended = run([*torchrun(processes), SCRIPT, num_workers, "2"], cwd=tmp_path)
        assert ended.code == 0, ended.stderr
        lines = [line for line in ended.stdout.splitlines() if line.startswith("ended")]
        assert len(lines) == processes
        found |= set(lines)
    assert len(found) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_process_group_leaves_the_workers_to_the_run(begin, number):
    started = begin(processes=2)
    workers = [worker for process in started for worker in children(process.pid)]
    assert len(workers) == 4
    for worker in workers:
        assert mask_of(worker, "SigIgn") >= MEANT_FOR_A_RUN
        assert signal.SIGTERM in mask_of(worker, "SigBlk")  # read by a thread
    os.killpg(started[0].pid, number)
    for ended in map(finish, started):
        assert (ended.code, ended.stdout.split()[0], ended.stderr) == (0, "stopped", "")
    assert not any(map(is_alive, workers))


def test_workers_of_a_killed_run_end_at_once_and_free_its_folder(begin, tmp_path):
    [process] = begin()
    workers = children(process.pid)
    assert len(workers) == 2
    process.kill()
    process.wait()
    Hold(tmp_path / "held").take()  # raises if it is in use
    wait_for(lambda: not any(map(is_alive, workers)))
    finish(process)


def test_a_child_that_outlives_its_run_does_not_hold_the_folder(tmp_path):
    hold = Hold(tmp_path / "held")
    hold.take()
    reader, writer = os.pipe()
    told, teller = os.pipe()
    if not (child := os.fork()):
        os.write(teller, b"x")
        os.read(reader, 1)
        os._exit(0)
    os.read(told, 1)
    hold.release(keep=True)
    try:
        Hold(tmp_path / "held").take()
    finally:
        os.write(writer, b"x")
        os.waitpid(child, 0)


def test_a_worker_that_dies_ends_all_processes_with_an_error_that_names_it(begin):
    one, other = begin(processes=2)
    worker = children(one.pid)[0]
    os.kill(worker, signal.SIGKILL)
    for ended in map(finish, (one, other)):
        assert ended.code == 1
        assert f"{worker}" in ended.stderr


def test_a_worker_keeps_no_connection_of_its_run(begin):
    """The other processes would not notice for 20 s that a run that fails has left."""
    for process in begin(processes=2):
        assert connections(process.pid)  # negative control
        assert not any(map(connections, children(process.pid)))


def connections(pid: int) -> set[str]:
    """The network sockets that a process has open, as /proc names them."""
    tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    inodes = {line.split()[9] for table in tables for line in table.splitlines()[1:]}
    opened = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile: the process goes on
            opened.add(os.readlink(path))
    return opened & {f"socket:[{inode}]" for inode in inodes}


def test_a_broken_connection_waits_for_the_error_that_names_the_worker(monkeypatch):
    class Broken:
        def __iter__(self):
            yield 1
            raise ConnectionResetError

    def on_alarm(*_: object) -> None:  # as torch's handler of SIGCHLD
        raise RuntimeError("worker 7")

    monkeypatch.setattr(workers, "WORKER_END_S", 0.5)
    dealt_out = deal_out(range(40), Plan(40, 20, 1), order=in_order, seed=0)
    split = replace(dealt_out, loader=Broken())
    with pytest.raises(ConnectionResetError):  # no worker has died
        list(split.batches())
    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(RuntimeError, match="worker 7"):
            list(split.batches())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_an_error_in_a_sample_ends_the_run(tmp_path, num_workers):
    words = [sys.executable, SCRIPT, num_workers, FOREVER]
    ended = finish(spawn(words, cwd=tmp_path, FAILS="1"), timeout=HANGS_S)
    assert ended.code == 1
    assert "no such picture" in ended.stderr
