"""How long a process waits for the others, by a clock of the test's."""

import itertools
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import DistBackendError

from sinlstm_dist.processes import waiting
from sinlstm_dist.processes.waiting import Waiting

TIMEOUT_S = 60.0


def wait(monkeypatch: pytest.MonkeyPatch, gaps: Iterator[float]) -> float:
    """Wait for what is never done until `gaps`, the seconds between two questions whether it is,
    come to their end; returns the time by then."""
    now = [0.0]

    def is_done() -> bool:
        gap = next(gaps, None)
        now[0] += gap or 0.0
        return gap is None

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: None)
    monkeypatch.setattr(waiting, "time", clock)
    Waiting(torch.device("cpu"), timeout_s=TIMEOUT_S, has_lost=lambda: False).until(is_done)
    return now[0]


def test_time_in_which_this_process_was_suspended_is_no_wait(monkeypatch):
    """Ctrl-Z and `fg`, or `scontrol suspend`, stop all processes, which go on one by one."""
    hour = [0.5] * 50 + [3600.0] + [0.5] * 50
    assert wait(monkeypatch, iter(hour)) == 3650.0


@pytest.mark.parametrize("gap", [0.01, 0.9])
def test_time_is_up_for_one_that_waits(monkeypatch, gap):
    with pytest.raises(DistBackendError, match="timed out after 60"):
        wait(monkeypatch, itertools.repeat(gap))
