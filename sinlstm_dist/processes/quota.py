"""How much of a machine's processors a container may use."""

import contextlib
import math
from pathlib import Path

OWN_GROUPS = Path("/proc/self/cgroup")
MOUNTED = Path("/sys/fs/cgroup")
VERSION_1 = ("cpu.cfs_quota_us", "cpu.cfs_period_us")


def cpu_quota() -> float:
    """Cores' worth of time that Linux gives this process's control group; infinite without a limit.

    A limit of any group around it holds too. A container may see its own group as the root, so the
    root is looked at as well.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max), and for version 1
    https://docs.kernel.org/scheduler/sched-bwc.html (cpu.cfs_quota_us).
    """
    quotas = [math.inf]
    for line in _text(OWN_GROUPS).splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers == "":
            for group in _from_root(MOUNTED, own):
                quotas.append(_cores(_text(group / "cpu.max")))
        elif "cpu" in controllers.split(","):
            for group in _from_root(MOUNTED / "cpu", own):
                quotas.append(_cores(" ".join(_text(group / name) for name in VERSION_1)))
    return min(quotas)


def _from_root(mounted: Path, own: str) -> list[Path]:
    """The folders of a group, of those around it, and of the root."""
    group = mounted / own.lstrip("/")
    return [path for path in (group, *group.parents) if path.is_relative_to(mounted)]


def _text(path: Path) -> str:
    """A file's text; "" if it is not there."""
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


def _cores(told: str) -> float:
    """What "QUOTA PERIOD", in microseconds, makes; infinite for `max`, -1 or nothing."""
    words = told.split()
    if len(words) != 2 or not all(word.isdigit() and int(word) > 0 for word in words):
        return math.inf
    quota, period = map(int, words)
    return quota / period
