"""Train twice with each reduction, then write the names of the threads that are left.

    torchrun --nproc-per-node 2 tests/train_and_look.py threads '{"train.epochs": 2}'

Writes threads-0, threads-1, ..., and the run folders ordered-0, ordered-1, ddp-0 and ddp-1.
"""

import itertools
import json
import os
import sys
from pathlib import Path

from sinlstm_dist.config import load_config
from sinlstm_dist.train import train

for reduction, number in itertools.product(("ordered", "ddp"), range(2)):
    run = {"train.reduction": reduction, "output.dir": f"{reduction}-{number}"}
    settings = {**json.loads(sys.argv[2]), **run}
    assert train(load_config(overrides=settings)).outcome == "completed"
names = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
Path(f"{sys.argv[1]}-{os.environ['RANK']}").write_text("\n".join(names))
