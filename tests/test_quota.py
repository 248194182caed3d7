"""A container's quota of processor time, read from files as Linux has them."""

import math
from pathlib import Path

import pytest

from sinlstm_dist.processes import launcher, quota

FILES = {
    "no control groups": ({}, "", math.inf),
    "version 2, no limit": ({"cpu.max": "max 100000\n"}, "0::/\n", math.inf),
    "version 2, a container": ({"cpu.max": "250000 100000\n"}, "0::/\n", 2.5),
    "version 2, a group": ({"a/b/cpu.max": "150000 50000\n"}, "0::/a/b\n", 3.0),
    "version 2, a group around it": (
        {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, "0::/a/b\n", 2.0
    ),
    "version 2, not this group": ({"c/cpu.max": "100000 100000\n"}, "0::/a\n", math.inf),
    "version 1": (
        {"cpu/a/cpu.cfs_quota_us": "400000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
        "3:cpuset:/\n2:cpu,cpuacct:/a\n0::/\n", 4.0,
    ),
    "version 1, a container that sees its group as the root": (
        {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        "1:cpu:/docker/0123abcd\n", 0.5,
    ),
    "version 1, no limit": (
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "1:cpu:/\n", math.inf
    ),
    "damaged": ({"cpu.max": "many\n"}, "0::/\n", math.inf),
}  # fmt: skip


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put files where Linux has those of control groups."""

    def put(files: dict[str, str], own: str) -> None:
        for name, text in files.items():
            path = tmp_path / "mounted" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "own").write_text(own)

    monkeypatch.setattr(quota, "MOUNTED", tmp_path / "mounted")
    monkeypatch.setattr(quota, "OWN_GROUPS", tmp_path / "own")
    return put


@pytest.mark.parametrize("name", FILES)
def test_the_quota_is_read(name, container):
    files, own, expected = FILES[name]
    container(files, own)
    assert quota.cpu_quota() == expected


@pytest.mark.parametrize(("microseconds", "cores"), [(250_000, 2), (50_000, 1), (990_000, 9)])
def test_threads_follow_the_quota(microseconds, cores, container, monkeypatch):
    """So that 64 threads do not share the time of two cores."""
    monkeypatch.delenv(launcher.THREADS, raising=False)
    monkeypatch.setattr(launcher.os, "sched_getaffinity", lambda process: range(64))
    container({"cpu.max": f"{microseconds} 100000\n"}, "0::/\n")
    assert launcher.num_cores() == launcher.num_threads() == cores
