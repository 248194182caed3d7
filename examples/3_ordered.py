"""The same in plain torch, with the same bits on any number of processes.

    torchrun --nproc-per-node 1 --local-addr 127.0.0.1 examples/3_ordered.py --epochs 1
    torchrun --nproc-per-node 2 --local-addr 127.0.0.1 examples/3_ordered.py --epochs 1
    torchrun --nproc-per-node 2 --local-addr 127.0.0.1 examples/3_ordered.py --epochs 1 --all-reduce

Each batch of 100 windows is cut into 8 pieces. A process computes the gradients of its own pieces,
gathers those of all pieces, and adds them in an order that is always the same. With --all-reduce
the pieces are the same, but the backend adds them: the hash depends on the number of processes.
The loss is now a mean over all windows. One process too needs torchrun, which says where to meet.
The first weights and the order of the windows are those of 4_package.py, to end with its hash.
"""

import argparse
import hashlib

import numpy as np
import torch
from torch import distributed as dist
from torch import nn

from sinlstm_dist.plan import epoch_order

PIECES = 8  # of each batch, on any number of processes


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


def draw_weights(model: Predictor, seed: int) -> None:
    """Draw weights in nn.LSTM's range, with integers where torch's bits depend on the CPU."""
    bound = np.float32(1 / np.sqrt(model.rnn.hidden_size))
    generator = np.random.PCG64(np.random.SeedSequence([2, seed]))  # 2 stands for weights
    for p in model.parameters():
        words = generator.random_raw(p.numel()) >> 40  # 24 bits: exact as float32
        uniform = words.astype(np.float32) * np.float32(2**-23) - np.float32(1)  # -1 to 1
        p.data = torch.from_numpy(uniform * bound).view_as(p)


def piece_row(model: nn.Module, data: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Compute one piece's gradient, followed by its loss and its correct predictions."""
    output = model(data)
    loss = nn.functional.mse_loss(output, label, reduction="sum")
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    totals = torch.tensor([loss.item(), correct(output, label)])
    return torch.cat([*(gradient.flatten() for gradient in gradients), totals])


def tree_sum(rows: torch.Tensor) -> torch.Tensor:
    """Add rows in pairs of neighbours, 0 + 1, 2 + 3 and so on, until one row is left."""
    while len(rows) > 1:
        pairs = rows[: len(rows) - 1 : 2] + rows[1::2]
        rows = torch.cat((pairs, rows[-1:])) if len(rows) % 2 else pairs
    return rows[0]


def add_ordered(rows: torch.Tensor) -> torch.Tensor:
    """Gather the rows of all processes, and add them in the order of their pieces."""
    gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, rows)
    # Row i of process r is piece i * world_size + r. What follows the last piece is padding.
    return tree_sum(torch.stack(gathered, dim=1).flatten(0, 1)[:PIECES])


def add_by_all_reduce(rows: torch.Tensor) -> torch.Tensor:
    """Add this process's rows, then let the backend add the sums of all processes."""
    total = rows.sum(0)
    dist.all_reduce(total)
    return total


def main() -> None:
    """Train, and print loss and accuracies after each epoch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--all-reduce", action="store_true")
    arguments = parser.parse_args()
    training_size, test_size, hidden_size, batch_size = 10000, 1000, 5, 100
    add_up = add_by_all_reduce if arguments.all_reduce else add_ordered
    torch.set_num_threads(1)  # Threads split sums too, and torchrun sets their number.
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()

    train_x, train_t = mkDataSet(training_size)
    test_x, test_t = mkDataSet(test_size)
    model = Predictor(1, hidden_size, 1)
    draw_weights(model, seed=0)
    parameters = list(model.parameters())
    sizes = [parameter.numel() for parameter in parameters]

    for epoch in range(1, arguments.epochs + 1):
        running_loss, training_accuracy, test_accuracy = 0.0, 0, 0
        # A function of the seed and the epoch alone, so all processes have the same order. It is
        # the package's own, because 4_package.py trains in this order too.
        order = epoch_order(seed=0, epoch=epoch - 1, size=training_size)
        for batch in order.reshape(-1, batch_size):
            rows = torch.zeros(-(-PIECES // world_size), sum(sizes) + 2)
            pieces = np.array_split(batch, PIECES)[rank::world_size]
            for row, piece in zip(rows, pieces, strict=False):  # a last row may stay zero
                row[:] = piece_row(model, train_x[piece], train_t[piece])
            *gradients, totals = add_up(rows).split([*sizes, 2])
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter -= 0.01 * (gradient.view_as(parameter) / batch_size)
            loss, hits = totals.tolist()
            running_loss += loss
            training_accuracy += int(hits)
        with torch.no_grad():
            test_accuracy += correct(model(test_x), test_t)
        if rank == 0:
            print(
                f"{epoch} loss: {running_loss / training_size:.5f}, "
                f"training_accuracy: {training_accuracy / training_size:.5f}, "
                f"test_accuracy: {test_accuracy / test_size:.5f}"
            )
    if rank == 0:
        print(f"weights {digest(model)}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
