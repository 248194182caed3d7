"""Draw the curves of runs, or the windows of a data set.

python -m sinlstm_dist.plot runs/default
python -m sinlstm_dist.plot runs/one runs/two --output both.png
python -m sinlstm_dist.plot data --config configs/noisy.toml
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from sinlstm_dist import program
from sinlstm_dist.command import exit_code_of
from sinlstm_dist.command_line import Parser, add_key_flags, parse_overrides
from sinlstm_dist.config import KEYS, load_config
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.gallery import draw_curves, draw_windows
from sinlstm_dist.processes.launcher import is_speaker
from sinlstm_dist.run.record import CURVES, WINDOWS
from sinlstm_dist.screen.console import show_text
from sinlstm_dist.screen.pictures import check_matplotlib

SETTABLE = [key for key in KEYS if key.startswith("data.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    if not is_speaker():
        return 0  # one process is enough
    return exit_code_of(functools.partial(_run, arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser = Parser(
        prog="sinlstm_dist.plot",
        description="Draw the curves of runs, or the windows of a data set.",
    )
    parser.add_argument("what", nargs="+", metavar="RUN_DIR|data", help='run folders, or "data"')
    parser.add_argument(
        "--output", metavar="PNG", help=f"default: {CURVES} in the run's folder, or here"
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file; for data only")
    add_key_flags(parser, SETTABLE)
    options, overrides = parse_overrides(parser, arguments)
    check_matplotlib()
    if options.what == ["data"]:
        output = Path(options.output or WINDOWS)
        draw_windows(load_config(options.config, overrides).data, output)
    elif options.config or overrides:
        raise ConfigError("--config and --data.* are for plot data: a run has its own settings")
    else:
        folders = [Path(what) for what in options.what]
        output = Path(options.output or (folders[0] / CURVES if len(folders) == 1 else CURVES))
        draw_curves(folders, output)
    show_text(f"written: {output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(program.run(main))
