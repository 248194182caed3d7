"""Draw the curves of runs, or the windows of a data set.

    python -m sinlstm_dist.plot runs/default
    python -m sinlstm_dist.plot runs/one runs/two --output both.png
    python -m sinlstm_dist.plot data --config configs/noisy.toml

The picture of one run goes to its folder, any other to the working directory.
"""

import sys
from argparse import Namespace
from pathlib import Path

from sinlstm_dist.command import as_program, command
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.gallery import draw_curves, draw_windows
from sinlstm_dist.run.record import CURVES, WINDOWS
from sinlstm_dist.screen.console import show_text
from sinlstm_dist.screen.pictures import check_matplotlib


@command("plot", by_one=True)
def main(options: Namespace) -> int:
    """Draw the curves of runs, or the windows of a data set."""
    check_matplotlib()
    if options.what == ["data"]:
        if build := options.config.task.build:
            raise ConfigError(
                f"plot data: {options.config_file} is for task.build={build}: only the built-in "
                "task has windows to draw"
            )
        output = Path(options.output or WINDOWS)
        draw_windows(options.config.data, output)
    elif options.config_file or options.keys:
        raise ConfigError("--config and --data.* are for plot data: a run has its own settings")
    else:
        folders = [Path(what) for what in options.what]
        output = Path(options.output or (folders[0] / CURVES if len(folders) == 1 else CURVES))
        draw_curves(folders, output)
    show_text(f"written: {output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(as_program(main))
