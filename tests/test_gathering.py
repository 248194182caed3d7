"""Memory that the processes of one machine share: what arrives, and when there is none."""

import functools
import gc
import mmap
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import HANGS_S

from sinlstm_dist import compiled
from sinlstm_dist.processes import gathering
from sinlstm_dist.processes.gathering import LARGE, SharedMemory, share_memory

pytestmark = pytest.mark.kernel
NUMBER = 1000


def patiently(is_done: Callable[[], bool]) -> None:
    while not is_done():
        pass


def new_memory(size: int) -> mmap.mmap:
    return mmap.mmap(-1, compiled.kernel().gather_size(num_processes=size, slot_bytes=LARGE))


def in_processes(size: int, work: Callable[[int], None]) -> None:
    """Do work(rank) in forked processes; all must end well."""
    start = multiprocessing.get_context("fork").Process
    processes = [start(target=work, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + HANGS_S
    while any(process.exitcode is None for process in processes):
        if any(process.exitcode for process in processes) or time.monotonic() > deadline:
            for process in processes:  # they would wait for the one that failed
                process.kill()
        time.sleep(0.01)
    assert [process.exitcode for process in processes] == [0] * size


def row(rank: int, number: int) -> torch.Tensor:
    """What a process sends for a gather: of another size each time."""
    count = 1 + number * 7919 % 3000
    return torch.arange(count, dtype=torch.int32)[None] + rank * 100_000 + number


@pytest.mark.parametrize("spins", [True, False])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_what_was_sent_arrives(size: int, spins: bool) -> None:
    """At any pace: nobody reads what is yet to come, or overwrites what is yet to be read."""
    memory = new_memory(size)

    def work(rank: int) -> None:
        pace = np.random.default_rng(rank)
        own = SharedMemory(memory, rank=rank, size=size, spins=spins, wait=patiently)
        for number in range(NUMBER):
            if pace.random() < 0.05:
                time.sleep(pace.random() / 1000)
            expected = torch.cat([row(other, number) for other in range(size)])
            assert torch.equal(own.gather(row(rank, number)), expected)

    in_processes(size, work)


def test_any_layout_type_and_size() -> None:
    memory = new_memory(1)
    own = SharedMemory(memory, rank=0, size=1, spins=True, wait=patiently)
    whole = torch.zeros(LARGE // 8, dtype=torch.float64) - 0.5
    for rows in (whole, torch.arange(12.0).view(3, 4).t(), torch.empty(0, 3), torch.tensor([True])):
        gathered = own.gather(rows)
        assert torch.equal(gathered, rows)
        assert gathered.dtype == rows.dtype


def test_numbers_begin_again_after_the_last() -> None:
    memory, last = new_memory(2), 2**32 - 3
    lines = np.frombuffer(memory, np.uint32).reshape(-1, 16)[:2]
    lines[:, 0] = last

    def work(rank: int) -> None:
        own = SharedMemory(memory, rank=rank, size=2, spins=True, wait=patiently)
        own.number = last
        for number in range(10):
            expected = torch.cat([row(other, number) for other in range(2)])
            assert torch.equal(own.gather(row(rank, number)), expected)

    in_processes(2, work)


def test_one_that_waits_sleeps_until_it_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a wake-up, it would sleep for longer than this test may take."""
    monkeypatch.setattr(gathering, "PATIENCE_NS", int(2 * HANGS_S * 1e9))
    memory, late_s = new_memory(2), 1.0

    def work(rank: int) -> None:
        own = SharedMemory(memory, rank=rank, size=2, spins=True, wait=patiently)
        time.sleep(rank * late_s)
        before = time.process_time()
        own.gather(torch.ones(1))
        assert time.process_time() - before < late_s / 2

    in_processes(2, work)


# Who shares


def share(machines: Sequence[str], *, lacking: int | None = None) -> list[SharedMemory | None]:
    """What each process gets, as threads; the one that is `lacking` cannot map anything."""
    size, meet = len(machines), threading.Barrier(len(machines))
    board: list[Any] = [None] * size
    found: list[Any] = [None] * size

    def gather_json(rank: int, value: Any) -> list[Any]:
        board[rank] = value
        meet.wait(HANGS_S)
        everyones = list(board)
        meet.wait(HANGS_S)
        is_offer = rank == lacking and isinstance(everyones[0], tuple)
        return [("/nowhere", "00")] if is_offer else everyones

    def work(rank: int) -> None:
        gather = functools.partial(gather_json, rank)
        found[rank] = share_memory(machines, rank=rank, gather_json=gather, wait=patiently)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANGS_S)
    return found


def is_mapped() -> bool:
    return "memfd:sinlstm-dist" in Path("/proc/self/maps").read_text()


def test_processes_of_one_machine_share_memory_and_leave_nothing() -> None:
    files = len(os.listdir("/proc/self/fd"))
    found = share(["here"] * 3)
    assert all(found)
    assert is_mapped()
    del found
    gc.collect()
    assert not is_mapped()
    assert len(os.listdir("/proc/self/fd")) <= files


@pytest.mark.parametrize(
    ("machines", "lacking"),
    [(["here", "there", "here"], None), (["", "", ""], None), (["here"] * 3, 1), (["here"] * 3, 2)],
)
def test_all_share_or_none(machines: list[str], lacking: int | None) -> None:
    assert share(machines, lacking=lacking) == [None] * 3
    assert not is_mapped()


def test_memory_of_another_world_is_not_taken() -> None:
    with gathering._offered(2) as (path, token):
        assert gathering._mapped(path, bytes(16), size=2) is None
        assert gathering._mapped(path, bytes.fromhex(token), size=3) is None
        assert gathering._mapped(path, bytes.fromhex(token), size=2) is not None


def test_without_a_compiled_kernel_nobody_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "missing", lambda: "no compiled kernel")
    assert share(["here"] * 2) == [None] * 2
