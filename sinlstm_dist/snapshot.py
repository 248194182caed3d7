"""What a model holds at one time, to be compared with what it holds after a forward pass."""

import inspect
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Held = tuple[str, Any, list[Any]]  # a name, its value, and what is in it if it is a container
PLAIN = (bool, int, float, str, type(None))


class Snapshot:
    """Everything that a forward pass could change in a model, and in the function that calls it.

    Args:
        model: its parameters, its buffers and its modules' attributes.
        function: the variables outside of it that it uses.
    """

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        self._model, self._function = model, function
        self._tensors = {name: (t, t._version, t.detach().clone()) for name, t in _tensors(model)}
        self._held = list(_held(model, function))

    def changed_tensors(self) -> list[str]:
        """The names of the parameters and buffers that were replaced or written to since."""
        now = dict(_tensors(self._model))
        return [
            name
            for name, (tensor, version, value) in self._tensors.items()
            if now.get(name) is not tensor
            or tensor._version != version
            or not _have_same_bits(tensor, value)  # BatchNorm writes without a new version
        ]

    def changed_numbers(self) -> list[str]:
        """The names of the modules' numbers and texts that have other values now."""
        now = {name: value for name, value, _ in _held(self._model, self._function)}
        return [
            name
            for name, value, _ in self._held
            if isinstance(value, PLAIN) and name in now and now[name] != value
        ]

    def is_kept(self) -> bool:
        """Whether all attributes, and all that is in their containers, are the same objects."""
        now = list(_held(self._model, self._function))
        return len(now) == len(self._held) and all(
            name == other and value is same and _are(content, contained)
            for (name, value, content), (other, same, contained) in zip(
                self._held, now, strict=True
            )
        )

    @torch.no_grad()
    def restore(self) -> None:
        """Give the parameters and buffers their values back."""
        now = dict(_tensors(self._model))
        for name in self.changed_tensors():
            now[name].copy_(self._tensors[name][2])


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _held(model: nn.Module, function: Callable[..., Any]) -> Iterator[Held]:
    for prefix, module in model.named_modules():
        for key, value in vars(module).items():
            if key != "training":
                yield f"{prefix}.{key}".removeprefix("."), value, _content(value)
    if inspect.isfunction(function):
        outside = inspect.getclosurevars(function)
        for key, value in {**outside.globals, **outside.nonlocals}.items():
            yield f"{function.__name__}: {key}", value, _content(value)


def _content(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return list(value) if isinstance(value, list | set | deque) else []


def _have_same_bits(tensor: Tensor, other: Tensor) -> bool:
    """Whether all values are equal, nan to nan too."""
    return bool(((tensor == other) | (tensor != tensor) & (other != other)).all())


def _are(these: list[Any], those: list[Any]) -> bool:
    return len(these) == len(those) and all(a is b for a, b in zip(these, those, strict=True))
