"""Train one configuration after another in one start of the processes, which is the costly part.

    torchrun --nproc-per-node 2 tests/train_many.py runs.json

The file holds a list of settings such as `{"train.epochs": 3}`. The processes join once.
"""

import contextlib
import json
import sys
from pathlib import Path

from sinlstm_dist import train
from sinlstm_dist.config import load_config
from sinlstm_dist.processes.joining import join_world

with join_world(timeout_s=60, one_thread=True) as world:
    train.join_world = lambda **_: contextlib.nullcontext(world)
    for settings in json.loads(Path(sys.argv[1]).read_text()):
        assert train.train(load_config(overrides=settings)).outcome == "completed"
