"""The command line of every command: flags for the keys of the configuration, and what is wrong.

python -m sinlstm_dist.train --config configs/noisy.toml --train.epochs 20 --print-config
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin

from sinlstm_dist.config import KEYS, SECTIONS, Config, did_you_mean, load_config, show_value
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.screen.console import show_text


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ConfigErrors, in place of a page of usage."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """What argparse calls for a command line that it cannot read."""
        raise ConfigError(message)

    def _print_message(self, message: str, file: object = None) -> None:
        """What argparse calls with the text of --help."""
        show_text(message)


def add_config_flags(parser: Parser) -> None:
    """Give `parser` the flags `--config`, `--print-config` and one for each key."""
    parser.add_argument("--config", metavar="FILE", help="TOML file with any of the keys below")
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved configuration and exit"
    )
    add_key_flags(parser, KEYS)


def add_key_flags(parser: Parser, keys: Sequence[str]) -> None:
    """Give `parser` a flag for each of these keys."""
    for section, model in SECTIONS.items():
        wanted = {k: f for k, f in model.model_fields.items() if f"{section}.{k}" in keys}
        if not wanted:
            continue
        group = parser.add_argument_group(section, model.__doc__)
        for key, field in wanted.items():
            is_choice = get_origin(field.annotation) is Literal
            default = show_value(field.default)
            group.add_argument(
                f"--{section}.{key}",
                default=argparse.SUPPRESS,
                metavar="|".join(get_args(field.annotation)) if is_choice else "VALUE",
                help=f"{field.description} (default: {default})".replace("%", "%%"),
                nargs="*" if get_origin(field.annotation) is list else None,
            )


def _bind_negative(arguments: Sequence[str] | None) -> list[str]:
    """Write `--key -1e-3` as `--key=-1e-3`: argparse takes some negative numbers for flags."""
    bound: list[str] = []
    for argument in sys.argv[1:] if arguments is None else arguments:
        is_value = argument.startswith("-") and not argument.startswith(("--", "-h"))
        if is_value and bound and bound[-1].startswith("--") and "=" not in bound[-1]:
            bound[-1] += f"={argument}"
        else:
            bound.append(argument)
    return bound


def parse_overrides(parser: Parser, arguments: Sequence[str] | None) -> tuple[Any, dict[str, str]]:
    """Parse a command line with some key flags; returns the parser's options and the keys' values.

    Raises:
        ConfigError: a flag that the parser does not have.
    """
    options, unknown = parser.parse_known_args(_bind_negative(arguments))
    overrides = {key: value for key, value in vars(options).items() if "." in key}
    if unknown:
        raise ConfigError(f"unexpected argument {unknown[0]}: {parser.prog} --help lists them all")
    return options, overrides


def parse_with_config(parser: Parser, arguments: Sequence[str] | None) -> tuple[Any, Config]:
    """Parse a command line with config flags; returns the parser's options and the Config.

    Raises:
        ConfigError: every problem of file and command line, unknown flags included.
    """
    options, unknown = parser.parse_known_args(_bind_negative(arguments))
    overrides = {key: value for key, value in vars(options).items() if "." in key}
    own = [f"--{name.replace('_', '-')}" for name in vars(options) if "." not in name]
    for argument in unknown:  # a flag's value needs no mention
        flag = argument.partition("=")[0]
        if nearest := did_you_mean(flag, own, cutoff=0.75):
            raise ConfigError(f"unknown flag {flag}{nearest}")
        if flag.startswith("--"):
            overrides[flag.removeprefix("--")] = ""  # load_config names the nearest key
    if unknown and not unknown[0].startswith("--"):
        what = "--config" if unknown[0].endswith(".toml") else "--section.key"
        raise ConfigError(f"unexpected argument {unknown[0]}: did you mean {what} {unknown[0]}?")
    return options, load_config(options.config, overrides)
