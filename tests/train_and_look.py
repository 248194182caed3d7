"""Train once and again, then write the names of the threads that this process still has.

    torchrun --nproc-per-node 2 tests/train_and_look.py threads '{"train.reduction": "ddp"}'

Writes threads-0, threads-1, ..., and the run folders 0 and 1.
"""

import json
import os
import sys
from pathlib import Path

from sinlstm_dist.config import load_config
from sinlstm_dist.train import train

for number in range(2):
    settings = {**json.loads(sys.argv[2]), "output.dir": str(number)}
    assert train(load_config(overrides=settings)).outcome == "completed"
names = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
Path(f"{sys.argv[1]}-{os.environ['RANK']}").write_text("\n".join(names))
