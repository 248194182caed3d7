"""The same through this package: the hash of 3_ordered.py, on any number of processes.

    python examples/4_package.py --epochs 1
    torchrun --nproc-per-node 2 --local-addr 127.0.0.1 examples/4_package.py --epochs 1

What the package adds: a run folder with checkpoints, from which a killed run goes on with the same
bits; a check that all processes compute the same bits; a compiled LSTM, which is some ten times as
fast and rounds in another way (leave out model.lstm to use it). The package's own `weights` is the
hash of the file that it wrote; the last line has the hash of the weights alone, as in 3_ordered.py.
"""

import argparse
import hashlib

from torch import nn

from sinlstm_dist.config import load_config
from sinlstm_dist.model import Predictor
from sinlstm_dist.processes.launcher import check_launch
from sinlstm_dist.train import train


def digest(model: nn.Module) -> str:
    """Hash the bits of all weights: the first 16 digits of their SHA-256."""
    weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    return hashlib.sha256(weights).hexdigest()[:16]


def main() -> None:
    """Train in a run folder, and print the hash of its final weights."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=100)
    arguments = parser.parse_args()
    launch = check_launch()  # as torchrun, MPI or another launcher says
    config = load_config(
        overrides={
            "data.test_phase": 0.0,  # the article's test windows, which are train windows
            "model.lstm": "torch",  # torch's LSTM, as in the other examples
            "train.epochs": arguments.epochs,
            "output.dir": f"runs/package-{launch.size}-{arguments.epochs}",
        }
    )
    train(config)
    if launch.rank == 0:
        print(f"hash of 3_ordered.py: {digest(Predictor.from_pretrained(config.output.dir))}")


if __name__ == "__main__":
    main()
