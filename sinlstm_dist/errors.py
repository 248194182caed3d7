"""The errors that end a command and are told without a traceback."""


class ConfigError(Exception):
    """Something that the user must change; exit code 2."""


class Disagreement(ConfigError):
    """Processes that must be alike are not; all of them raise it."""


class RunError(Exception):
    """The run cannot go on, for a reason that all processes know; exit code 1."""


class DriftedApart(RunError):
    """Processes that computed the same bits no longer do; all of them raise it.

    Args:
        what: who has what, after which step.
        continues: how the run goes on without the state that differs.
    """

    def __init__(self, what: str, *, continues: str) -> None:
        super().__init__(f"{what}; no checkpoint was written; {continues}")
        self.what = what


class LostProcess(Exception):
    """Another process died, hangs, failed or cannot be reached.

    Args:
        message: names ranks and hosts.
        is_speaker: whether this is the survivor that tells the user.
    """

    def __init__(self, message: str, *, is_speaker: bool) -> None:
        super().__init__(message)
        self.is_speaker = is_speaker


class StoppedEarly(Exception):
    """A request to stop came before all processes were there: nothing was begun, nothing is saved.

    Args:
        reason: what asked.
        is_speaker: whether this process tells the user.
    """

    def __init__(self, reason: str, *, is_speaker: bool) -> None:
        super().__init__(f"{reason} before all processes had joined; nothing was begun")
        self.is_speaker = is_speaker
