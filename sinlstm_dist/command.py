"""How a command runs: its errors are told once, and become exit codes."""

import atexit
import contextlib
import signal
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence

from sinlstm_dist import status
from sinlstm_dist.command_line import parse
from sinlstm_dist.errors import CommandError, ExitCode, StoppedEarly
from sinlstm_dist.processes.launcher import have_met, is_node_speaker, is_speaker, rank
from sinlstm_dist.run.record import Summary
from sinlstm_dist.screen.console import report_lost_output, show_error, show_text, show_traceback

# A launcher ends all processes as soon as one has exited, even if that one has told nothing yet.
LATE_START_S = 30.0  # at most between two processes' errors, before the processes have met
LATE_S = 2.0  # and afterwards


def command(
    name: str, *, by_one: bool = False
) -> Callable[[Callable[[Namespace], int]], Callable[..., int]]:
    """Turn the work of a command into its `main(arguments=None)`, which returns the exit code.

    Args:
        name: of the command, in `command_line.COMMANDS`.
        by_one: whether one process does the work and the others do nothing.
    """

    def decorate(work: Callable[[Namespace], int]) -> Callable[..., int]:
        def main(arguments: Sequence[str] | None = None) -> int:
            if by_one and not is_speaker():
                return ExitCode.DONE
            return exit_code_of(lambda: _do(work, parse(name, arguments)))

        return main

    return decorate


def _do(work: Callable[[Namespace], int], options: Namespace) -> int:
    if status.is_saying():  # that torch is being loaded
        status.say("working ...")
    return work(options)


def exit_code_of(work: Callable[[], int]) -> int:
    """Do a command's work. Returns its exit code, or that of the error that ended it."""
    try:
        return work()
    except SystemExit as leaving:  # argparse's, after --help
        return int(leaving.code or 0)
    except StoppedEarly as stop:
        if speaks(stop):
            show_text(f"stopped: {stop}\n")
        else:
            let_another_speak(LATE_S)  # a request reaches all at about the same time
        return stop.exit_code
    except CommandError as error:
        tell(error)
        return error.exit_code


def exit_code_of_run(summary: Summary) -> ExitCode:
    """The exit code of a run that ended so."""
    outcomes = {
        "completed": ExitCode.DONE, "stopped": ExitCode.STOPPED, "failed": ExitCode.FAILED
    }  # fmt: skip
    return ExitCode.BELOW_TARGET if summary.below_target else outcomes[summary.outcome]


def speaks(error: CommandError) -> bool:
    """Whether this process tells the user about an error.

    Where the processes have not agreed on it: rank 0 after they have met, and before that one
    process per node, because the error may be of this node alone.
    """
    if error.is_speaker is not None:
        return error.is_speaker
    return is_speaker() if have_met() else is_node_speaker()


def tell(error: CommandError) -> None:
    """Print the error that ends this process, or wait while another process prints it."""
    if speaks(error):
        show_error(str(error))
        return
    may_be_its_own = error.is_speaker is None and not have_met()
    let_another_speak()
    if may_be_its_own:  # nobody has ended this process, so the others may not have the problem
        show_error(f"rank {rank()}: {error}")


def let_another_speak(at_most_s: float = LATE_START_S) -> None:
    """Wait for the launcher to end this process, which it does when another one has exited."""
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(LATE_S if have_met() else at_most_s)


def as_program(main: Callable[[], int]) -> int:
    """Call a command's `main` as the last thing that this process does.

    A reader of standard output that leaves early (`| head`) changes nothing.

    Returns:
        the process's exit code: that of `main`; 130 after Ctrl-C; 1 if it was to be 0 but
        standard output could not be written, as on a full disk.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as `early` left it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    code = _code_of(main)
    status.erase()
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # `code` is known by then
    return ExitCode.FAILED if report_lost_output() and code == 0 else code


def _code_of(main: Callable[[], int]) -> int:
    try:
        return main()
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception:
        show_traceback(traceback.format_exc())
        return ExitCode.FAILED
