"""A loop over an ordinary data set, in place of a training, for tests of a loader's workers.

python tests/with_workers.py NUM_WORKERS EPOCHS

Each process prints a line when its workers run, and at the end: with a hash of all pieces, or why
it stopped. Its folder `held` is locked like a run's.
"""

import functools
import hashlib
import os
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from torch.utils.data._utils import worker

from sinlstm_dist.command import exit_code_of
from sinlstm_dist.data.steps import Split, deal_out
from sinlstm_dist.plan import Plan, indices_at
from sinlstm_dist.processes.joining import join_world
from sinlstm_dist.processes.stop import StopRequest
from sinlstm_dist.processes.world import World
from sinlstm_dist.run.hold import Hold

SIZE, EPOCHS = 103, int(sys.argv[2])
worker.MP_STATUS_CHECK_INTERVAL = 1e6  # torch's own watch for a run that was killed: seconds


class Augmented(Dataset):
    """Samples that draw from all generators; sample 7 fails if FAILS is set."""

    def __getitem__(self, index: int) -> dict[str, object]:
        if index == 7 and "FAILS" in os.environ:
            raise KeyError("no such picture")
        noise = torch.randn(3) + float(np.random.rand())
        return {"index": index, "noise": noise, "turn": random.random()}


def open_split(world: World) -> Split:
    split = deal_out(
        Augmented(), Plan(SIZE, 10, 8, world.size, world.rank),
        order=functools.partial(indices_at, seed=1, size=SIZE), seed=5,
        num_workers=int(sys.argv[1]),
    )  # fmt: skip
    return replace(split, loader=world.accelerator.prepare(split.loader))


def digest(piece: dict[str, torch.Tensor] | None) -> int:
    if piece is None:
        return 0
    content = b"".join(tensor.numpy().tobytes() for tensor in piece.values())
    return int.from_bytes(hashlib.sha256(content).digest()[:6], "big")


def loop() -> int:
    with StopRequest() as request, join_world(timeout_s=60, one_thread=True) as world:
        if world.is_main:
            Hold(Path("held")).take()
        split, found = open_split(world), []
        for epoch in range(EPOCHS):
            for step, pieces in split.batches(epoch=epoch):
                own = torch.zeros(9).double()  # a digest of each piece, and the request to stop
                own[8] = bool(request.reason)
                for number, piece in zip(split.plan.owned(world.rank), pieces, strict=True):
                    own[number] = digest(piece)
                *digests, stops = world.sum(own).tolist()
                found.append(digests)
                if (epoch, step) == (0, 1):
                    print("begun", world.rank, os.getpid(), flush=True)
                if stops:
                    print("stopped", world.rank, flush=True)
                    return 0
    whole = hashlib.sha256(str(found).encode()).hexdigest()
    print(f"ended {whole}\n", end="", flush=True)  # in one piece
    return 0


sys.exit(exit_code_of(loop))
