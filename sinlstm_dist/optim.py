"""Stochastic gradient descent, as torch has it, at the price of its arithmetic.

    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)

The functions at the end hand an optimizer's state to a checkpoint and take it back.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

BUFFER = "momentum_buffer"  # the name of a velocity in a parameter's state, as in torch.optim.SGD
ABSENT = ("dampening", "weight_decay", "nesterov", "maximize", "differentiable")

State = dict[str, Any]  # of one parameter


class SGD(torch.optim.Optimizer):
    """torch.optim.SGD with a learning rate and momentum; `_update` is its arithmetic.

    On the CPU the parameters of a group become views of one vector, which numpy updates in a few
    microseconds. A view of a parameter that was taken before does not follow it, as with
    `Module.to`. Each step compares addresses: what was moved in the meantime is laid out again.

    A parameter without a gradient keeps its value and its velocity, as in torch.optim.SGD. The two
    optimizers load each other's `state_dict`.

    Args:
        parameters: tensors or groups of them, as torch's optimizers take them.
        lr: learning rate.
        momentum: the share of its velocity that a parameter keeps in a step.

    Raises:
        ValueError: a number is negative, or a group sets an option of torch.optim.SGD that is
            absent here; also from `load_state_dict`.
    """

    def __init__(self, parameters: Iterable[Any], lr: float = 1e-3, momentum: float = 0.0) -> None:
        if not (lr >= 0 and momentum >= 0):
            raise ValueError(f"lr={lr}, momentum={momentum}: both must be 0 or more")
        absent = dict.fromkeys(ABSENT, False)  # torch.optim.SGD reads them from a loaded state
        super().__init__(parameters, {"lr": lr, "momentum": momentum, **absent})
        self._lay_out()

    # torch wraps these methods to hide them from its compiler, and the wrapper imports the
    # compiler: 2.5 s at every start.
    # https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_compile.py#L28
    # Needed for tests/test_train.py::test_a_run_starts_without_what_it_does_not_need.
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over the tensors of a copy, a pickle or a `load_state_dict`."""
        super().__setstate__(state)
        self._lay_out()

    def _lay_out(self) -> None:
        """Lay out all parameters before the first step, and not at it.

        A matrix library may choose its code by the alignment of its operands, so the first
        gradient must see the weights where all later ones see them.
        """
        groups = enumerate(self.param_groups)
        self._vectors = {index: _vector(group, group["params"]) for index, group in groups}

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters that have a gradient.

        Args:
            closure: called first; computes the loss and the gradients.

        Returns:
            what `closure` returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for index, group in enumerate(self.param_groups):
            parameters = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in parameters]
            lr, momentum = float(group["lr"]), float(group["momentum"])
            states = [self.state[p] for p in parameters] if momentum else []
            vector = self._vectors.get(index)
            if vector is None or _places(parameters) != vector.places:
                vector = self._vectors[index] = _vector(group, parameters)
            if vector:
                vector.update(gradients, states, lr=lr, momentum=momentum)
            elif parameters:
                _update_each(parameters, gradients, states, lr=lr, momentum=momentum)
        return loss

    # torch wraps a step that lacks this mark with hooks and a profiler's record: 15 us, where the
    # update takes 5.
    # https://github.com/pytorch/pytorch/issues/47441
    # Needed for tests/test_optim.py::test_a_step_opens_no_profilers_record.
    step.hooked = True  # type: ignore[attr-defined]

    def register_step_pre_hook(self, hook: Any) -> Any:
        """Refuse a hook, which would never run."""
        raise NotImplementedError("step hooks are not supported: use torch.optim.SGD")

    register_step_post_hook = register_step_pre_hook


@np.errstate(over="ignore", invalid="ignore")  # the caller looks for values that are not finite
def _update(
    values: np.ndarray,
    gradient: np.ndarray,
    velocity: np.ndarray | None,
    lr: float,
    momentum: float,
) -> None:
    """One step. Each operation rounds its result, to the type of `values`, in this order."""
    if velocity is not None:
        velocity *= momentum
        velocity += gradient
        gradient = velocity
    values -= lr * gradient


@torch.no_grad()
def _update_each(
    parameters: list[Tensor],
    gradients: list[Tensor],
    states: list[State],
    *,
    lr: float,
    momentum: float,
) -> None:
    """The same step for parameters that stay where they are."""
    if states:
        velocities = _velocities(parameters, states)
        torch._foreach_mul_(velocities, momentum)
        torch._foreach_add_(velocities, gradients)
        _set_velocities(states, velocities)
        gradients = velocities
    torch._foreach_sub_(parameters, torch._foreach_mul(gradients, lr))


def _velocities(parameters: list[Tensor], states: list[State]) -> list[Tensor]:
    """The velocities in the parameters' states; zeros for a parameter without one."""
    found = []
    for parameter, state in zip(parameters, states, strict=True):
        velocity = state.get(BUFFER)
        if velocity is None:
            velocity = torch.zeros_like(parameter)
        elif velocity.shape != parameter.shape:
            shapes = f"{tuple(velocity.shape)} for a parameter of shape {tuple(parameter.shape)}"
            raise ValueError(f"{BUFFER} has shape {shapes}")
        found.append(velocity.detach().to(parameter))
    return found


def _set_velocities(states: list[State], velocities: list[Tensor]) -> None:
    for state, velocity in zip(states, velocities, strict=True):
        state[BUFFER] = velocity


class _Vector:
    """Parameters that are views of one vector, with one vector each of gradients and velocities."""

    def __init__(self, parameters: list[Tensor]) -> None:
        values = _in_a_row(parameters)
        if values is None:
            values = _joined(parameters)
            for parameter, part in zip(parameters, _parts(values, parameters), strict=True):
                parameter.data = part
        self._parameters, self._values = parameters, values.numpy()
        self.places = _places(parameters)
        self._gradient: np.ndarray | None = None
        self._velocity: np.ndarray | None = None
        self._gradient_places: list[int] = []
        self._velocity_places: list[int] = []

    def update(
        self, gradients: list[Tensor], states: list[State], *, lr: float, momentum: float
    ) -> None:
        """One step."""
        velocity = self._velocity_of(states) if states else None
        _update(self._values, self._gradient_of(gradients), velocity, lr, momentum)
        torch.autograd.graph.increment_version(self._parameters)  # no backward through old values

    def _gradient_of(self, gradients: list[Tensor]) -> np.ndarray:
        places = _places(gradients)
        if places != self._gradient_places:
            vector = _in_a_row(gradients)
            self._gradient = None if vector is None else vector.numpy()
            self._gradient_places = places
        return _joined(gradients).numpy() if self._gradient is None else self._gradient

    def _velocity_of(self, states: list[State]) -> np.ndarray:
        places = _places(state.get(BUFFER) for state in states)
        if self._velocity is None or places != self._velocity_places:
            vector = _joined(_velocities(self._parameters, states))
            _set_velocities(states, _parts(vector, self._parameters))
            self._velocity = vector.numpy()
            self._velocity_places = _places(state[BUFFER] for state in states)
        return self._velocity


def _vector(group: Mapping[str, Any], parameters: list[Tensor]) -> _Vector | None:
    """Parameters of a group as one vector; None if they must stay where they are.

    On a GPU, cuDNN keeps an LSTM's weights in memory that it lays out itself. On the CPU, numpy
    lacks bfloat16, and parameters that share memory must go on sharing it.
    """
    if found := [option for option in ABSENT if group.get(option)]:
        raise ValueError(f"{', '.join(found)} is not supported: use torch.optim.SGD")
    kinds = {(p.device.type, p.dtype) for p in parameters}
    if kinds not in ({("cpu", torch.float32)}, {("cpu", torch.float64)}):
        return None
    spans = sorted((p.data_ptr(), p.data_ptr() + p.nbytes) for p in parameters)
    share_memory = any(end > begin for (_, end), (begin, _) in pairwise(spans))
    if share_memory or not all(p.is_contiguous() for p in parameters):
        return None
    return _Vector(parameters)


def _in_a_row(tensors: list[Tensor]) -> Tensor | None:
    """One vector over tensors that lie one after the other in memory; None if they do not."""
    end, storage = tensors[0].data_ptr(), tensors[0].untyped_storage().data_ptr()
    for tensor in tensors:
        if (
            tensor.data_ptr() != end
            or tensor.untyped_storage().data_ptr() != storage
            or not tensor.is_contiguous()
        ):
            return None
        end += tensor.nbytes
    size = sum(tensor.numel() for tensor in tensors)
    return tensors[0].detach().as_strided((size,), (1,))


def _joined(tensors: list[Tensor]) -> Tensor:
    """A new vector that holds the numbers of all tensors, one after the other."""
    return torch.cat([tensor.flatten() for tensor in tensors]).detach()


def _parts(vector: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Views of a vector, in the shapes of `like`."""
    parts = vector.split([tensor.numel() for tensor in like])
    return [part.view_as(tensor) for part, tensor in zip(parts, like, strict=True)]


def _places(tensors: Iterable[Tensor | None]) -> list[int]:
    """Where the tensors lie in memory."""
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


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


def trial_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Make a step along a gradient of fixed numbers, with a copy that is thrown away."""
    for parameter in model.parameters():
        numbers = torch.arange(parameter.numel()).remainder(251).add(1).div(251)
        parameter.grad = numbers.to(parameter).view_as(parameter)
    optimizer.step()
