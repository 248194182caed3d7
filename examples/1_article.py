"""The program of the article that this package began with, in today's torch: one process.

A small LSTM sees 50 values of a sine and predicts the next one. The article:
https://hilinker.hatenablog.com/entry/2018/06/23/204910

    python examples/1_article.py --epochs 100

The names and sizes are the article's, and so are three things that look odd; their comments begin
with "Odd". The article trains for 1000 epochs.
"""

import argparse

import numpy as np
import torch
from torch import nn


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


def mkRandomBatch(
    train_x: torch.Tensor, train_t: torch.Tensor, batch_size: int = 10
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw windows at random; a window may come twice in an epoch, and another not at all."""
    # Odd: randint never returns its upper bound, so the last window is never drawn.
    chosen = np.random.randint(0, len(train_x) - 1, batch_size)
    return train_x[chosen], train_t[chosen]


def correct(output: torch.Tensor, label: torch.Tensor) -> int:
    """Count the predictions that are less than 0.1 from the true value."""
    return ((output - label).abs() < 0.1).sum().item()


def main() -> None:
    """Train, and print loss and accuracies after each epoch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=100)
    epochs_num = parser.parse_args().epochs
    training_size, test_size, hidden_size, batch_size = 10000, 1000, 5, 100
    np.random.seed(0)
    torch.manual_seed(0)

    train_x, train_t = mkDataSet(training_size)
    test_x, test_t = mkDataSet(test_size)  # Odd: these windows are train windows too.
    model = Predictor(1, hidden_size, 1)
    criterion = nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    for epoch in range(1, epochs_num + 1):
        running_loss, training_accuracy, test_accuracy = 0.0, 0, 0
        for _ in range(training_size // batch_size):
            data, label = mkRandomBatch(train_x, train_t, batch_size)
            optimizer.zero_grad()
            output = model(data)
            loss = criterion(output, label)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()  # Odd: a sum of 100 means; it grows with their number.
            training_accuracy += correct(output, label)
        for data, label in zip(test_x.split(batch_size), test_t.split(batch_size), strict=True):
            with torch.no_grad():
                output = model(data)
            test_accuracy += correct(output, label)
        print(
            f"{epoch} loss: {running_loss:.3f}, "
            f"training_accuracy: {training_accuracy / training_size:.5f}, "
            f"test_accuracy: {test_accuracy / test_size:.5f}"
        )


if __name__ == "__main__":
    main()
