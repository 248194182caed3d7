"""The console script: `sinlstm-dist X ...` is `python -m sinlstm_dist.X ...`."""

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module

from sinlstm_dist import early, status
from sinlstm_dist.command import as_program, exit_code_of
from sinlstm_dist.command_line import choose, parse


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; returns the process's exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    return as_program(lambda: exit_code_of(lambda: _run(given)))


def _run(given: Sequence[str]) -> int:
    name, arguments = choose(given), given[1:]
    parse(name, arguments)  # first: help and mistakes need none of the slow imports
    early.prepare()  # again: what it imports is large
    status.say_that_torch_loads(name)
    module = import_module(f"sinlstm_dist.{name}")
    return as_program(partial(module.main, arguments))


if __name__ == "__main__":
    sys.exit(main())
