"""A careful loop in plain PyTorch: tensors, one permutation per epoch, no wait for a value.

python benchmarks/peers/plain_pytorch.py --batch 100 --epochs 12
"""

import torch
from network import Network, start
from torch import nn
from workload import LR, TOLERANCE, Record, parse, train_and_test


def train_epoch(
    model: Network, optimizer: torch.optim.Optimizer, data: list[torch.Tensor], *, batch: int
) -> tuple[float, int]:
    """Returns the mean loss and the number of correct predictions."""
    loss_sum, correct = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    order = torch.randperm(len(data[0]))
    for indices in order.split(batch):
        inputs, targets = (tensor[indices] for tensor in data)
        output = model(inputs)
        loss = nn.functional.mse_loss(output, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach() * len(indices)
        correct += ((output.detach() - targets).abs() < TOLERANCE).sum()
    return loss_sum.item() / len(order), int(correct)


@torch.inference_mode()
def test(model: Network, data: list[torch.Tensor]) -> tuple[float, float]:
    """Loss and accuracy of all test windows, in one batch."""
    inputs, targets = data
    error = model(inputs) - targets
    return error.square().mean().item(), (error.abs() < TOLERANCE).float().mean().item()


def main() -> None:
    """Train, test and print the record."""
    workload = parse(__doc__)
    train_data, test_data = (
        [torch.from_numpy(array) for array in arrays] for arrays in train_and_test(workload)
    )
    model = start(workload)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=workload.momentum)
    record = Record()
    record.start()
    for _ in range(workload.epochs):
        train_loss, _ = train_epoch(model, optimizer, train_data, batch=workload.batch)
        test_loss, test_accuracy = test(model, test_data)
        record.end_epoch(train_loss=train_loss, test_loss=test_loss, test_accuracy=test_accuracy)
    record.print()


if __name__ == "__main__":
    main()
