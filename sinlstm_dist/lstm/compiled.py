"""The compiled CPU kernel, or the reason for its absence, and its instruction set.

What this machine offers:

    python -c "from sinlstm_dist import lstm; print(lstm.instruction_sets())"
"""

from typing import Any

import torch

_LABELS = {"avx512": "AVX-512", "avx2": "AVX2", "plain": "plain"}

_kernel: Any
try:
    from sinlstm_dist.lstm import _kernel
except ImportError as error:
    _kernel = None
    _missing = f"no compiled kernel: {error}"
else:
    _missing = ""


def missing() -> str:
    """Why there is no compiled kernel; empty if there is one."""
    return _missing


def kernel() -> Any:
    """The compiled module.

    Raises:
        RuntimeError: there is none.
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
    """Those that this machine has, best first; the first is the default."""
    return kernel().instruction_sets()


def set_instruction_set(name: str) -> None:
    """Use another instruction set from now on, in the whole process: for tests and measurements.

    Args:
        name: one of `instruction_sets()`.

    Raises:
        ValueError: this machine has no such instruction set.
    """
    if name not in instruction_sets():
        raise ValueError(
            f"instruction set {name!r} is not on this machine: use one of "
            f"{', '.join(instruction_sets())}"
        )
    kernel().set_instruction_set(name)


def label() -> str:
    """The instruction set in use as a reader knows it."""
    return _LABELS[instruction_set()]


def check_float32(**tensors: torch.Tensor) -> None:
    """Refuse tensors that the kernel cannot read.

    Raises:
        ValueError: a tensor is not float32 or not on the CPU.
    """
    for name, tensor in tensors.items():
        if tensor.dtype is not torch.float32 or tensor.device.type != "cpu":
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}: the compiled kernel needs "
                "torch.float32 on the CPU, so convert it or use torch.nn.LSTM"
            )
