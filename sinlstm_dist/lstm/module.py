"""torch.nn.LSTM with the compiled kernel inside.

python -c "import torch; from sinlstm_dist.lstm import FusedLSTM; print(
FusedLSTM(1, 5)(torch.zeros(3, 50, 1))[0].shape)"
"""

import copy

import torch
from torch import Tensor, nn

from sinlstm_dist.lstm.recurrence import State, lstm


class FusedLSTM(nn.LSTM):
    """`nn.LSTM(batch_first=True)` that computes with the kernel what the kernel can compute.

    Everything else is torch's own code, as in nn.LSTM: other dtypes and devices, dropout, and
    whatever looks at torch's operations (`torch.compile`, `torch.export`, tracing, `torch.func`).

    Args:
        input_size: D.
        hidden_size: H, at most `MAX_HIDDEN_SIZE`.
        num_layers: number of stacked layers.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1) -> None:
        super().__init__(input_size, hidden_size, num_layers, batch_first=True)

    def forward(  # type: ignore[override]
        self, inputs: Tensor, hidden0: State | None = None
    ) -> tuple[Tensor, State]:
        """As nn.LSTM's; differentiable once.

        Args:
            inputs: (B, W, D).
            hidden0: hidden and cell state before the first time step, each (num_layers, B, H);
                None for zeros.

        Returns:
            outputs (B, W, H) and the last hidden and cell state, each (num_layers, B, H).
        """
        layers = self.all_weights
        if not self._fits(inputs, hidden0, layers):
            return super().forward(inputs, hidden0)
        self.check_input(inputs, None)
        if hidden0 is not None:
            self.check_forward_args(inputs, hidden0, None)
        hidden, cell, outputs = [], [], inputs
        for n, (weight_ih, weight_hh, bias_ih, bias_hh) in enumerate(layers):
            state0 = None if hidden0 is None else (hidden0[0][n : n + 1], hidden0[1][n : n + 1])
            outputs, state = lstm(outputs, weight_ih, weight_hh, bias_ih, bias_hh, state0)
            hidden.append(state[0])
            cell.append(state[1])
        return outputs, (_stacked(hidden), _stacked(cell))

    def _fits(
        self, inputs: Tensor, hidden0: State | None, layers: list[list[nn.Parameter]]
    ) -> bool:
        """Whether the kernel computes what nn.LSTM would."""
        if _is_watched() or inputs.dim() != 3 or (self.training and self.dropout):
            return False
        if hidden0 is not None and (isinstance(hidden0, Tensor) or len(hidden0) != 2):
            return False
        return all(
            type(tensor) in (Tensor, nn.Parameter)
            and tensor.is_cpu
            and tensor.dtype is torch.float32
            and tensor.layout is torch.strided
            and not tensor.is_neg()
            for tensor in (inputs, *(hidden0 or ()), *(w for weights in layers for w in weights))
        )

    def __prepare_scriptable__(self) -> nn.LSTM:
        """What `torch.jit.script` takes in its place: nn.LSTM with the same parameters."""
        plain = copy.copy(self)
        plain.__class__ = nn.LSTM  # type: ignore[assignment]
        return plain


def _stacked(states: list[Tensor]) -> Tensor:
    return states[0] if len(states) == 1 else torch.cat(states)


def _is_watched() -> bool:
    """Whether somebody looks at torch's single operations, of which the kernel shows none."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
    )
