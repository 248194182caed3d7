"""The things that decide the last bits of a result: device, versions, environment variables."""

import platform
from collections.abc import Mapping
from importlib.metadata import version

import torch

from sinlstm_dist.processes import launcher
from sinlstm_dist.processes.world import World

Arithmetic = Mapping[str, str]

UNSET = "not set"
CODE = "code of task.build"  # its digest
BITS, FIXED = "bits", "the same on any CPU"
OWN = "this package's"  # a recurrence whose every operation this package fixes
ORDER = "sample order"


def versions() -> dict[str, str]:
    """Versions of what decides the bits of a result."""
    packages = ("sinlstm-dist", "torch", "numpy", "accelerate")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def arithmetic(world: World, code: Mapping[str, str], *, reduction: str) -> dict[str, str]:
    """What decides the last bits of a result on this process, in words.

    Args:
        code: that computes the task.
        reduction: "ordered", or "ddp", which leaves sums to libraries.
    """
    is_fixed = code.get("recurrence") == OWN and reduction == "ordered"
    return {
        BITS: FIXED if is_fixed else "those of what follows",
        ORDER: "keyed shuffle",  # before it there was numpy's permutation
        "device": world.device.type,
        **code,
        "torch's CPU code": torch.backends.cpu.get_cpu_capability(),
        **versions(),
        **launcher.arithmetic_variables(),
    }


def changes(before: Arithmetic, after: Arithmetic) -> dict[str, str]:
    """The differences between two arithmetics that may change a bit of a result.

    Returns:
        what differs, and how: `torch was 2.12.0 and is 2.13.0`.
    """
    if before.get(BITS) == after.get(BITS) == FIXED:
        return {}
    return {
        key: f"{key} was {before.get(key, UNSET)} and is {after.get(key, UNSET)}"
        for key in {**before, **after}
        if before.get(key, UNSET) != after.get(key, UNSET)
    }
