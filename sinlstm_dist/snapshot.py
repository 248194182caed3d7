"""What a model holds at one time, to be compared with what it holds after a forward pass."""

import inspect
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from sinlstm_dist.blame import is_users

PLAIN = (bool, int, float, str, type(None))
OPAQUE = (Tensor, nn.Module, type, ModuleType, FunctionType, MethodType)  # not looked into
DEEPEST, MOST = 4, 20_000  # levels of containers and objects, and containers and objects in all


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
            or not _are_equal(tensor, value)  # BatchNorm writes without a new version
        ]

    def changed_numbers(self) -> list[str]:
        """The names of the modules' numbers and texts that have other values now."""
        now = dict(_held(self._model, self._function))
        return [
            name
            for name, value in self._held
            if isinstance(value, PLAIN) and name in now and _differ(value, now[name])
        ]

    def is_kept(self) -> bool:
        """Whether all attributes, and all that is in them, are the same objects."""
        now = list(_held(self._model, self._function))
        pairs = itertools.zip_longest(self._held, now, fillvalue=("", None))
        return all(name == other and value is same for (name, value), (other, same) in pairs)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the parameters and buffers their values back."""
        now = dict(_tensors(self._model))
        for name in self.changed_tensors():
            now[name].copy_(self._tensors[name][2])


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _held(model: nn.Module, function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """Names and values of the modules' attributes and of the functions' outer variables."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in ("training", "_modules"):
                yield from _walk(f"{prefix}.{key}".removeprefix("."), value, seen, DEEPEST)
    forwards = dict.fromkeys(type(module).forward for module in model.modules())
    for user in (function, *forwards):
        if inspect.isfunction(user) and is_users(user.__code__.co_filename):
            outside = inspect.getclosurevars(user)
            for key, value in {**outside.globals, **outside.nonlocals}.items():
                yield from _walk(f"{user.__qualname__}: {key}", value, seen, DEEPEST)


def _walk(name: str, value: Any, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    """A value, and what is in it if it is a container or an object."""
    yield name, value
    if isinstance(value, OPAQUE) or not depth or id(value) in seen or len(seen) > MOST:
        return
    inside: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        inside = [(f"[{key!r:.20}]", item) for key, item in value.items()]
    elif isinstance(value, list | tuple | set | deque):
        inside = [(f"[{number}]", item) for number, item in enumerate(value)]
    elif hasattr(value, "__dict__"):
        inside = [(f".{key}", item) for key, item in vars(value).items()]
    if inside:
        seen.add(id(value))
    for key, item in inside:
        yield from _walk(f"{name}{key}", item, seen, depth - 1)


def _differ(value: Any, now: Any) -> bool:
    """Whether a number or a text has become another, or something else; nan stays nan."""
    if not isinstance(now, PLAIN):
        return True
    return bool(now != value and (now == now or value == value))


def _are_equal(tensor: Tensor, other: Tensor) -> bool:
    """Whether all values are equal, nan to nan too."""
    return bool(((tensor == other) | (tensor != tensor) & (other != other)).all())
