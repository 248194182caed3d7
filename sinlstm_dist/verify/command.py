"""The command `verify`: what it prints, what it writes, and its exit code."""

import json
import os
import tempfile
from argparse import Namespace
from pathlib import Path

from sinlstm_dist.command import command, let_another_speak, speaks
from sinlstm_dist.errors import CommandError, ConfigError, ExitCode
from sinlstm_dist.processes.launcher import is_speaker
from sinlstm_dist.processes.stop import StopRequest
from sinlstm_dist.screen.console import (
    report_lost_output,
    show_error,
    show_sentence,
    show_table,
    show_text,
)
from sinlstm_dist.verify import faults
from sinlstm_dist.verify.bench import Asked
from sinlstm_dist.verify.collectives import as_text
from sinlstm_dist.verify.verification import BadArguments, Verdict, Verification
from sinlstm_dist.words import counted

SHOWN = 5  # problems per claim; the JSON file has all
COLOURS = {"PASS": "green", "FAIL": "bold red", "SKIP": "dim"}


@command("verify")
def main(options: Namespace) -> int:
    """Prove that this set of processes trains correctly."""
    fault = faults.find(options.inject) if options.inject else None
    asked = _asked(options)
    for flag, path in (("--json", options.json), ("--record", asked.record)):
        if path:
            _check_writable(flag, path)
    if asked.record:
        _check_replaceable(asked.record)
    verification = Verification(fault, options.config, asked)
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
    _print(verification)
    report_lost_output()  # a loss of output does not change the exit code
    if problem:
        show_error(problem)
    return not problem


def _print(verification: Verification) -> None:
    """Print the tables and the conclusion."""
    verdicts = verification.verdicts
    if verification.note:
        show_sentence(f"{verification.note}\n")
    figures = [as_text(row) for verdict in verdicts for row in verdict.figures]
    if figures:
        show_table(figures, numbers=figures[0])
        show_text("\n")
    show_table([_row(verdict) for verdict in verdicts], colours=COLOURS, wrap=True)
    seconds = verification.seconds
    failed = [verdict.claim for verdict in verdicts if verdict.result == "FAIL"]
    what = f"{', '.join(failed)} failed" if failed else "it was stopped"
    if verification.passed:
        is_one = verification.world_size == 1
        who = "this process trains" if is_one else "these processes train"
        num_skipped = sum(verdict.result == "SKIP" for verdict in verdicts)
        skipped = f"; {counted(num_skipped, 'claim')} skipped" if num_skipped else ""
        show_text(f"\nverified in {seconds:.0f} s: {who} correctly{skipped}\n")
    else:
        show_text(f"\nNOT verified, in {seconds:.0f} s: {what}\n")


def _row(verdict: Verdict) -> dict[str, str]:
    lines = list(verdict.problems[:SHOWN]) or [verdict.measured]
    if len(verdict.problems) > SHOWN:
        lines.append(f"and {len(verdict.problems) - SHOWN} more")
    if verdict.look_at:
        lines.append(f"look at: {verdict.look_at}")
    name = verdict.claim.replace(" and ", "\nand ")  # a narrow column leaves room for the others
    return {"claim": name, "": verdict.result, "measured": "\n".join(lines)}


def _asked(options: Namespace) -> Asked:
    """What the user asks for. Raises ConfigError for a number of processes that cannot be."""
    if options.processes is not None and options.processes < 1:
        raise ConfigError(f"--processes {options.processes}: must be a number from 1 on")
    return Asked(options.processes, options.record, options.against)


def _check_writable(flag: str, path: Path) -> None:
    """Raise ConfigError if `path`, the value of a flag, cannot be written.

    Another process may be the one that writes it, so nothing is changed.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"{flag} {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise ConfigError(f"{flag} {path} is a folder: name a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{flag} {path} cannot be written: permission denied")


def _check_replaceable(path: Path) -> None:
    """Raise ConfigError if the record cannot be written as a new file in place of `path`."""
    if path.exists() and not path.is_file():
        raise ConfigError(f"--record {path} is no regular file: name another")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()  # leaves nothing
    except OSError as error:
        why = error.strerror
        raise ConfigError(f"--record {path} cannot be written: {why}") from error
