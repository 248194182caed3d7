"""Stochastic gradient descent, as torch has it, at the price of its arithmetic."""

import inspect
from collections.abc import Mapping

import torch
from torch import nn


class SGD(torch.optim.SGD):
    """torch.optim.SGD without what torch wraps around its methods.

    The wrappers import torch's compiler at their first call, which takes over a second at every
    start, and open a profiler's record at every step, which takes longer than this model's update.
    The methods themselves are torch's.
    """

    add_param_group = inspect.unwrap(torch.optim.SGD.add_param_group)
    state_dict = inspect.unwrap(torch.optim.SGD.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.SGD.load_state_dict)
    zero_grad = inspect.unwrap(torch.optim.SGD.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))
    step.hooked = True  # or torch's constructor wraps it again


def optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """The optimizer's state, as `parameter.key`."""
    names = [name for name, _ in model.named_parameters()]
    return {
        f"{names[index]}.{key}": value
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Set the optimizer's state to tensors that `optimizer_tensors` once returned."""
    names = [name for name, _ in model.named_parameters()]
    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        parameter, _, key = name.rpartition(".")
        states.setdefault(names.index(parameter), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})


def trial_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A step along a gradient of fixed numbers, for a copy that is thrown away."""
    for parameter in model.parameters():
        numbers = torch.arange(parameter.numel()).remainder(251).add(1).div(251)
        parameter.grad = numbers.to(parameter).view_as(parameter)
    optimizer.step()
