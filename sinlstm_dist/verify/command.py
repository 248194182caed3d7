"""The command `verify`: its arguments, its output and its exit code."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from sinlstm_dist.command import let_another_speak, tell
from sinlstm_dist.command_line import Parser, add_key_flags, parse_with_config
from sinlstm_dist.config import KEYS
from sinlstm_dist.errors import ConfigError, LostProcess, RunError, StoppedEarly
from sinlstm_dist.processes.launcher import have_met, is_node_speaker, is_speaker
from sinlstm_dist.screen.console import show_error, tell_losses
from sinlstm_dist.verify import faults, table
from sinlstm_dist.verify.verification import BadArguments, TimeLimit, Verification

BAD_ARGUMENTS, NOT_VERIFIED = 2, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(prog="sinlstm_dist.verify", description="Prove that these processes train.")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write what was found there too")
    parser.add_argument(
        "--inject",
        metavar="FAULT",
        help="break one thing on purpose: "
        + "; ".join(f"{name}: {fault.what}" for name, fault in faults.FAULTS.items()),
    )
    parser.add_argument("--config", metavar="FILE", help="verify the path that this TOML file uses")
    add_key_flags(parser, KEYS)
    try:
        options, config = parse_with_config(parser, arguments)
        fault = faults.find(options.inject) if options.inject else None
        if options.json:
            _check_writable(options.json)
    except ConfigError as error:
        tell(str(error))
        return BAD_ARGUMENTS
    verification = Verification(fault, config)
    speaks = is_speaker()
    try:
        verification.run()
    except BadArguments as error:
        tell(str(error))
        return BAD_ARGUMENTS
    except (ConfigError, RunError, TimeLimit):
        speaks = speaks if have_met() else is_node_speaker()
    except (LostProcess, StoppedEarly) as error:
        speaks = error.is_speaker
    except Exception:
        if speaks:
            _show(verification, options.json)
        raise
    if not speaks and not verification.passed:
        let_another_speak()
    elif speaks and not _show(verification, options.json):
        return BAD_ARGUMENTS
    return 0 if verification.passed else NOT_VERIFIED


def _show(verification: Verification, path: Path | None) -> bool:
    """Print what was found, and write it to `path`. Returns whether `path` could be written."""
    problem = ""
    try:
        if path:  # first, because the user may interrupt a slow terminal
            path.write_text(json.dumps(verification.content(), indent=1) + "\n")
    except OSError as error:  # such as a full disk
        problem = f"--json {path} cannot be written: {error.strerror}"
    table.show(verification)
    tell_losses()  # a loss of output does not change the exit code
    if problem:
        show_error(problem)
    return not problem


def _check_writable(path: Path) -> None:
    """Raise ConfigError if `path` cannot be written. Another process may be the one that writes, so
    nothing is changed.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"--json {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise ConfigError(f"--json {path} is a folder: name a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"--json {path} cannot be written: permission denied")
