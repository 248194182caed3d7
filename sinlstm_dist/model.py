"""The predictor: a window of values in, the next value out.

Shapes: B samples, W window (time steps), D features of a time step, H hidden size.
"""

import torch
from torch import nn

from sinlstm_dist import lstm

State = tuple[torch.Tensor, torch.Tensor]  # hidden and cell, each (num_layers, B, H)


class Predictor(nn.Module):
    """An LSTM over the window and a linear layer on its last time step.

    Parameters are named as in the article's program and laid out as in torch.nn.LSTM, so weights
    go from one to the other.

    Args:
        input_size: D.
        hidden_size: H.
        output_size: values predicted.
        num_layers: stacked LSTM layers.
        fused: compute the recurrence with the compiled kernel, where `lstm.choose` says it can,
            in place of torch's.
    """

    def __init__(
        self,
        input_size: int = 1,
        hidden_size: int = 5,
        output_size: int = 1,
        *,
        num_layers: int = 1,
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.fused = fused
        self.rnn = nn.LSTM(input_size, hidden_size, num_layers, batch_first=True)
        self.output_layer = nn.Linear(hidden_size, output_size)

    def forward(self, inputs: torch.Tensor, hidden0: State | None = None) -> torch.Tensor:
        """Predict the value behind each window.

        Args:
            inputs: (B, W, D).
            hidden0: hidden and cell state before the first time step; None for zeros.

        Returns:
            (B, output_size).
        """
        if self.fused:
            weight_ih, weight_hh, bias_ih, bias_hh = self.rnn.all_weights[0]  # of its one layer
            outputs, _ = lstm.lstm(inputs, weight_ih, weight_hh, bias_ih, bias_hh, hidden0)
        else:
            outputs, _ = self.rnn(inputs, hidden0)  # (B, W, H)
        return self.output_layer(outputs[:, -1])  # (B, output_size)


class Persistence(nn.Module):
    """The baseline that every predictor must beat: the next value is the last one again."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, W, D) -> (B, D)"""
        return inputs[:, -1]
