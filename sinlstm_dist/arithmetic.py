"""The things that decide the last bits of a result: device, versions, environment variables."""

import functools
import platform
from collections.abc import Mapping
from importlib.metadata import version

import torch

import sinlstm_dist
from sinlstm_dist.processes import launcher
from sinlstm_dist.processes.world import World

Arithmetic = Mapping[str, str]

UNSET = "not set"
CODE = "code of task.build"  # its digest
BITS = "bits"
# On any NVIDIA GPU too; files of earlier runs have this text. Another one if golden.py gets other
# digests.
FIXED = "the same on any CPU"
RECURRENCE = "recurrence"
OWN = "this package's"  # a recurrence whose every operation this package fixes
ORDER = "sample order"


@functools.cache
def versions() -> Mapping[str, str]:
    """Versions of what decides the bits of a result. To read them takes 4 ms."""
    return {
        "python": platform.python_version(),
        "sinlstm-dist": sinlstm_dist.__version__,  # a checkout has no metadata
        **{name: version(name) for name in ("torch", "numpy", "accelerate")},
    }


def arithmetic(world: World, code: Mapping[str, str], *, reduction: str) -> dict[str, str]:
    """What decides the last bits of a result on this process, in words.

    Args:
        code: that computes the task.
        reduction: "ordered", or "ddp", which leaves sums to libraries.
    """
    is_fixed = code.get(RECURRENCE) == OWN and reduction == "ordered"
    return {
        BITS: FIXED if is_fixed else "those of what follows",
        ORDER: "keyed shuffle",  # before it there was numpy's permutation
        "device": world.device.type,
        **code,
        "torch's CPU code": torch.backends.cpu.get_cpu_capability(),
        **versions(),
        **launcher.arithmetic_variables(),
    }


def unlike(one: Arithmetic, other: Arithmetic) -> list[str]:
    """The keys in which two arithmetics differ."""
    return [key for key in {**one, **other} if one.get(key, UNSET) != other.get(key, UNSET)]


def changes(before: Arithmetic, after: Arithmetic) -> dict[str, str]:
    """The differences between two arithmetics that may change a bit of a result.

    Returns:
        what differs, and how: `torch was 2.12.0 and is 2.13.0`.
    """
    keys = unlike(before, after)
    if before.get(BITS) == after.get(BITS) == FIXED:
        keys = [key for key in keys if key == ORDER]
    return {
        key: f"{key} was {before.get(key, UNSET)} and is {after.get(key, UNSET)}" for key in keys
    }
