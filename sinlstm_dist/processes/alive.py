"""Whether another process of this machine has ended, looked up without asking it."""

import os
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def where_am_i() -> str:
    """An id by which other processes of this machine can find this one; "" without /proc."""
    try:
        return f"{BOOT_ID.read_text().strip()} {os.readlink('/proc/self/ns/pid')} {os.getpid()}"
    except OSError:  # not Linux
        return ""


def machine_of(process: str) -> str:
    """What processes that can find each other have in common, of their ids; "" if unknown."""
    return process.rpartition(" ")[0]


def is_gone(other: str) -> bool:
    """Whether the process with this id has ended.

    A process of another machine or container never counts as ended. Neither does one whose number
    now belongs to another process.
    """
    mine, number = machine_of(where_am_i()), other.rpartition(" ")[2]
    if not mine or machine_of(other) != mine or not number.isdigit():
        return False
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return not Path(f"/proc/{number}").exists()
    return state in ("Z", "X")  # it has ended, and its parent has not collected its exit code
