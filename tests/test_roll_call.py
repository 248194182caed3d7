"""What stands in the store is not trusted: whoever reaches its port can write there."""

import socket
from datetime import timedelta

import launching
import pytest
from nursery import Launch
from torch.distributed import TCPStore

from sinlstm_dist import alive

SETTINGS = {**launching.SMALL, "train.timeout_s": 4, "output.dir": "run"}
PREFIX = "sinlstm_dist/0/0/"
FOREIGN = {
    "bytes": {"plan": b"\xff\x00\xfe"},
    "not-a-plan": {"plan": b"[1, 2]"},
    "deep": {"plan": b"[" * 100_000},
    "long": {"plan": b"x" * 1_000_000},
    "another-size": {"plan": b'{"hosts": ["a"], "processes": ["b"]}'},
    "other-type": {"plan": b'{"hosts": 3}'},
    "number": {"plan": b'{"missing": [1e999]}'},
    "host": {"host/1": b"x" * 1_000_000, "process/1": b"", "present": b"2"},
    "counter": {"present": b"many"},
}


def write(port: int, values: dict[str, bytes]) -> None:
    """As another user of the machine could."""
    launching.wait_for(lambda: listens(port))
    store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=20))
    for key, value in values.items():
        store.set(PREFIX + key, value)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


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


@pytest.mark.parametrize("roll", [b"\xff", b'{"answers": {"7": "x"}}', b'{"answers": {"x": 1}}'])
def test_what_others_write_later_is_no_traceback(nursery, tmp_path, roll):
    fault = {"rank": 1, "of": "step", "at": 5, "do": "kill"}
    launch = nursery.start(launching.flags(SETTINGS), cwd=tmp_path, processes=2, faults=[fault])
    write(launch.port, {"roll": roll})
    nursery.wait(launch)
    assert launch.codes[0] == 1
    assert len(errors(launch)) == 1


def test_noise_on_the_port_does_not_keep_a_world_from_joining(nursery, tmp_path):
    """Another user's program that talks to the port, and one that never says anything."""
    settings = {**SETTINGS, "train.timeout_s": 20}
    launch = nursery.start(launching.flags(settings), cwd=tmp_path, processes=2, absent=(1,))
    launching.wait_for(lambda: listens(launch.port))
    with (
        socket.create_connection(("127.0.0.1", launch.port)),
        socket.create_connection(("127.0.0.1", launch.port)) as noisy,
    ):
        noisy.sendall(b"GET / HTTP/1.0\r\n\r\n" + bytes(range(256)) * 10)
        nursery.wait(launch)
    assert launch.codes == [1]
    assert "error: rank 1 of 2 has not started" in launch.stderr
    assert "Traceback" not in launch.stderr


def test_only_what_has_ended_is_gone():
    me = alive.where_am_i()
    machine, _, _ = me.rpartition(" ")
    assert not alive.is_gone(me)
    assert alive.is_gone(f"{machine} 999999999")
    for other in ("", "x", f"other {machine} 999999999", f"{machine} x", f"{machine} -1"):
        assert not alive.is_gone(other)
