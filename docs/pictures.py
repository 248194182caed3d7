"""Make the pictures of docs/images/ from real runs.

    python docs/pictures.py
    python docs/pictures.py terminal --into /tmp/pictures

It trains what the pictures show, a minute's work, and needs the extra `docs`.
(benchmarks/scaling.py makes the picture of how cost grows.)
"""

import argparse
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
    "faster": ["--optim.lr 0.05"],
    "noisy": ["--config configs/noisy.toml --train.epochs 40", "--config configs/noisy.toml"],
    "sunspots": ["--config configs/sunspots.toml"],
}  # the flags of each start
COMMANDS = {
    "windows": "plot data --data.noise 0.05",
    "curves": "plot RUNS/default RUNS/noisy RUNS/faster",
    "forecast": "forecast RUNS/article --steps 600",
    "sunspots": "forecast RUNS/sunspots --steps 53",
}  # that draw a picture
COMPARED = {"article": "the article's final program", "default": "the default run"}
PALETTE = 128  # colours; a file with all of them is three times as large


def main() -> None:
    """Make all pictures, or those that are named."""
    makers = dict.fromkeys(COMMANDS, draw) | {"out-of-step": draw_out_of_step}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ["terminal", *makers]
    parser.add_argument("pictures", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "images", metavar="FOLDER")
    options = parser.parse_args()
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    options.into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as runs:
        for name in options.pictures or names:
            if name == "terminal":
                draw_terminal(options.into / "terminal.svg")
            else:
                makers[name](name, options.into / f"{name}.png", Path(runs))
                shrink(options.into / f"{name}.png")


def draw_terminal(picture: Path) -> None:
    """The terminal of the default run, after a quarter of its epochs."""

    def is_a_quarter(text: str) -> bool:
        found = re.search(r"epoch +(\d+)/(\d+)", text)
        return found is not None and 4 * int(found[1]) >= int(found[2])

    with tempfile.TemporaryDirectory() as empty:
        drawn = picture_of("python -m sinlstm_dist.train", cwd=Path(empty), when=is_a_quarter)
    picture.write_text(drawn, encoding="utf-8")


def draw(name: str, picture: Path, runs: Path) -> None:
    """A picture that a command of this package draws."""
    command = COMMANDS[name]
    for run in re.findall(r"RUNS/(\w+)", command):
        train(run, runs)
    words = command.replace("RUNS", str(runs)).split()
    call("sinlstm_dist", *words, "--output", str(picture.resolve()))


def draw_out_of_step(name: str, picture: Path, runs: Path) -> None:
    """Two models whose accuracy is 1.0, each fed with its own predictions."""
    from sinlstm_dist.run.record import read_run
    from sinlstm_dist.screen.pictures import draw_waves, drawing, whole_numbers
    from sinlstm_dist.trained import read_trained

    with drawing(picture, heights=(1, 1), size=(8, 5)) as panels:
        for axes, (run, words) in zip(panels, COMPARED.items(), strict=True):
            train(run, runs)
            last = read_run(runs / run).history[-1]
            title = f"{words}, epoch {last['epoch']:,}: test accuracy {last['test_accuracy']:.1f}"
            draw_waves(axes, read_trained(runs / run).forecast(), title=title, quantity="")
        panels[1].get_legend().remove()
        whole_numbers(panels[1], "time steps after the seed window")


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


if __name__ == "__main__":
    main()
