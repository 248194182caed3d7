"""The network, for the peers that are written with PyTorch."""

import torch
from torch import nn
from workload import Workload


class Network(nn.Module):
    """A window (B, W, 1) in, the next value (B, 1) out."""

    def __init__(self, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(1, hidden_size, num_layers, batch_first=True)
        self.output_layer = nn.Linear(hidden_size, 1)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Predict the value after each window."""
        hidden, _ = self.rnn(windows)
        return self.output_layer(hidden[:, -1])


def start(workload: Workload) -> Network:
    """The network with the weights that every peer starts from."""
    torch.manual_seed(0)
    return Network(workload.hidden_size, workload.num_layers)
