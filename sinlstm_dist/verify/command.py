"""The command `verify`: what it prints, what it writes, and its exit code."""

import json
import os
from argparse import Namespace
from pathlib import Path

from sinlstm_dist.command import command, let_another_speak, speaks
from sinlstm_dist.errors import CommandError, ConfigError, ExitCode
from sinlstm_dist.processes.launcher import is_speaker
from sinlstm_dist.processes.stop import StopRequest
from sinlstm_dist.screen.console import report_lost_output, show_error
from sinlstm_dist.verify import faults, table
from sinlstm_dist.verify.verification import BadArguments, Verification


@command("verify")
def main(options: Namespace) -> int:
    """Prove that this set of processes trains correctly."""
    fault = faults.find(options.inject) if options.inject else None
    if options.json:
        _check_writable(options.json)
    verification = Verification(fault, options.config)
    is_teller = is_speaker()
    with StopRequest() as request:  # a launcher's signal must not prevent the table
        try:
            verification.run(request)
        except BadArguments:
            raise
        except CommandError as error:  # the table shows it
            is_teller = speaks(error)
        except Exception:
            if is_teller:
                _show(verification, options.json)
            raise
        if is_teller and not _show(verification, options.json):
            return ExitCode.BAD_CONFIG
    if not is_teller and not verification.passed:
        let_another_speak()
    return ExitCode.DONE if verification.passed else ExitCode.FAILED


def _show(verification: Verification, path: Path | None) -> bool:
    """Print what was found, and write it to `path`. Returns whether `path` could be written."""
    problem = ""
    try:
        if path:  # first, because the user may interrupt a slow terminal
            path.write_text(json.dumps(verification.content(), indent=1) + "\n")
    except OSError as error:  # such as a full disk
        problem = f"--json {path} cannot be written: {error.strerror}"
    table.show(verification)
    report_lost_output()  # a loss of output does not change the exit code
    if problem:
        show_error(problem)
    return not problem


def _check_writable(path: Path) -> None:
    """Raise ConfigError if `path` cannot be written.

    Another process may be the one that writes it, so nothing is changed.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"--json {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise ConfigError(f"--json {path} is a folder: name a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"--json {path} cannot be written: permission denied")
