"""What stands in the store is not trusted: whoever reaches its port can write there."""

import itertools
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import launching
import pytest
from nursery import Launch
from torch.distributed import Store, TCPStore

from sinlstm_dist.processes import alive, launcher, rendezvous, roll_call
from sinlstm_dist.processes.roll_call import RollCall

SETTINGS = {**launching.SMALL, "train.timeout_s": 4, "output.dir": "run"}
PREFIX = "sinlstm_dist/0/0/"
FOREIGN = {
    "bytes": {"decision": b"\xff\x00\xfe"},
    "not-a-decision": {"decision": b"[1, 2]"},
    "deep": {"decision": b"[" * 100_000},
    "long": {"decision": b"x" * 1_000_000},
    "another-size": {"decision": b'{"hosts": ["a"], "processes": ["b"]}'},
    "other-type": {"decision": b'{"hosts": 3}'},
    "number": {"decision": b'{"missing": [1e999]}'},
    "host": {"host/1": b"x" * 1_000_000, "process/1": b"", "present": b"2"},
    "counter": {"present": b"many"},
}


def write(port: int, values: dict[str, bytes]) -> None:
    """As another user of the machine could."""
    launching.wait_for(lambda: launching.listens(port))
    store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=20))
    for key, value in values.items():
        store.set(PREFIX + key, value)


def errors(launch: Launch) -> list[str]:
    """What the program says; torch has warnings of its own about such a store."""
    assert "Traceback" not in launch.stderr
    return [line for line in launch.stderr.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("foreign", FOREIGN)
def test_what_others_write_is_an_error_that_says_where(nursery, tmp_path, foreign):
    launch = nursery.start(launching.flags(SETTINGS), cwd=tmp_path, processes=2, absent=(1,))
    write(launch.port, FOREIGN[foreign])
    nursery.wait(launch)
    assert launch.codes == [1]
    [error] = errors(launch)
    assert len(error) < 1000
    assert f"127.0.0.1:{launch.port}" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("roll", [b"\xff", b'{"answers": {"x": 1}}', b'{"answers": {"7": "x"}}'])
def test_what_others_write_later_is_no_traceback(nursery, tmp_path, roll):
    fault = {"rank": 1, "of": "step", "at": 5, "do": "kill"}
    settings = {**SETTINGS, "train.timeout_s": 20}
    launch = nursery.start(
        launching.flags(settings), cwd=tmp_path, processes=2, faults=[fault], absent=(1,)
    )
    write(launch.port, {"roll": roll})
    nursery.come(launch)
    nursery.wait(launch)
    assert launch.codes == [1, -signal.SIGKILL]
    [error] = errors(launch)
    is_roll = b"7" in roll  # of a process that there is not, which says nothing of those there are
    assert ("rank 1 on" if is_roll else "holds what no process of this run wrote") in error


def test_noise_on_the_port_does_not_keep_a_world_from_joining(nursery, tmp_path):
    """Another user's program that talks to the port, and one that never says anything."""
    settings = {**SETTINGS, "train.timeout_s": 20}
    launch = nursery.start(launching.flags(settings), cwd=tmp_path, processes=2, absent=(1,))
    launching.wait_for(lambda: launching.listens(launch.port))
    with (
        socket.create_connection(("127.0.0.1", launch.port)),
        socket.create_connection(("127.0.0.1", launch.port)) as noisy,
    ):
        noisy.sendall(b"GET / HTTP/1.0\r\n\r\n" + bytes(range(256)) * 10)
        nursery.come(launch)
        nursery.wait(launch)
    assert launch.codes == [0, 0], launch.stderr
    assert (tmp_path / "run" / "model.safetensors").exists()


class Counted:
    """A store that counts the requests to it."""

    def __init__(self, store: Store) -> None:
        self._store, self.requests = store, []

    def __getattr__(self, name: str) -> Any:
        self.requests.append(name)
        return getattr(self._store, name)


SIZE = 64
OWN_REQUESTS = 12  # of each process, however long it waits
POLLS = 2 * OWN_REQUESTS  # of each before the last process comes


def test_a_large_world_joins_with_few_requests(monkeypatch):
    """A process's own few, and as many more as all may make together while they wait."""
    local = threading.local()  # of the thread in which a process asks
    polled, asked = threading.Semaphore(0), []  # seconds
    port = launching.free_port()
    store = Counted(TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False))

    def open_store(*arguments: Any, **keywords: Any) -> Counted:
        return store  # one connection: torch opens 6 a second

    def sleep(seconds: float) -> None:
        local.count = getattr(local, "count", 0) + 1
        if local.count == POLLS:
            polled.release()
        asked.append(seconds)
        time.sleep(0.001)

    def join(rank: int) -> RollCall:
        return RollCall(launcher.Launch(rank, SIZE, 0, 1), timeout_s=120, stop_reason=str)

    monkeypatch.setattr(rendezvous, "open_store", open_store)
    monkeypatch.setattr(roll_call, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    monkeypatch.setattr(roll_call, "_joins", itertools.repeat(0))  # all join the same world
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    with ThreadPoolExecutor(SIZE) as threads:
        joining = [threads.submit(join, rank) for rank in range(SIZE - 1)]
        for _ in joining:
            assert polled.acquire(timeout=60)
        last = join(SIZE - 1)
        assert {tuple(process.result().hosts) for process in joining} == {tuple(last.hosts)}
    assert last.hosts == [socket.gethostname()] * SIZE
    waited_s = sum(asked) / SIZE  # each, on average
    assert len(store.requests) <= SIZE * OWN_REQUESTS + rendezvous.REQUESTS_PER_S * waited_s


def test_only_what_has_ended_is_gone():
    me = alive.where_am_i()
    machine, _, _ = me.rpartition(" ")
    assert not alive.is_gone(me)
    assert alive.is_gone(f"{machine} 999999999")
    for other in ("", "x", f"other {machine} 999999999", f"{machine} x", f"{machine} -1"):
        assert not alive.is_gone(other)
