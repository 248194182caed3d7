"""Turn errors and outcomes into exit codes, and print each error once."""

import contextlib
import time
from collections.abc import Callable

from sinlstm_dist.errors import ConfigError, LostProcess, RunError, StoppedEarly
from sinlstm_dist.processes.launcher import have_met, is_node_speaker, is_speaker, rank
from sinlstm_dist.run.record import Summary
from sinlstm_dist.screen.console import show_error, show_text

FAILED, BAD_CONFIG, BELOW_TARGET, STOPPED = 1, 2, 3, 75
# A launcher ends all processes when the first one has left, also one that has not spoken yet.
LATE_START_S = 30.0  # by which one process may be at its error later than another, before they met
LATE_S = 2.0  # and afterwards


def exit_code_of(work: Callable[[], int]) -> int:
    """Do a command's work; returns its exit code, or the one of the error that ended it."""
    try:
        return work()
    except (ConfigError, RunError) as error:
        tell(str(error))
        return BAD_CONFIG if isinstance(error, ConfigError) else FAILED
    except LostProcess as error:
        tell(str(error), speaks=error.is_speaker)
        return FAILED
    except StoppedEarly as stop:
        if stop.is_speaker:
            show_text(f"stopped: {stop}\n")
        else:
            let_another_speak(LATE_S)  # a request reaches all at about the same time
        return STOPPED


def exit_code_of_run(summary: Summary) -> int:
    """The exit code of a run that ended so."""
    outcomes = {"completed": 0, "stopped": STOPPED, "failed": FAILED}
    return BELOW_TARGET if summary.below_target else outcomes[summary.outcome]


def tell(message: str, *, speaks: bool | None = None) -> None:
    """Print the error that ends this process, or wait while another process prints it.

    Args:
        speaks: whether it is; unless given, one process per node shows what went wrong before all
            processes have met, as that may be so on this node alone, and rank 0 what did later.
    """
    may_be_its_own = speaks is None and not have_met()
    if speaks is None:
        speaks = is_speaker() if have_met() else is_node_speaker()
    if speaks:
        show_error(message)
    else:
        let_another_speak()
        if may_be_its_own:  # nobody has ended this process, so nobody else may have the problem
            show_error(f"rank {rank()}: {message}")


def let_another_speak(at_most_s: float = LATE_START_S) -> None:
    """Stay until the launcher ends this process, since another one has spoken; or for a while."""
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(LATE_S if have_met() else at_most_s)
