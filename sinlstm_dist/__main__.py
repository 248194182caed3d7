"""The console script: `sinlstm-dist X ...` is `python -m sinlstm_dist.X ...`."""

import sys
from collections.abc import Sequence
from importlib import import_module

from sinlstm_dist import early, program
from sinlstm_dist.command_line import Parser
from sinlstm_dist.config import did_you_mean
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.screen.console import show_error

COMMANDS = ("train", "verify", "evaluate", "forecast", "plot", "compare", "export")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; returns the process's exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    return program.run(lambda: _run(given))


def _run(arguments: Sequence[str]) -> int:
    parser = Parser(prog="sinlstm-dist", description=__doc__)
    parser.add_argument(
        "command", metavar="|".join(COMMANDS), help="`sinlstm-dist COMMAND --help` says more"
    )
    try:
        command = parser.parse_args(arguments[:1]).command
        if command not in COMMANDS:
            known = f"; they are {', '.join(COMMANDS)}"
            raise ConfigError(
                f"there is no command {command}{did_you_mean(command, COMMANDS) or known}"
            )
    except ConfigError as error:
        show_error(str(error))
        return 2
    early.prepare()  # again: what it imports is large
    module = import_module(f"sinlstm_dist.{command}")
    return program.run(lambda: module.main(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main())
