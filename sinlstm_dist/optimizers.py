"""Any optimizer of torch: its state by the names of the parameters, and its steps."""

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# A group's learning rate before it is multiplied; torch's schedulers give it this name too.
FULL_LR = "initial_lr"


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors in the optimizer's state, as `parameter.key`."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Set the optimizer's state to what `optimizer_tensors` returned."""
    parameters = dict(model.named_parameters())
    state = optimizer.state_dict()
    in_order = (p for group in optimizer.param_groups for p in group["params"])
    numbers = {id(parameter): number for number, parameter in enumerate(in_order)}
    state["state"] = {}
    for name, value in tensors.items():
        parameter, _, key = name.rpartition(".")
        state["state"].setdefault(numbers[id(parameters[parameter])], {})[key] = value
    optimizer.load_state_dict(state)


def group_values(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The optimizer's param groups as JSON values, with the names of their parameters.

    Raises:
        ValueError: JSON cannot express a value, or a parameter is not the model's.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        if strange := [p for p in group["params"] if p not in names]:
            raise ValueError(
                f"the optimizer has a parameter of shape {tuple(strange[0].shape)} that is not the "
                "model's, so no checkpoint would hold it: make it a part of the model"
            )
        values = {key: value for key, value in group.items() if key != "params"}
        for key, value in values.items():
            if not _is_plain(value):
                raise ValueError(
                    f"the optimizer's {key} is {value!r:.40}: a checkpoint can hold "
                    "only finite numbers, strings and lists of these"
                )
        groups.append({**values, "params": [names[p] for p in group["params"]]})
    return groups


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, bool | int | str)


def load_group_values(
    model: nn.Module, optimizer: torch.optim.Optimizer, groups: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Set the optimizer's param groups to what `group_values` returned.

    Args:
        groups: empty if they were not saved, as by older versions.

    Returns:
        what was set to another value: `lr=0.1 (your code now says 0.01)`.

    Raises:
        ValueError: the groups have other parameters.
    """
    own = group_values(model, optimizer) if groups else []
    if [group["params"] for group in own] != [group["params"] for group in groups]:
        raise ValueError("its param groups have other parameters than the checkpoint's")
    changed = []
    for group, mine, saved in zip(optimizer.param_groups, own, groups, strict=False):
        for key in saved.keys() - {"params"}:
            before, value = mine.get(key), saved[key]
            value = tuple(value) if isinstance(before, tuple) else value
            is_derived = key == "lr" and FULL_LR in saved
            if before != value and not is_derived:
                changed.append(f"{key}={value} (your code now says {before})")
            group[key] = value
    return changed


class Update:
    """Moves the parameters along their gradients, which it may shorten first.

    Args:
        optimizer: of the parameters.
        parameters: those whose gradients are clipped together.
        lr_factor: multiplies each group's learning rate in a step, counted from 0.
        clip_norm: the largest norm of all gradients together; 0 for no limit.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[Tensor],
        *,
        lr_factor: Callable[[int], float] | None = None,
        clip_norm: float = 0.0,
    ) -> None:
        self._optimizer, self._parameters = optimizer, parameters
        self._lr_factor, self._clip_norm = lr_factor, clip_norm
        if lr_factor:
            for group in optimizer.param_groups:
                group.setdefault(FULL_LR, group["lr"])

    def __call__(self, step: int) -> None:
        """Make one step of the optimizer.

        Args:
            step: of the run, from 0.
        """
        if self._clip_norm:
            nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        if self._lr_factor:
            factor = float(self._lr_factor(step))
            for group in self._optimizer.param_groups:
                group["lr"] = group[FULL_LR] * factor
        self._optimizer.step()


def check_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that keeps other things than tensors.

    Raises:
        TypeError: it does, in which case a checkpoint would not hold all of its state.
    """
    own = set(model.parameters())
    if odd := [key for key in optimizer.state if key not in own]:
        raise TypeError(
            f"{type(optimizer).__name__} keeps {odd[0]!r:.40} for no parameter of the model: "
            "checkpoints hold its state by the parameters' names"
        )
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"{type(optimizer).__name__} has {key} of {name}, which is not a tensor: "
                    "checkpoints hold tensors only; use an optimizer of torch.optim"
                )


def copied(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A copy of a model, and one of its optimizer that moves the copy."""
    model, optimizer = copy.deepcopy((model, optimizer))
    for module in model.modules():
        if isinstance(module, nn.RNNBase):  # cuDNN wants its weights in one vector, or torch warns
            module.flatten_parameters()
    return model, optimizer


def trial_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Make a step along a gradient of fixed numbers, with a copy that is thrown away.

    Raises:
        TypeError: the optimizer needs a closure.
    """
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure and closure.default is closure.empty:
        raise TypeError(
            f"{type(optimizer).__name__} computes the loss more than once in a step: use an "
            "optimizer that takes the gradient as it is, such as AdamW"
        )
    for parameter in model.parameters():
        if parameter.requires_grad:
            numbers = torch.arange(parameter.numel()).remainder(251).add(1).div(251)
            parameter.grad = numbers.to(parameter).view_as(parameter)
    optimizer.step()
