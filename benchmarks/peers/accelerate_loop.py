"""Accelerate as its own examples use it: prepared model, optimizer and loaders, gathered metrics.

python benchmarks/peers/accelerate_loop.py --batch 100 --epochs 12
"""

import torch
from accelerate import Accelerator
from network import start
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from workload import LR, TOLERANCE, Record, parse, train_and_test


def main() -> None:
    """Train, test and print the record."""
    workload = parse(__doc__)
    train_set, test_set = (
        TensorDataset(*map(torch.from_numpy, arrays)) for arrays in train_and_test(workload)
    )
    accelerator = Accelerator(cpu=True)
    model = start(workload)
    model, optimizer, train_loader, test_loader = accelerator.prepare(
        model,
        torch.optim.SGD(model.parameters(), lr=LR, momentum=workload.momentum),
        DataLoader(train_set, batch_size=workload.batch, shuffle=True),
        DataLoader(test_set, batch_size=workload.batch),
    )
    record = Record()
    record.start()
    for _ in range(workload.epochs):
        model.train()
        total_loss = torch.zeros(())
        for inputs, targets in train_loader:
            loss = nn.functional.mse_loss(model(inputs), targets)
            total_loss += loss.detach().float()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        squares, correct = [], []
        for inputs, targets in test_loader:
            with torch.no_grad():
                output = model(inputs)
            outputs, all_targets = accelerator.gather_for_metrics((output, targets))
            error = outputs - all_targets
            squares.append(error.square())
            correct.append(error.abs() < TOLERANCE)
        record.end_epoch(
            train_loss=total_loss.item() / len(train_loader),
            test_loss=torch.cat(squares).mean().item(),
            test_accuracy=torch.cat(correct).float().mean().item(),
        )
    record.print()


if __name__ == "__main__":
    main()
