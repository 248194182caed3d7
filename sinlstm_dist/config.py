"""The configuration: keys, defaults, precedence, and validation errors.

Precedence: defaults < TOML file < command line. One report names the problems of all sources.

    python -m sinlstm_dist.train --config configs/noisy.toml --train.epochs 20 --print-config
"""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli
import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from sinlstm_dist.errors import ConfigError as ConfigError  # where users look for it


class Section(BaseModel):
    """One table of the TOML file: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _check_text(value: str) -> str:
    """Refuse what neither TOML nor a file name can hold."""
    try:
        value.encode()
    except UnicodeEncodeError as error:  # bytes of a command line that are not UTF-8
        raise PydanticCustomError("text", "Input should be UTF-8") from error
    if "\0" in value:
        raise PydanticCustomError("text", "Input should have no NUL character")
    return value


Text = Annotated[str, AfterValidator(_check_text)]

SINE = "sine"  # data.source's value for the series that needs no file


class Data(Section):
    """The series and its windows."""

    train_size: int = Field(10_000, ge=1, le=10**9, description="training windows")
    test_size: int = Field(1_000, ge=1, le=10**9, description="test windows")
    window: int = Field(50, ge=1, le=10_000, description="input time steps per window")
    period: float = Field(60.0, gt=0, description="time steps in one cycle")
    noise: float = Field(
        0.0, ge=0, description="standard deviation of the noise on inputs; targets stay clean"
    )
    source: Text = Field(SINE, description='"sine" or a file with a series: .csv or .npy')
    column: Text = Field("", description="which column of that file")
    test_phase: float = Field(
        0.5, description="time steps by which test windows are shifted; 0.0 = the article's split"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="seed of the noise")


class Model(Section):
    """The model: its size and the implementation of the LSTM."""

    hidden_size: int = Field(5, ge=1, le=4096, description="features of the hidden state")
    num_layers: int = Field(1, ge=1, le=16, description="stacked LSTM layers")
    lstm: Literal["auto", "fused", "torch"] = Field(
        "auto", description="implementation of the recurrence"
    )


class Optim(Section):
    """Stochastic gradient descent."""

    lr: float = Field(0.01, gt=0, description="learning rate")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum")


class Train(Section):
    """The training run."""

    epochs: int = Field(100, ge=1, description="passes over the training windows")
    global_batch_size: int = Field(
        100, ge=1, le=2**24, description="samples in one optimizer step over all processes"
    )
    tolerance: float = Field(
        0.1, gt=0, description="|prediction - target| below this counts as correct"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="seed of weights and sample order")
    sampling: Literal["permutation", "replacement"] = Field(
        "permutation", description="how an epoch draws its samples"
    )
    reduction: Literal["ordered", "ddp"] = Field(
        "ordered", description="same bits on any number of processes, or Accelerate's wrapper"
    )
    virtual_shards: int = Field(
        8, ge=1, le=1024, description="pieces of each global batch in ordered reduction"
    )
    init_from: Text = Field("", description="a .safetensors file with starting weights")
    target_accuracy: float = Field(
        0.0, ge=0, le=1, description="a run whose test accuracy ends below it has failed"
    )
    timeout_s: float = Field(
        60.0, gt=0, le=86_400, description="longest wait for other processes, in seconds"
    )


class Checkpoint(Section):
    """When the training state is saved, and what a start continues from."""

    every_epochs: int = Field(10, ge=0, description="epochs between checkpoints; 0 = the last only")
    every_steps: int = Field(0, ge=0, description="steps between checkpoints; 0 = by epochs only")
    keep: int = Field(2, ge=2, description="newest checkpoints that are kept")
    resume: Text = Field("auto", description='"auto", "never" or a checkpoint folder')


class Output(Section):
    """Where results go."""

    dir: Text = Field("", description='run folder; "" = runs/<name of the config file, or default>')
    plots: bool = Field(False, description="write pictures at the end of a run")
    trackers: list[Text] = Field([], description='Accelerate trackers, such as "tensorboard"')


class Config(Section):
    """The whole configuration of a run, one attribute per TOML table; its values never change."""

    data: Data = Data()
    model: Model = Model()
    optim: Optim = Optim()
    train: Train = Train()
    checkpoint: Checkpoint = Checkpoint()
    output: Output = Output()


SECTIONS: dict[str, type[Section]] = {name: type(section) for name, section in Config()}
KEYS = [f"{section}.{key}" for section, model in SECTIONS.items() for key in model.model_fields]


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
    problems = _problems(from_file, origin=f"{path}: ", strict=True)
    problems += _problems(from_overrides, origin="", strict=False)
    if not problems:
        merged = {k: {**from_file.get(k, {}), **from_overrides.get(k, {})} for k in SECTIONS}
        if not merged["output"].get("dir"):
            merged["output"]["dir"] = f"runs/{Path(path).stem if path else 'default'}"
        config = Config.model_validate(merged)
        problems = _unsupported(config)
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def check_keys(overrides: Mapping[str, Any]) -> Config:
    """The defaults with `overrides`, each checked by itself.

    For keys that override the configuration of a run, which is read later.

    Raises:
        ConfigError: names every problem of the overrides.
    """
    nested = _nest(overrides)
    if problems := _problems(nested, origin="", strict=False):
        raise ConfigError("\n".join(problems))
    return Config.model_validate(nested)


def override(config: Config, overrides: Mapping[str, Any]) -> Config:
    """`config` with other values of some keys; arguments and errors as for `load_config`."""
    return load_config(None, {**flat(config), **overrides})


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


def _problems(values: dict[str, Any], *, origin: str, strict: bool) -> list[str]:
    """One line per problem of `values`."""
    try:
        Config.model_validate(values, strict=strict)
    except ValidationError as error:
        return [origin + _describe(problem) for problem in error.errors()]
    return []


def first_problem(error: ValidationError) -> str:
    """The first problem, in one line where pydantic writes a paragraph."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}".removeprefix(": ")


def _describe(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {name}" + suggestion(name)
    if problem["type"] in ("model_type", "model_attributes_type"):
        return f"{name} is a section: write its keys below [{name}] or as --{name}.key"
    message = problem["msg"].removeprefix("Input ")
    return f"{name}={show_value(problem['input'])}: {message}"


def suggestion(name: str) -> str:
    """`": did you mean data.noise?"` for a name that is near a known key, else `""`."""
    section, _, key = name.rpartition(".")
    homes = [known for known in KEYS if known.split(".")[1] == key]
    if homes:  # the right key in the wrong section, or without one
        return f": did you mean {' or '.join(homes)}?"
    if not section and (nearest := difflib.get_close_matches(key, SECTIONS, n=1)):
        return f": did you mean [{nearest[0]}]?"
    return did_you_mean(name, KEYS, cutoff=0.5) or f"; sections are {', '.join(SECTIONS)}"


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """`": did you mean train?"` for a name that is near a known one, else `""`."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f": did you mean {nearest[0]}?" if nearest else ""


def _unsupported(config: Config) -> list[str]:
    """One line per key that would have no effect: it is refused, not ignored."""
    problems = []
    if config.data.source == SINE and config.data.column:
        problems.append(f"data.column={config.data.column} needs a file: set data.source to one")
    for key in ("noise", "test_phase") if config.data.source != SINE else ():
        value, source = getattr(config.data, key), config.data.source
        if value != Data.model_fields[key].default:
            problems.append(f"data.{key}={value:g} is not for data.source={source}: leave it out")
    return problems


def to_toml(config: Config) -> str:
    """The configuration as TOML that `load_config` reads back to an equal one."""
    return tomli_w.dumps(config.model_dump())


def flat(config: Config) -> dict[str, Any]:
    """The configuration as dotted keys and their values: {"data.train_size": 10000, ...}."""
    return {name: getattr(getattr(config, name.split(".")[0]), name.split(".")[1]) for name in KEYS}


def is_set(config: Config, name: str) -> bool:
    """Whether a file or a command line has set a key, even to its default."""
    section, _, key = name.partition(".")
    return key in getattr(config, section).model_fields_set


def show_value(value: Any) -> str:
    """A value on one line of a message, as TOML writes it."""
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Sequence):
        return "[" + ", ".join(show_value(item) for item in value) + "]"
    return str(value)


def unknown_keys(values: Mapping[str, Any]) -> list[str]:
    """The keys of a resolved configuration that this version does not have."""
    unknown = [section for section in values if section not in SECTIONS]
    tables = [(section, values.get(section)) for section in SECTIONS]
    keys = (f"{s}.{key}" for s, table in tables if isinstance(table, Mapping) for key in table)
    return unknown + [key for key in keys if key not in KEYS]
