"""The user's code that `task.build` names: found, imported and checked, with its settings.

    load("my_task.py:build").function

It imports no torch; the user's code may.
"""

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import sys
import typing
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from sinlstm_dist.blame import blame, blamed, is_users, shown, start_of
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.problems import did_you_mean

HOW = "write FILE.py:FUNCTION or package.module:FUNCTION"


class NoSettings(BaseModel):
    """The settings of a function whose first parameter has no annotation."""

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"there is no setting {name}: annotate the first parameter with your settings class "
            "(a pydantic.BaseModel)"
        )


@dataclass(frozen=True)
class UserCode:
    """A user's function that builds a task.

    Args:
        spec: the value of `task.build` that names it.
        function: takes the settings and the configuration.
        settings: the class of its first parameter.
        file: where its module stands.
        home: the folder of its code.
    """

    spec: str
    function: Callable[..., Any]
    settings: type[BaseModel]
    file: Path
    home: Path

    @property
    def digest(self) -> str:
        """SHA-256 of the file, and of the modules that are loaded from the folder by now."""
        return _digest(self.file, self.home)

    @property
    def keys(self) -> list[str]:
        """The configuration keys of the user's settings."""
        return [f"task.{name}" for name in self.settings.model_fields]

    def findings(self, values: Mapping[str, Any], *, strict: bool) -> list[Any]:
        """What pydantic finds wrong with values for the settings.

        Args:
            strict: take them as a TOML file's, and not as a command line's text.
        """
        known = {"build", *self.settings.model_fields}
        unknown = (key for key in values if key not in known)
        found: list[Any] = [{"type": "extra_forbidden", "loc": ("task", key)} for key in unknown]
        try:
            self._validate(values, strict=strict)
        except ValidationError as error:
            found += [{**problem, "loc": ("task", *problem["loc"])} for problem in error.errors()]
        return found

    def as_toml(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        """All settings as TOML holds them, without those that are None, and what is wrong."""
        if found := self.findings(values, strict=False):
            return {}, found
        settings = self._validate(values, strict=False)
        written: dict[str, Any] = {}
        for name in self.settings.model_fields:
            with contextlib.suppress(PydanticSerializationError):
                written |= settings.model_dump(
                    mode="json", include={name}, exclude_none=True, warnings=False
                )
        if found := self.findings(written, strict=True):
            return {}, found
        again = self._validate(written, strict=True)
        for name in self.settings.model_fields:
            value = getattr(settings, name)
            is_left_out = name not in written and value is not None
            if is_left_out or getattr(again, name) != value or isinstance(value, Set):
                what = "cannot be written in TOML and read back"
                found += [{"type": "toml", "loc": ("task", name), "input": value, "msg": what}]
        return written, found

    def _validate(self, values: Mapping[str, Any], *, strict: bool) -> BaseModel:
        known = {key: value for key, value in values.items() if key in self.settings.model_fields}
        with blamed(self.spec, but=ValidationError):
            if strict:  # JSON's lists may be tuples, and its strings paths
                return self.settings.model_validate_json(
                    json.dumps(known, default=str), strict=True
                )
            return self.settings.model_validate(known)


@functools.cache
def load(spec: str) -> UserCode:
    """Import the function that `spec` names.

    The folder of FILE.py, or the working directory, is then the first of `sys.path`, and the module
    is in `sys.modules`: processes of a DataLoader can import it too.

    Raises:
        ConfigError: it cannot be imported or cannot build a task; names file and line.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        _refuse(spec, f"names no function: {HOW}")
    module = _import_file(place, spec) if place.endswith(".py") else _import_module(place, spec)
    if not getattr(module, "__file__", None):  # built in, or a folder
        _refuse(spec, f"{place} is not a Python file: {HOW}")
    file = Path(str(module.__file__))
    function = _function(module, name, spec)
    settings = _settings(function, spec)
    return UserCode(spec, function, settings, file, _home(module))


def _refuse(spec: str, problem: str) -> NoReturn:
    raise ConfigError(f"task.build={spec}: {problem}")


def _import_file(place: str, spec: str) -> ModuleType:
    file = Path(os.path.abspath(place))
    if not file.is_file():
        inside = "" if os.path.isabs(place) else f" in {os.getcwd()}"
        _refuse(spec, f"there is no file {place}{inside}")
    if "." in file.stem:
        _refuse(spec, f"{file.name} cannot be imported: leave the dot out of its name")
    if other := _another_module(file):
        _refuse(spec, f"{file.name} has the name of the module {file.stem} ({other}): rename it")
    return _import(file.stem, folder=str(file.parent), spec=spec)


def _another_module(file: Path) -> str:
    """Where Python finds another module of this name; "" if it finds no other."""
    try:
        found = importlib.util.find_spec(file.stem)
    except ValueError:  # a module like __main__, which may have no spec
        return "loaded already"
    if found is None or found.origin is None:  # a mere folder yields to the file
        return ""
    return "" if os.path.realpath(found.origin) == os.path.realpath(file) else found.origin


def _import_module(name: str, spec: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        _refuse(spec, f"{name} is not a module: {HOW}")
    try:
        return _import(name, folder=os.getcwd(), spec=spec)
    except ConfigError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and f"{name}.".startswith(f"{cause.name}."):
            _refuse(spec, f"there is no module {cause.name}")
        raise


def _import(name: str, *, folder: str, spec: str) -> ModuleType:
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()  # the file may be younger than what Python knows of the folder
    with blamed(spec):
        return importlib.import_module(name)


def _function(module: ModuleType, name: str, spec: str) -> Callable[..., Any]:
    file = shown(str(module.__file__))
    function = getattr(module, name, None)
    if function is None:
        known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        _refuse(spec, f"{file} has no function {name}{did_you_mean(name, known)}")
    if not inspect.isfunction(function):
        _refuse(spec, f"{name} in {file} is not a function")
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        _refuse(spec, f"{start_of(function)}: {name} must take two arguments: settings and config")
    return function


def _settings(function: Callable[..., Any], spec: str) -> type[BaseModel]:
    """The class that the first parameter is annotated with."""
    first = next(iter(inspect.signature(function).parameters.values()))
    if first.annotation is inspect.Parameter.empty:
        return NoSettings
    alone = SimpleNamespace(__annotations__={"first": first.annotation})  # others may not resolve
    names = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        settings = typing.get_type_hints(alone, globalns=names)["first"]
    except Exception as error:
        _refuse(spec, f"{start_of(function)}: the annotation of {first.name}: {blame(error)}")
    if not (isinstance(settings, type) and issubclass(settings, BaseModel)):
        _refuse(
            spec,
            f"{start_of(function)}: {first.name} must be annotated with a subclass of "
            f"pydantic.BaseModel, or not at all",
        )
    for name, field in settings.model_fields.items():
        if name == "build":
            _refuse(spec, f"{start_of(settings)}: the setting build has a reserved name: rename it")
        if field.validation_alias is not None:
            _refuse(spec, f"{start_of(settings)}: the setting {name} has an alias: leave it out")
    return settings


def _home(module: ModuleType) -> Path:
    """The folder of a module's top-level package, or its own where it is in no package."""
    top = sys.modules[module.__name__.partition(".")[0]]
    return Path(next(iter(getattr(top, "__path__", [])), os.path.dirname(str(module.__file__))))


def _digest(file: Path, folder: Path) -> str:
    modules = {name: module for name, module in sys.modules.items() if name != "__main__"}
    loaded = {str(getattr(module, "__file__", None) or "") for module in modules.values()}
    paths = {file, *(Path(path) for path in loaded if is_users(path))}
    inside = [path for path in paths if path.is_relative_to(folder) and path.is_file()]
    named = {os.path.relpath(path, folder): path for path in inside}
    digest = hashlib.sha256()
    for name in sorted(named):
        content = hashlib.sha256(named[name].read_bytes()).hexdigest()
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()
