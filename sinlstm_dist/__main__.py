"""The console script: `sinlstm-dist X ...` is `python -m sinlstm_dist.X ...`."""

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from sinlstm_dist.config import ConfigError, Parser
from sinlstm_dist.report import show_error

COMMANDS = ("train", "verify", "evaluate", "forecast", "plot", "compare", "export")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = Parser(prog="sinlstm-dist", description=__doc__)
    parser.add_argument(
        "command", metavar="|".join(COMMANDS), help="`sinlstm-dist COMMAND --help` says more"
    )
    try:
        command = parser.parse_args(arguments[:1]).command
        if command not in COMMANDS:
            raise ConfigError(f"there is no command {command}{_nearest(command)}")
    except ConfigError as error:
        show_error(str(error))
        return 2
    module = import_module(f"sinlstm_dist.{command}")
    return int(module.main(arguments[1:]))


def _nearest(command: str) -> str:
    nearest = difflib.get_close_matches(command, COMMANDS, n=1)
    return f": did you mean {nearest[0]}?" if nearest else f"; they are {', '.join(COMMANDS)}"


if __name__ == "__main__":
    sys.exit(main())
