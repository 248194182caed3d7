"""Stochastic gradient descent with an arithmetic of its own, over one vector of parameters.

optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
"""

import inspect
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

BUFFER = "momentum_buffer"  # the name of a velocity in a parameter's state, as in torch.optim.SGD


class SGD(torch.optim.Optimizer):
    """Gradient descent with momentum, as torch.optim.SGD; `_update` is its arithmetic, and on a GPU
    `_update_tensors` is the same.

    On the CPU the parameters are views of one vector, which numpy updates in a few microseconds.
    Each step compares addresses, and lays out again what was moved since: by `Module.to`, a copy,
    a loaded state. A parameter without a gradient keeps its value and its velocity.

    Args:
        parameters: of one dtype, on one device.
        lr: learning rate.
        momentum: the share of its velocity that a parameter keeps in a step.

    Raises:
        ValueError: there are several groups of parameters, dtypes or devices, or the dtype is not
            float32 or float64.
    """

    # torch wraps these methods to hide them from its compiler, and the wrapper imports the
    # compiler: 2.5 s at every start.
    # https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_compile.py#L28
    # Needed for tests/test_train.py::test_a_run_starts_without_what_it_does_not_need.
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})
        kinds = {(p.device, p.dtype) for group in self.param_groups for p in group["params"]}
        if len(self.param_groups) > 1 or len(kinds) > 1:
            raise ValueError("parameters of one group, dtype and device are needed")
        if not {dtype for _, dtype in kinds} <= {torch.float32, torch.float64}:
            raise ValueError("parameters of float32 or float64 are needed")
        self._begin()

    def __setstate__(self, state: dict[str, object]) -> None:
        """Take over the tensors of a copy, a pickle or a `load_state_dict`."""
        super().__setstate__(state)
        self._begin()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters that have a gradient.

        Args:
            closure: called first; computes the loss, which is returned, and the gradients.
        """
        loss = closure() if closure else None
        (group,) = self.param_groups
        parameters = [p for p in group["params"] if p.grad is not None]
        if parameters and parameters[0].is_cpu:
            self._lay_out(parameters)
            gradient = self._gradient
            if gradient is None:  # ddp leaves one tensor per parameter
                gradient = _joined([p.grad for p in parameters]).numpy()
            _update(self._values, gradient, self._velocity, group["lr"], group["momentum"])
            torch.autograd.graph.increment_version(parameters)  # backward through old values fails
        elif parameters:  # cuDNN keeps an LSTM's weights in a vector of its own
            self._update_tensors(parameters, group["lr"], group["momentum"])
        return loss

    # torch wraps a step that lacks this mark with hooks and a profiler's record: 15 us, where the
    # update takes 5.
    # https://github.com/pytorch/pytorch/issues/47441
    # Needed for tests/test_optim.py::test_a_step_opens_no_profilers_record.
    step.hooked = True  # type: ignore[attr-defined]

    def vectors(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The vectors that hold all parameters on the CPU and, with momentum, their velocities.

        Every parameter needs a gradient, as for a step that moves all of them.
        """
        self._lay_out(self.param_groups[0]["params"])
        return self._values, self._velocity

    @torch.no_grad()
    def _update_tensors(self, parameters: list[Tensor], lr: float, momentum: float) -> None:
        """As `_update`, on a GPU: each of its operations is one kernel for all parameters."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if momentum:
            velocities = [*map(self._buffer, parameters)]
            torch._foreach_mul_(velocities, momentum)
            torch._foreach_add_(velocities, gradients)
            gradients = velocities
        # One new tensor, not one per parameter: deterministic torch fills each with NaN first.
        changes = _joined(gradients).mul_(lr)
        torch._foreach_sub_(parameters, _parts(changes, parameters))

    def _begin(self) -> None:
        """Lay the parameters out before the first gradient.

        A matrix library may choose its code by the alignment of its operands: the first gradient
        must see the weights where all later ones see them.
        """
        parameters = self.param_groups[0]["params"]
        if all(p.is_cpu for p in parameters):
            _as_views(parameters)
        self._laid_out: list[int] = []

    def _lay_out(self, parameters: list[Tensor]) -> None:
        """Make views of one vector of the parameters, and of their velocities if they have any."""
        if self._places(parameters) == self._laid_out:
            return
        self._values = _as_views(parameters).numpy()
        gradient = _vector_of([p.grad for p in parameters if p.grad is not None])
        self._gradient = None if gradient is None else gradient.numpy()
        self._velocity = None
        if self.param_groups[0]["momentum"]:
            velocity = _joined(map(self._buffer, parameters))
            for parameter, part in zip(parameters, _parts(velocity, parameters), strict=True):
                self.state[parameter][BUFFER] = part
            self._velocity = velocity.numpy()
        self._laid_out = self._places(parameters)

    def _places(self, parameters: list[Tensor]) -> list[int]:
        """The addresses of parameters, gradients and velocities, and whether these are needed."""
        places = [self.param_groups[0]["momentum"] > 0, *(p.data_ptr() for p in parameters)]
        places += [p.grad.data_ptr() for p in parameters if p.grad is not None]
        return places + [v.data_ptr() for state in self.state.values() for v in state.values()]

    def _buffer(self, parameter: Tensor) -> Tensor:
        """The velocity in a parameter's state; zeros at its first step."""
        buffer = self.state[parameter].get(BUFFER)
        buffer = torch.zeros_like(parameter) if buffer is None else buffer.to(parameter)
        self.state[parameter][BUFFER] = buffer
        return buffer


def _update(
    values: np.ndarray,
    gradient: np.ndarray,
    velocity: np.ndarray | None,
    lr: float,
    momentum: float,
) -> None:
    """One step. Each operation rounds once, in this order."""
    if velocity is not None:
        velocity *= momentum
        velocity += gradient
        gradient = velocity
    values -= lr * gradient


def _as_views(parameters: list[Tensor]) -> Tensor:
    """Make the parameters views of one vector, unless they are; returns the vector."""
    vector = _vector_of(parameters)
    if vector is None:
        vector = _joined(parameters)
        for parameter, part in zip(parameters, _parts(vector, parameters), strict=True):
            parameter.data = part
    return vector


def _vector_of(tensors: list[Tensor]) -> Tensor | None:
    """The vector that these tensors are if each begins where the one before it ends."""
    storage, end = tensors[0].untyped_storage().data_ptr(), tensors[0].data_ptr()
    for tensor in tensors:
        is_next = tensor.data_ptr() == end and tensor.untyped_storage().data_ptr() == storage
        if not (is_next and tensor.is_contiguous()):
            return None
        end += tensor.nbytes
    size = sum(tensor.numel() for tensor in tensors)
    return tensors[0].detach().as_strided((size,), (1,))


def _joined(tensors: Iterable[Tensor]) -> Tensor:
    """A new vector with the numbers of all tensors."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _parts(vector: Tensor, like: list[Tensor]) -> list[Tensor]:
    """The parts of a vector in the shapes of `like`."""
    parts = vector.split([tensor.numel() for tensor in like])
    return [part.view_as(tensor) for part, tensor in zip(parts, like, strict=True)]
