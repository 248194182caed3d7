"""The command line: the commands, their flags, and what is wrong with the arguments given.

    sinlstm-dist train --config configs/noisy.toml --train.epochs 20 --print-config

It imports no torch, so help and mistakes appear at once. The user's own code is imported only if
the arguments name it; then its settings are flags too.
"""

import argparse
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import sinlstm_dist
from sinlstm_dist import status, user_code
from sinlstm_dist.config import (
    KEYS,
    OF_THE_SINE,
    SECTIONS,
    check_keys,
    load_config,
    named_build,
    to_toml,
)
from sinlstm_dist.errors import ConfigError, ExitCode
from sinlstm_dist.flags import NEGATIVE, as_flag
from sinlstm_dist.problems import did_you_mean
from sinlstm_dist.processes.launcher import is_speaker
from sinlstm_dist.screen.console import show_text, show_toml
from sinlstm_dist.user_code import UserCode

PROGRAM = "sinlstm-dist"


@dataclass(frozen=True)
class Syntax:
    """What a user can write after a command's name.

    Args:
        does: what the command does, in one line.
        arguments: its own arguments and flags, with argparse's options for each.
        keys: the configuration keys that it takes as flags `--section.key VALUE`.
    """

    does: str
    arguments: Mapping[str, Mapping[str, Any]]
    keys: Sequence[str] = ()


def _file(name: str) -> Path:
    """The path of a file that a flag names."""
    if not name:
        raise argparse.ArgumentTypeError("the name of the file is empty")
    return Path(name)


_DATA_KEYS = [key for key in KEYS if key.startswith("data.")]
_CONFIG = {"metavar": "FILE", "dest": "config_file", "help": "TOML file with any of the keys"}
_TRAINED = {"metavar": "RUN_DIR", "help": "a finished run's folder, or a checkpoint's"}

COMMANDS = {
    "train": Syntax(
        "Train the sine, or your own model (--task.build)",
        {
            "--config": _CONFIG,
            "--print-config": {"action": "store_true", "help": "print the configuration and exit"},
        },
        keys=KEYS,
    ),
    "verify": Syntax(
        "Prove that this set of processes trains correctly",
        {
            "--processes": {
                "metavar": "N", "type": int,
                "help": "how many processes there must be; another number fails the claim World",
            },
            "--json": {"metavar": "FILE", "type": _file, "help": "write the findings there too"},
            "--record": {
                "metavar": "FILE", "type": _file,
                "help": "if all is well, write digests of the weights that this kind of device "
                "computes",
            },
            "--against": {
                "metavar": "FILE", "type": _file,
                "help": "compare with such a record, of last week or of other nodes",
            },
            "--inject": {
                "metavar": "FAULT",
                "help": "break one thing on purpose; an unknown FAULT lists the known ones",
            },
            "--config": _CONFIG,
        },
        keys=KEYS,
    ),
    "evaluate": Syntax(
        "Test a trained model",
        {"path": _TRAINED},
        keys=[*_DATA_KEYS, "model.lstm", "train.tolerance", "train.timeout_s", "task.build"],
    ),
    "forecast": Syntax(
        "Forecast far ahead by a trained model's own predictions",
        {
            "path": _TRAINED,
            "--output": {"metavar": "FILE", "help": "draw it, with truth or fan: .png, .svg, .pdf"},
            "--csv": {"metavar": "FILE", "help": "write it, with truth or fan"},
            "--from": {
                "choices": ["end", "test"], "metavar": "WHERE", "dest": "start",
                "help": "end: of the file, into the future (default for a series); test: the first "
                "test window (default for the sine)",
            },
            "--steps": {
                "type": int, "metavar": "N",
                "help": "values to forecast (default: two cycles from the end, ten otherwise)",
            },
        },
        keys=_DATA_KEYS,
    ),
    "plot": Syntax(
        "Draw the curves of runs, or the windows of a data set",
        {
            "what": {"nargs": "+", "metavar": "RUN_DIR|data", "help": 'run folders, or "data"'},
            "--output": {
                "metavar": "FILE",
                "help": "the picture: .png, .svg or .pdf (default: curves.png in the run's "
                "folder, or here)",
            },
            "--config": {**_CONFIG, "help": "TOML file; for data only"},
        },
        keys=_DATA_KEYS,
    ),
    "compare": Syntax(
        "Show several runs in one table",
        {"runs": {"nargs": "+", "metavar": "RUN_DIR", "help": "output.dir of a run"}},
    ),
    "export": Syntax(
        "Write a trained model as ONNX, for runtimes without torch",
        {
            "path": _TRAINED,
            "--output": {"metavar": "FILE.onnx", "required": True, "help": "the file to write"},
        },
    ),
}  # fmt: skip


class Help(argparse.RawDescriptionHelpFormatter):
    """argparse's help, whose usage has one flag in place of one per configuration key."""

    def add_usage(
        self, usage: str | None, actions: Any, groups: Any, prefix: str | None = None
    ) -> None:
        """What argparse calls with all flags and arguments."""
        sections = {a.dest.partition(".")[0] for a in actions if "." in a.dest}
        shown = [action for action in actions if "." not in action.dest]
        if sections:
            section = "section" if len(sections) > 1 else sections.pop()
            shown.append(argparse.Action([f"--{section}.key"], "", metavar="VALUE ..."))
        super().add_usage(usage, shown, groups, prefix)


class Parser(argparse.ArgumentParser):
    """argparse's parser, with errors as ConfigErrors and its text shown by one process."""

    def __init__(self, name: str, description: str, **options: Any) -> None:
        super().__init__(
            name, description=description, formatter_class=Help, allow_abbrev=False, **options
        )
        self._negative_number_matcher = NEGATIVE
        self.color = False  # Python 3.14 would put escape codes into the text
        self.add_argument(
            "--version", action="version", version=f"{PROGRAM} {sinlstm_dist.__version__}",
            help="print the version and exit",
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        """What argparse calls for a command line that it cannot read."""
        raise ConfigError(message)

    def _print_message(self, message: str, file: object = None) -> None:
        """What argparse calls with the text of --help and --version."""
        if is_speaker():
            show_text(message)


def choose(arguments: Sequence[str]) -> str:
    """The command that the first argument names.

    Raises:
        ConfigError: there is no such command.
        SystemExit: --help or --version was asked for, and is shown.
    """
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.does}" for name, command in COMMANDS.items()]
    parser = Parser(
        PROGRAM,
        "\n".join([str(sinlstm_dist.__doc__), "", "commands:", *lines]),
        usage=f"{PROGRAM} COMMAND [ARGUMENTS ...]",
        epilog=f"{PROGRAM} COMMAND --help lists the arguments of a command.",
    )
    parser.parse_known_args(arguments[:1])
    known = f"{', '.join(COMMANDS)}; {PROGRAM} --help says what each does"
    if not arguments:
        raise ConfigError(f"name a command: {known}")
    if (name := arguments[0]) not in COMMANDS:
        nearest = did_you_mean(name, COMMANDS) or f"; the commands are {known}"
        raise ConfigError(f"there is no command {name}{nearest}")
    return name


def parse(name: str, arguments: Sequence[str] | None = None) -> Namespace:
    """Parse the arguments of a command.

    Args:
        name: of the command.
        arguments: those after its name; None for the process's own.

    Returns:
        the values of the command's own arguments; `keys`, the text of each configuration key
        that is given; and `config`, the configuration of file and keys.

    Raises:
        ConfigError: names every problem of the file and of the arguments.
        SystemExit: help, the version or the configuration was asked for, and is shown.
    """
    given = sys.argv[1:] if arguments is None else arguments
    code = _named_code(given) if COMMANDS[name].keys is KEYS else None
    options, unknown = _new_parser(name, code).parse_known_args(given)
    options.keys = {key: value for key, value in vars(options).items() if "." in key}
    if unknown:
        options.keys |= _unknown_keys(name, unknown)
    if "--config" in COMMANDS[name].arguments:
        options.config = load_config(options.config_file, options.keys)
    else:
        options.config = check_keys(options.keys)
    if getattr(options, "print_config", False):
        if is_speaker():
            show_toml(to_toml(options.config))
        raise SystemExit(ExitCode.DONE)
    return options


def _named_code(arguments: Sequence[str]) -> UserCode | None:
    """The user's code, if the arguments name it."""
    parser = Parser("", "", add_help=False)
    parser.add_argument("--config")
    parser.add_argument("--task.build", dest="build")
    options, _ = parser.parse_known_args(arguments)
    spec = options.build
    if spec is None and options.config is not None:
        spec = named_build(options.config)
    if spec:
        status.say(f"loading {spec} ...")  # it imports torch
    return user_code.load(spec) if spec else None


def _new_parser(name: str, code: UserCode | None) -> Parser:
    command = COMMANDS[name]
    parser = Parser(f"{PROGRAM} {name}", f"{command.does}.")
    for argument, options in command.arguments.items():
        parser.add_argument(argument, **options)
    refused = OF_THE_SINE if code else []  # parsed, for `load_config` to say so, and not shown
    for section in dict.fromkeys(["task", *SECTIONS] if code else SECTIONS):
        model = SECTIONS[section]
        fields = {k: f for k, f in model.model_fields.items() if f"{section}.{k}" in command.keys}
        if section == "task" and code:
            fields |= code.settings.model_fields
        of_run = "--config" not in command.arguments  # its own value is the default
        keys = {f"{section}.{k}": as_flag(f, of_run=of_run) for k, f in fields.items()}
        is_shown = bool(keys.keys() - set(refused))
        group = parser.add_argument_group(section, model.__doc__) if is_shown else parser
        for key, flag in keys.items():
            hidden = {"help": argparse.SUPPRESS} if key in refused else {}
            group.add_argument(f"--{key}", **flag | hidden)
    return parser


def _unknown_keys(name: str, unknown: Sequence[str]) -> dict[str, str]:
    """Flags that the parser does not have, as keys: `load_config` reports all of them at once.

    Raises:
        ConfigError: one is no configuration key, or the command does not take all of them.
    """
    command = COMMANDS[name]
    takes_all = command.keys is KEYS
    known = [flag for flag in command.arguments if flag.startswith("--")] + ["--help", "--version"]
    known += [] if takes_all else [f"--{key}" for key in command.keys]
    flags = [argument.partition("=")[0] for argument in unknown]  # a flag's value is one too
    for flag in flags:
        if nearest := did_you_mean(flag, known, cutoff=0.75):
            raise ConfigError(f"unknown flag {flag}{nearest}")
    first = unknown[0]
    if not takes_all:
        raise ConfigError(f"unexpected argument {first}: {PROGRAM} {name} --help lists them all")
    if not first.startswith("--"):
        what = "--config" if first.endswith(".toml") else "--section.key"
        raise ConfigError(f"unexpected argument {first}: did you mean {what} {first}?")
    return {flag.removeprefix("--"): "" for flag in flags if flag.startswith("--")}
