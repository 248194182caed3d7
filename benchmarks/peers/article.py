"""The article's program: lists of windows, turned into a tensor batch by batch.

Written again after its text, for current torch (`loss.item()` where it has `loss.data[0]`); tests
without a gradient, which is in its favour, and with a loss, which the other peers have too.

    python benchmarks/peers/article.py --batch 100 --epochs 12
"""

import math
import sys

import numpy as np
import torch
from network import start
from torch import nn
from workload import LR, PERIOD, TEST_PHASE, TOLERANCE, Record, Workload, parse

Windows = list[list[list[float]]]
Targets = list[list[float]]
WINDOW = Workload().window


def make_windows(size: int, *, phase: float = 0.0) -> tuple[Windows, Targets]:
    """Each window is a list of lists of one value, each target a list of one value."""
    inputs, targets = [], []
    for offset in range(size):
        steps = [offset + i + phase for i in range(WINDOW + 1)]
        values = [[math.sin(2 * math.pi * step / PERIOD)] for step in steps]
        inputs.append(values[:-1])
        targets.append(values[-1])
    return inputs, targets


def random_batch(
    inputs: Windows, targets: Targets, *, batch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw with replacement; the last window is never drawn, as in the article."""
    chosen = [np.random.randint(0, len(inputs) - 1) for _ in range(batch)]
    some_inputs = [inputs[index] for index in chosen]
    some_targets = [targets[index] for index in chosen]
    return torch.tensor(some_inputs), torch.tensor(some_targets)


def correct(output: torch.Tensor, targets: torch.Tensor) -> int:
    """Predictions within the tolerance, counted by numpy."""
    return np.sum(np.abs((output.detach() - targets).numpy()) < TOLERANCE)


def main() -> None:
    """Train, test and print the record."""
    workload = parse(__doc__)
    amounts = workload.batch, workload.epochs, workload.train_windows, workload.test_windows
    if workload != Workload(*amounts):
        sys.exit("article.py knows only the article's network, windows and optimizer")
    np.random.seed(0)
    model, criterion = start(workload), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    train_inputs, train_targets = make_windows(workload.train_windows)
    test_inputs, test_targets = make_windows(workload.test_windows, phase=TEST_PHASE)
    num_steps = workload.train_windows // workload.batch
    record = Record()
    record.start()
    for _ in range(workload.epochs):
        train_loss, train_correct = 0.0, 0
        for _ in range(num_steps):
            optimizer.zero_grad()
            inputs, targets = random_batch(train_inputs, train_targets, batch=workload.batch)
            output = model(inputs)
            loss = criterion(output, targets)
            loss.backward()
            optimizer.step()
            train_loss += loss.item()
            train_correct += correct(output, targets)
        test_loss, test_correct = 0.0, 0
        for offset in range(0, workload.test_windows, workload.batch):
            inputs = torch.tensor(test_inputs[offset : offset + workload.batch])
            targets = torch.tensor(test_targets[offset : offset + workload.batch])
            with torch.no_grad():
                output = model(inputs)
            test_loss += criterion(output, targets).item() * len(targets)
            test_correct += correct(output, targets)
        record.end_epoch(
            train_loss=train_loss / num_steps,
            test_loss=test_loss / workload.test_windows,
            test_accuracy=test_correct / workload.test_windows,
        )
    record.print()


if __name__ == "__main__":
    main()
