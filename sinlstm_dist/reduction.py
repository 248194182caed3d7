"""The totals of a batch, as a tensor that processes can add up."""

import torch


def count(predictions: torch.Tensor, targets: torch.Tensor, *, tolerance: float) -> torch.Tensor:
    """Totals as a tensor of three: squared error, correct predictions, samples.

    The one definition of loss and accuracy. Differentiable in its first element.

    Args:
        predictions: (B, 1).
        targets: (B, 1).
        tolerance: a smaller absolute error counts as correct.
    """
    error = predictions - targets  # (B, 1)
    correct = (error.detach().abs() < tolerance).sum()
    samples = error.new_tensor(len(error))
    return torch.stack((error.square().sum(), correct.to(error.dtype), samples))
