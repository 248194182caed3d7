"""Which implementation computes the recurrence: the only place that decides it.

The default is the kernel of this package, where it can be used: the compiled one on a CPU, and one
with the same bits on a CUDA GPU. Else it is torch.nn.LSTM. The kernel's arithmetic in numpy is used
only if the user asks for "reference".

    python -c "from sinlstm_dist.lstm import choose; print(choose(
    'auto', device_type='cpu', input_size=1, hidden_size=5, num_layers=1))"
"""

from dataclasses import dataclass
from typing import Literal

from sinlstm_dist import compiled

MAX_HIDDEN_SIZE = 64  # above it, matrix libraries are faster than a kernel with samples in lanes
MAX_LAYERS = 16  # of the compiled kernel, see csrc/kernel.h; on a GPU it is one


@dataclass(frozen=True)
class Choice:
    """The implementation that computes the recurrence.

    Args:
        name: "fused" (this package's kernel), "reference" (numpy, with the kernel's bits) or
            "torch" (torch.nn.LSTM).
        reason: why, for people.
    """

    name: Literal["fused", "reference", "torch"]
    reason: str


def choose(
    lstm: str, *, device_type: str, input_size: int, hidden_size: int, num_layers: int
) -> Choice:
    """Choose how the recurrence is computed.

    Args:
        lstm: "auto" (the kernel where it can be used, else torch), "fused", "reference" or
            "torch".
        device_type: torch's name of the device type, such as "cpu"; "cuda" is the current device.
        input_size: D.
        hidden_size: H.
        num_layers: number of stacked layers.

    Returns:
        the choice and its reason.

    Raises:
        ValueError: "fused" or "reference" is asked for and cannot be used, `lstm` is not one of
            the four, or the environment asks for an instruction set that this machine does not
            have.
    """
    if lstm not in ("auto", "fused", "reference", "torch"):
        raise ValueError(f'lstm={lstm!r} is unknown: use "auto", "fused", "reference" or "torch"')
    if lstm == "torch":
        return Choice("torch", "asked for")
    if lstm == "reference":
        return _reference(device_type)
    compiled.check_forced()
    obstacle = _obstacle(device_type, input_size, hidden_size, num_layers)
    if obstacle and lstm == "fused":
        raise ValueError(_refusal(obstacle))
    if obstacle:
        return Choice("torch", obstacle + _exact_bits(device_type, obstacle))
    if device_type == "cuda":
        return Choice("fused", "GPU kernel, with the CPU kernel's bits")
    return Choice("fused", f"compiled kernel, {compiled.label()}")


def _reference(device_type: str) -> Choice:
    if device_type != "cpu":
        raise ValueError(
            f'lstm="reference" cannot be used with device {device_type}: it needs a CPU. Change '
            'that or set lstm="auto"'
        )
    return Choice("reference", "numpy, slow and exact")


def _exact_bits(device_type: str, obstacle: str) -> str:
    """What else has the kernel's bits, if only the kernel is missing."""
    if device_type != "cpu" or obstacle != compiled.missing():
        return ""
    return '; its bits, the same on any CPU, need it or lstm="reference"'


def _obstacle(device_type: str, input_size: int, hidden_size: int, num_layers: int) -> str:
    """Why no fused kernel can compute this; empty if one can."""
    if device_type not in ("cpu", "cuda"):
        return f"device {device_type}"
    if device_type == "cuda" and num_layers != 1:
        return f"{num_layers} layers on a GPU"
    if num_layers > MAX_LAYERS:
        return f"{num_layers} layers > {MAX_LAYERS}"
    if hidden_size > MAX_HIDDEN_SIZE:
        return f"hidden size {hidden_size} > {MAX_HIDDEN_SIZE}"
    if input_size < 1 or hidden_size < 1:
        return f"input size {input_size} and hidden size {hidden_size}"
    if device_type == "cpu":
        return compiled.missing()
    from sinlstm_dist.lstm import cuda  # it imports this module

    return cuda.obstacle(input_size, hidden_size)


def _refusal(obstacle: str) -> str:
    return (
        f'lstm="fused" cannot be used with {obstacle}: it needs a hidden size of at most '
        f"{MAX_HIDDEN_SIZE}, and a CPU with the compiled kernel and at most {MAX_LAYERS} layers "
        "or an NVIDIA GPU with cuda-bindings (pip install cuda-bindings) and one layer. "
        'Change that or set lstm="auto"'
    )
