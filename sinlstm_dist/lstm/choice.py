"""The one place where the implementation of the recurrence is chosen.

python -c "from sinlstm_dist.lstm import choose
print(choose('auto', device_type='cpu', input_size=1, hidden_size=5, num_layers=1))"
"""

import importlib.util
from dataclasses import dataclass
from typing import Literal

from sinlstm_dist.lstm import compiled

MAX_HIDDEN_SIZE = 64  # beyond it, matrix libraries do better than a kernel with samples in lanes


@dataclass(frozen=True)
class Choice:
    """Which implementation computes the recurrence.

    Args:
        name: "fused" (compiled kernel, on a GPU Triton's) or "torch" (torch.nn.LSTM's own).
        reason: why, for people.
    """

    name: Literal["fused", "torch"]
    reason: str


def choose(
    lstm: str, *, device_type: str, input_size: int, hidden_size: int, num_layers: int
) -> Choice:
    """Choose how the recurrence is computed.

    Args:
        lstm: "auto" (fused where possible and known to be faster), "fused" or "torch".
        device_type: torch's name of the device type, such as "cpu".
        input_size: D.
        hidden_size: H.
        num_layers: stacked layers.

    Returns:
        The choice and its reason.

    Raises:
        ValueError: "fused" is asked for and cannot be had, `lstm` is not one of the three, or
            the environment forces an instruction set that is not there.
    """
    if lstm not in ("auto", "fused", "torch"):
        raise ValueError(f'lstm={lstm!r} is unknown: use "auto", "fused" or "torch"')
    if lstm == "torch":
        return Choice("torch", "asked for")
    if device_type == "cuda" and lstm == "auto":
        return Choice("torch", "device cuda, where the Triton kernel has not been measured")
    compiled.check_forced()
    obstacle = _obstacle(device_type, input_size, hidden_size, num_layers)
    if not obstacle:
        if device_type == "cuda":
            return Choice("fused", "Triton kernel, not measured on any GPU")
        return Choice("fused", f"compiled kernel, {compiled.label()}")
    if lstm == "fused":
        raise ValueError(
            f'lstm="fused" cannot be had with {obstacle}: it needs a CPU and the compiled kernel, '
            "or a CUDA device and Triton (pip install 'sinlstm-dist[triton]'; not measured on any "
            f"GPU); and one layer and a hidden size of at most {MAX_HIDDEN_SIZE}. So change that "
            'or set lstm="auto"'
        )
    return Choice("torch", obstacle)


def _obstacle(device_type: str, input_size: int, hidden_size: int, num_layers: int) -> str:
    if device_type not in ("cpu", "cuda"):
        return f"device {device_type}"
    if num_layers != 1:
        return f"{num_layers} layers"
    if hidden_size > MAX_HIDDEN_SIZE:
        return f"hidden size {hidden_size} > {MAX_HIDDEN_SIZE}"
    if input_size < 1 or hidden_size < 1:
        return f"input size {input_size} and hidden size {hidden_size}"
    return compiled.missing() if device_type == "cpu" else _missing_triton()


def _missing_triton() -> str:
    return "" if importlib.util.find_spec("triton") else "no Triton"
