"""The same through Accelerate, on any number of processes.

    python examples/2_accelerate.py --epochs 3
    torchrun --nproc-per-node 2 --local-addr 127.0.0.1 examples/2_accelerate.py --epochs 3
    accelerate launch --multi_gpu --num_processes 2 examples/2_accelerate.py --epochs 3

Accelerate gives each process its own batches, averages their gradients, and gathers their
predictions. A DataLoader takes the place of mkRandomBatch: each window comes once per epoch. What
stays open is marked with "Open": two processes train another model than one. The last line of the
output is a hash of the weights.
"""

import argparse
import hashlib

import numpy as np
import torch
import torch.distributed.nn  # before the processes join, or it keeps their group alive
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def mkDataSet(
    data_size: int, data_length: int = 50, freq: float = 60.0, noise: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make windows (data_size, data_length, 1) and the value that follows each (data_size, 1)."""
    steps = np.arange(data_size)[:, None] + np.arange(data_length + 1)
    values = np.sin(2 * np.pi * steps / freq)
    x = values[:, :-1] + np.random.normal(0.0, noise, (data_size, data_length))
    return torch.tensor(x[:, :, None]).float(), torch.tensor(values[:, -1:]).float()


class Predictor(nn.Module):
    """An LSTM over the window, and a linear layer on its last output."""

    def __init__(self, inputDim: int, hiddenDim: int, outputDim: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(inputDim, hiddenDim, batch_first=True)
        self.output_layer = nn.Linear(hiddenDim, outputDim)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Predict the value that follows each window."""
        output, _ = self.rnn(inputs)
        return self.output_layer(output[:, -1])


def correct(output: torch.Tensor, label: torch.Tensor) -> int:
    """Count the predictions that are less than 0.1 from the true value."""
    return ((output - label).abs() < 0.1).sum().item()


def digest(model: nn.Module) -> str:
    """Hash the bits of all weights: the first 16 digits of their SHA-256."""
    weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    return hashlib.sha256(weights).hexdigest()[:16]


def main() -> None:
    """Train, and print loss and accuracies after each epoch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=100)
    epochs_num = parser.parse_args().epochs
    training_size, test_size, hidden_size, batch_size = 10000, 1000, 5, 100
    np.random.seed(0)
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)  # Without GPUs, processes join only if told so.

    train_set = TensorDataset(*mkDataSet(training_size))
    test_set = TensorDataset(*mkDataSet(test_size))
    model = Predictor(1, hidden_size, 1)
    criterion = nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    # Open: this is the batch of each process. Two processes make half as many steps of 200 windows.
    train_loader = DataLoader(train_set, batch_size, shuffle=True)
    test_loader = DataLoader(test_set, batch_size)
    model, optimizer, train_loader, test_loader = accelerator.prepare(
        model, optimizer, train_loader, test_loader
    )

    for epoch in range(1, epochs_num + 1):
        running_loss, training_accuracy, test_accuracy = 0.0, 0, 0
        # Open: three processes train 2 of the 100 batches twice, to have 34 each.
        for data, label in train_loader:
            optimizer.zero_grad()
            output = model(data)
            loss = criterion(output, label)
            accelerator.backward(loss)  # Open: the order of the sum.
            optimizer.step()
            output, label = accelerator.gather_for_metrics((output.detach(), label))
            # Open: the sum of means is half as large for half as many steps.
            running_loss += criterion(output, label).item()
            training_accuracy += correct(output, label)
        for data, label in test_loader:
            with torch.no_grad():
                output, label = accelerator.gather_for_metrics((model(data), label))
            test_accuracy += correct(output, label)
        accelerator.print(
            f"{epoch} loss: {running_loss:.3f}, "
            f"training_accuracy: {training_accuracy / training_size:.5f}, "
            f"test_accuracy: {test_accuracy / test_size:.5f}"
        )
    accelerator.print(f"weights {digest(model)}")
    # Drop DDP's references, so that the group's threads end here. Later they may abort the process.
    model, optimizer = accelerator.free_memory(model, optimizer)
    accelerator.end_training()


if __name__ == "__main__":
    main()
