"""How every command ends: with its exit code, and each error told once, by one process."""

from collections.abc import Callable

from sinlstm_dist.config import ConfigError
from sinlstm_dist.launcher import is_speaker
from sinlstm_dist.roll_call import LostProcess, RunError, StoppedEarly
from sinlstm_dist.screen import show_error, show_text

FAILED, BAD_CONFIG, STOPPED = 1, 2, 75


def exit_code_of(work: Callable[[], int]) -> int:
    """Do a command's work; returns its exit code, or the one of the error that ended it."""
    try:
        return work()
    except (ConfigError, RunError) as error:
        if is_speaker():
            show_error(str(error))
        return BAD_CONFIG if isinstance(error, ConfigError) else FAILED
    except LostProcess as error:
        if error.is_speaker:
            show_error(str(error))
        return FAILED
    except StoppedEarly as stop:
        if stop.is_speaker:
            show_text(f"stopped: {stop}\n")
        return STOPPED
