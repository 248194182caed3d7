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


def wait(
    monkeypatch: pytest.MonkeyPatch, gaps: Iterator[float], *, now: list[float], look_s: float = 0
) -> None:
    """Wait for what is never done until `gaps`, the seconds between two questions whether it is,
    come to their end; a look at the others takes `look_s`. `now` is the clock."""

    def is_done() -> bool:
        gap = next(gaps, None)
        now[0] += gap or 0.0
        return gap is None

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: None)
    monkeypatch.setattr(waiting, "time", clock)

    def has_lost() -> bool:
        now[0] += look_s
        return False

    Waiting(torch.device("cpu"), timeout_s=TIMEOUT_S, has_lost=has_lost).until(is_done)


def test_time_in_which_this_process_was_suspended_is_no_wait(monkeypatch):
    """Ctrl-Z and `fg`, or `scontrol suspend`, stop all processes, which go on one by one."""
    hour = [0.5] * 50 + [3600.0] + [0.5] * 50
    wait(monkeypatch, iter(hour), now=[0.0])


@pytest.mark.parametrize(("gap", "look_s"), [(0.01, 0), (0.9, 0), (0.01, 1.5)])
def test_time_is_up_for_one_that_waits(monkeypatch, gap, look_s):
    """A look at the others, who may be slow to answer, is a part of the wait."""
    now = [0.0]
    with pytest.raises(DistBackendError, match="timed out after 60"):
        wait(monkeypatch, itertools.repeat(gap), now=now, look_s=look_s)
    assert TIMEOUT_S < now[0] < TIMEOUT_S + 3
