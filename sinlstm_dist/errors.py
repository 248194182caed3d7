"""The errors that end a command without a traceback, and the exit codes."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended, for shells and job scripts."""

    DONE = 0
    FAILED = 1
    BAD_CONFIG = 2  # the user's configuration or arguments
    BELOW_TARGET = 3  # trained, but below train.target_accuracy
    STOPPED = 75  # on request, with a checkpoint to continue from; EX_TEMPFAIL of sysexits.h
    INTERRUPTED = 130  # by Ctrl-C; a shell's 128 + SIGINT


def said(error: Exception) -> str:
    """An error's kind and message; of a data loader's worker, whose message is a traceback, the end
    of that.
    """
    text = f"{type(error).__name__}: {error}"
    return text.rstrip().rpartition("\n")[2] if "\nOriginal Traceback" in text else text


class CommandError(Exception):
    """An error whose message is written for the user.

    Args:
        message: what was found, what is needed, what to do.
        is_speaker: whether this process tells the user; None if the processes cannot have agreed
            on who does.
    """

    exit_code = ExitCode.FAILED

    def __init__(self, message: str, *, is_speaker: bool | None = None) -> None:
        super().__init__(message)
        self.is_speaker = is_speaker


class ConfigError(CommandError):
    """The user must change something; the message says what, one problem per line."""

    exit_code = ExitCode.BAD_CONFIG


class MissingPackage(ConfigError):
    """An optional feature needs a package that is not installed.

    Args:
        feature: what needs it, such as a flag or a key.
        package: its name.
        install: what pip installs it by, such as `sinlstm-dist[plot]`.
    """

    def __init__(self, feature: str, *, package: str, install: str) -> None:
        super().__init__(f"{feature} needs the package {package}: pip install '{install}'")


class Disagreement(ConfigError):
    """The processes differ where they must be alike. All of them raise it."""


class RunError(CommandError):
    """The run cannot go on, for a reason that all processes know."""


class DriftedApart(RunError):
    """The processes no longer compute the same bits. All of them raise it.

    Args:
        what: who has what, after which step.
        continues: how the run goes on without the state that differs.
    """

    def __init__(self, what: str, *, continues: str) -> None:
        super().__init__(f"{what}; no checkpoint was written; {continues}")
        self.what = what


class LostProcess(CommandError):
    """Another process died, hangs, failed or cannot be reached.

    The message names ranks and hosts. One of the survivors tells the user.
    """


class StoppedEarly(CommandError):
    """A request to stop came before all processes had joined, so nothing was begun or saved.

    Args:
        reason: what asked.
        is_speaker: whether this process tells the user.
    """

    exit_code = ExitCode.STOPPED

    def __init__(self, reason: str, *, is_speaker: bool) -> None:
        message = f"{reason} before all processes had joined; nothing was begun"
        super().__init__(message, is_speaker=is_speaker)
