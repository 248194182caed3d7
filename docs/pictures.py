"""Make the pictures of docs/images/ from real runs.

    python docs/pictures.py
    python docs/pictures.py terminal.svg --into /tmp/pictures

It trains what the pictures show, a minute's work, and needs the extra `docs`.
(benchmarks/scaling.py makes the picture of how cost grows.)
"""

import argparse
import functools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from terminal import picture_of

ROOT = Path(__file__).parents[1]
RUNS = {
    "article": ["--config configs/article.toml"],
    "default": [""],
    "early": ["--train.epochs 45"],
    "faster": ["--optim.lr 0.05"],
    "noisy": ["--data.noise 0.1 --train.epochs 40", "--data.noise 0.1"],
    "sunspots": ["--config configs/sunspots.toml"],
}  # the flags of each start
COMPARED = {"article": "the article's program", "early": "the default run, stopped early"}
PALETTE = 128  # colours; a file with all of them is three times as large


def main() -> None:
    """Make all pictures, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", nargs="*", metavar="FILE", help=", ".join(PICTURES))
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "images", metavar="FOLDER")
    options = parser.parse_args()
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    options.into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as runs:
        for file in options.pictures or PICTURES:
            PICTURES[file](options.into / file, Path(runs))


def draw_terminal(picture: Path, runs: Path) -> None:
    """The terminal of the default run, after a quarter of its epochs."""

    def is_a_quarter(text: str) -> bool:
        found = re.search(r"epoch +(\d+)/(\d+)", text)
        return found is not None and 4 * int(found[1]) >= int(found[2])

    folder = runs / "terminal"
    folder.mkdir()
    drawn = picture_of("python -m sinlstm_dist.train", cwd=folder, when=is_a_quarter)
    picture.write_text(drawn, encoding="utf-8")


def draw(command: str, picture: Path, runs: Path) -> None:
    """A picture that a command of this package draws."""
    for run in re.findall(r"RUNS/(\w+)", command):
        train(run, runs)
    words = command.replace("RUNS", str(runs)).split()
    call("sinlstm_dist", *words, "--output", str(picture.resolve()))
    shrink(picture)


def draw_out_of_step(picture: Path, runs: Path) -> None:
    """Two models whose accuracy is 1.0, each fed its own predictions."""
    from sinlstm_dist.run.record import read_run
    from sinlstm_dist.screen.pictures import draw_waves, drawing, whole_numbers
    from sinlstm_dist.trained import read_trained

    with drawing(picture, heights=(1, 1), size=(8, 5)) as panels:
        for axes, (run, words) in zip(panels, COMPARED.items(), strict=True):
            train(run, runs)
            last = read_run(runs / run).history[-1]
            title = f"{words}, epoch {last['epoch']:,}: test accuracy {last['test_accuracy']:.1f}"
            draw_waves(axes, read_trained(runs / run).forecast(), title=title, quantity="value")
        panels[1].get_legend().remove()
        whole_numbers(panels[1], "time steps after the seed window")
    shrink(picture)


def train(run: str, runs: Path) -> None:
    """Train a run, if it is not there yet."""
    if not (runs / run).exists():
        for flags in RUNS[run]:
            call("sinlstm_dist.train", *flags.split(), "--output.dir", str(runs / run))


def call(module: str, *arguments: str) -> None:
    """Run a command of this package."""
    words = [sys.executable, "-m", module, *arguments]
    subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def shrink(picture: Path) -> None:
    """Give a PNG a palette."""
    from PIL import Image

    with Image.open(picture) as image:
        small = image.convert("RGB").quantize(PALETTE)
    small.save(picture, optimize=True)


PICTURES = {
    "terminal.svg": draw_terminal,
    "windows.png": functools.partial(draw, "plot data --data.noise 0.05"),
    "curves.png": functools.partial(draw, "plot RUNS/default RUNS/noisy RUNS/faster"),
    "forecast.png": functools.partial(draw, "forecast RUNS/article --steps 600"),
    "sunspots.png": functools.partial(draw, "forecast RUNS/sunspots --from test --steps 53"),
    "future.png": functools.partial(draw, "forecast RUNS/sunspots"),
    "out-of-step.png": draw_out_of_step,
}


if __name__ == "__main__":
    main()
