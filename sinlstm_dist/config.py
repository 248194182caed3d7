"""The configuration: precedence, what is wrong with it, and the way to and from TOML.

Precedence: defaults < TOML file < command line. One report names the problems of all sources.

    python -m sinlstm_dist.train --config configs/noisy.toml --train.epochs 20 --print-config
"""

import contextlib
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli
import tomli_w
from pydantic import ValidationError

from sinlstm_dist import user_code
from sinlstm_dist.blame import start_of
from sinlstm_dist.errors import ConfigError as ConfigError  # where users look for it
from sinlstm_dist.problems import describe, did_you_mean, show_value
from sinlstm_dist.sections import KEYS as KEYS
from sinlstm_dist.sections import SECTIONS as SECTIONS
from sinlstm_dist.sections import SINE as SINE
from sinlstm_dist.sections import Config as Config
from sinlstm_dist.sections import Data as Data
from sinlstm_dist.sections import Optim as Optim
from sinlstm_dist.sections import Train as Train
from sinlstm_dist.user_code import NoSettings, UserCode

# Keys that mean nothing to a user's own model.
OF_THE_SINE = [
    key for key in KEYS if key.startswith(("data.", "model.", "optim.", "train.tolerance"))
]
# Keys of [data] that mean nothing to the sine, and those that mean nothing to a file.
OF_A_FILE = ("column", "time", "gaps", "encoding", "difference")
OF_NO_FILE = ("noise", "test_phase")
# Types of findings that only all settings together can show: a key is missing, or a check of the
# user's own, which may look at several keys.
OF_ALL_SETTINGS = {"missing", "value_error", "assertion_error"}


def load_config(
    path: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> Config:
    """Merge defaults, a file and overrides into one checked configuration; later ones win.

    Args:
        path: a TOML file, or None for the defaults.
        overrides: dotted keys to values, such as `{"train.epochs": 3}`; a value may be the
            text that a command line gives (`"3"`).

    Raises:
        ConfigError: names every problem of the file and of the overrides.

    Examples:
        >>> config = load_config("configs/noisy.toml", {"train.epochs": 3})
        >>> config.data.noise, config.train.epochs, config.output.dir
        (0.02, 3, 'runs/noisy')
    """
    from_file = _read_toml(Path(path)) if path is not None else {}
    from_overrides = _nest(overrides or {})
    code = _load_code(from_file, from_overrides)
    return _resolve(from_file, from_overrides, path=path, code=code)


def read_config(path: str | Path) -> Config:
    """The configuration in a run folder; it loads no code, so `[task]` is as the file has it.

    Raises:
        ConfigError: names every problem of the file.
    """
    return _resolve(_read_toml(Path(path)), {}, path=path)


def check_keys(overrides: Mapping[str, Any]) -> Config:
    """The defaults with `overrides`, each checked by itself.

    For keys that override the configuration of a run, which is read later.

    Raises:
        ConfigError: names every problem of the overrides.
    """
    nested = _nest(overrides)
    _load_code(nested)
    if found := _findings(nested, strict=False):
        raise ConfigError("\n".join(map(_describe, found)))
    return Config.model_validate(nested)


def override(config: Config, overrides: Mapping[str, Any]) -> Config:
    """`config` with other values of some keys; arguments and errors as for `load_config`.

    It loads only code that `overrides` name.
    """
    values = _nest({**flat(config), **overrides})
    return _resolve({}, values, code=_load_code(_nest(overrides)))


def named_build(path: str | Path) -> str:
    """`task.build` in a TOML file; "" if it is not there, or `load_config` would refuse the file.

    Nothing is loaded.
    """
    try:
        return _build_in(_read_toml(Path(path)))
    except ConfigError:
        return ""


def _load_code(*sources: Mapping[str, Any]) -> UserCode | None:
    """The code that the last of the sources names which has `task.build`."""
    builds = [_build_in(values) for values in sources if "build" in _table(values, "task")]
    return user_code.load(builds[-1]) if builds and builds[-1] else None


def _build_in(values: Mapping[str, Any]) -> str:
    spec = _table(values, "task").get("build")
    return spec if isinstance(spec, str) else ""  # another type is reported later


def _table(values: Mapping[str, Any], section: str) -> dict[str, Any]:
    table = values.get(section)
    return table if isinstance(table, dict) else {}


def _resolve(
    from_file: dict[str, Any],
    from_overrides: dict[str, Any],
    *,
    path: str | Path | None = None,
    code: UserCode | None = None,
) -> Config:
    """Merge both with the defaults; without `code`, settings in `[task]` stay as they are."""
    problems, wrong, origins = list[str](), set[Any](), dict[str, str]()
    for values, origin, strict in ((from_file, f"{path}: ", True), (from_overrides, "", False)):
        for finding in _findings(values, strict=strict, code=code):
            problems.append(origin + _describe(finding, code))
            wrong.add(finding["loc"])
        origins |= {f"{s}.{key}": origin for s in SECTIONS for key in _table(values, s)}
    merged = {s: {**_table(from_file, s), **_table(from_overrides, s)} for s in SECTIONS}
    valid = {s: merged[s] for s in SECTIONS if s not in {loc[0] for loc in wrong}}
    if code:
        settings, found = code.as_toml(merged["task"])
        found = found or _findings({"task": settings}, strict=True)
        for finding in (f for f in found if f["loc"] not in wrong):
            origin = origins.get(".".join(finding["loc"][:2]), "")
            problems.append(origin + _describe(finding, code))
        valid["task"] = {"build": code.spec, **({} if found else settings)}
    if not merged["output"].get("dir"):
        merged["output"]["dir"] = f"runs/{Path(path).stem if path else 'default'}"
    config = Config.model_validate(valid)
    problems += [origins.get(key, "") + line for key, line in _unsupported(config)]
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomli.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # the latter of deep nesting
        raise ConfigError(f"{path}: is not valid TOML: {error}") from error


def _nest(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """{"train.epochs": 3} -> {"train": {"epochs": 3}}"""
    nested: dict[str, Any] = {}
    for name, value in dotted.items():
        section, _, key = name.partition(".")
        if key:
            nested.setdefault(section, {})[key] = value
        else:
            nested[section] = value
    return nested


def _findings(values: dict[str, Any], *, strict: bool, code: UserCode | None = None) -> list[Any]:
    """What pydantic finds wrong with values of one source, also with the user's settings."""
    users = []
    if code and isinstance(task := values.get("task"), dict):
        with contextlib.suppress(ConfigError):  # the user's checks may need keys of another source
            found = code.findings(task, strict=strict)
            users = [finding for finding in found if finding["type"] not in OF_ALL_SETTINGS]
        values = {**values, "task": {key: task[key] for key in task if key == "build"}}
    try:
        Config.model_validate(values, strict=strict)
    except ValidationError as error:
        return [*error.errors(), *users]
    return users


def _describe(finding: Any, code: UserCode | None = None) -> str:
    name = ".".join(str(part) for part in finding["loc"])
    if finding["type"] == "extra_forbidden":
        if code and code.settings is NoSettings and name.startswith("task."):
            function = code.spec.rpartition(":")[2]
            return (
                f"{start_of(code.function)}: annotate {function}'s first parameter with your "
                f"settings class (a pydantic.BaseModel), so that {name} is known"
            )
        return f"unknown key {name}" + suggestion(name, code.keys if code else ())
    if finding["type"] == "missing" and code:
        return f"{name} is not set: {code.spec} needs it"
    return describe(finding)


def suggestion(name: str, users: Sequence[str] = ()) -> str:
    """`": did you mean data.noise?"` for a name that is near a known key, else `""`.

    Args:
        users: the keys that the user's own code adds.
    """
    section, _, key = name.rpartition(".")
    keys = [*KEYS, *users]
    homes = [known for known in keys if known.split(".")[1] == key]
    if homes:  # the right key in the wrong section, or without one
        return f": did you mean {' or '.join(homes)}?"
    if not section and (nearest := difflib.get_close_matches(key, SECTIONS, n=1)):
        return f": did you mean [{nearest[0]}]?"
    return did_you_mean(name, keys, cutoff=0.5) or f"; sections are {', '.join(SECTIONS)}"


def _unsupported(config: Config) -> Iterator[tuple[str, str]]:
    """Each key that would have no effect, and its line: it is refused, not ignored."""
    source, build = config.data.source, config.task.build
    for key in OF_A_FILE if source == SINE else OF_NO_FILE:
        if (value := getattr(config.data, key)) != Data.model_fields[key].default:
            what = (
                "needs a file: set data.source to one"
                if source == SINE
                else f"is not for data.source={source}: leave it out"
            )
            yield f"data.{key}", f"data.{key}={value} {what}"
    values, defaults = flat(config), flat(Config())
    for key in OF_THE_SINE if build else ():
        if values[key] != defaults[key]:
            what = f"is for the built-in task, not for task.build={build}: leave it out"
            yield key, f"{key}={show_value(values[key])} {what}"
    for key in () if build else (f"task.{name}" for name in config.task.settings()):
        near = did_you_mean(key, ["task.build"], cutoff=0.8)
        yield key, f"unknown key {key}{near or ': set task.build, the code whose setting it is'}"


def to_toml(config: Config) -> str:
    """The configuration as TOML that `load_config` reads back to an equal one."""
    return tomli_w.dumps(config.model_dump())


def flat(config: Config) -> dict[str, Any]:
    """The configuration as dotted keys and their values: {"data.train_size": 10000, ...}."""
    return {f"{section}.{key}": value for section, table in config for key, value in table}


def is_set(config: Config, name: str) -> bool:
    """Whether a file or a command line has set a key, even to its default."""
    section, _, key = name.partition(".")
    return key in getattr(config, section).model_fields_set


def unknown_keys(values: Mapping[str, Any]) -> list[str]:
    """The keys of a resolved configuration that this version does not have.

    Those of `[task]` are the user's own.
    """
    unknown = [section for section in values if section not in SECTIONS]
    tables = [(section, values.get(section)) for section in SECTIONS]
    keys = (f"{s}.{key}" for s, table in tables if isinstance(table, Mapping) for key in table)
    return unknown + [key for key in keys if key not in KEYS and not key.startswith("task.")]
