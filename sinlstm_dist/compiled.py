"""The compiled CPU kernel, or the reason why there is none, and its instruction set.

List the instruction sets of this machine:

    python -c "from sinlstm_dist import lstm; print(lstm.instruction_sets())"
"""

import importlib
import os
from typing import Any

_FORCED = os.environ.get("SINLSTM_DIST_INSTRUCTION_SET", "")
_LABELS = {"avx512": "AVX-512", "avx2": "AVX2", "plain": "plain"}

_kernel: Any
try:
    _kernel = importlib.import_module("sinlstm_dist._kernel")
except ImportError as error:
    _kernel = None
    _missing = f"no compiled kernel: {error}"
else:
    _missing = ""


def check_forced() -> None:
    """Refuse an instruction set that the environment asks for and this machine does not have.

    Raises:
        ValueError: SINLSTM_DIST_INSTRUCTION_SET names such an instruction set.
    """
    if _FORCED and _kernel is not None and _FORCED not in instruction_sets():
        raise ValueError(f"SINLSTM_DIST_INSTRUCTION_SET={_FORCED}: {_absent(_FORCED)}")


def missing() -> str:
    """Why there is no compiled kernel; empty if there is one."""
    return _missing


def kernel() -> Any:
    """The compiled module; csrc/arguments.h lists what its functions take.

    Raises:
        RuntimeError: there is no compiled kernel.
    """
    if _kernel is None:
        raise RuntimeError(
            f"{_missing}: the fused LSTM needs it, so install sinlstm-dist where there is a C "
            'compiler, or use lstm = "torch"'
        )
    return _kernel


def instruction_set() -> str:
    """The instruction set in use: "avx512", "avx2" or "plain"."""
    return kernel().instruction_set()


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that this machine has, best first; the first is the default."""
    return kernel().instruction_sets()


def set_instruction_set(name: str) -> None:
    """Use another instruction set from now on, in the whole process: for tests and measurements.

    Args:
        name: one of `instruction_sets()`.

    Raises:
        ValueError: this machine has no such instruction set.
    """
    if name not in instruction_sets():
        raise ValueError(_absent(name))
    kernel().set_instruction_set(name)


def _absent(name: str) -> str:
    known = ", ".join(instruction_sets())
    return f"instruction set {name!r} is not on this machine: use one of {known}"


def label() -> str:
    """The instruction set in use, as people write it."""
    return _LABELS[instruction_set()]


if _kernel is not None and _FORCED in instruction_sets():
    set_instruction_set(_FORCED)
