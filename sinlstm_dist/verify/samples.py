"""Check that all processes together draw each sample once, and that it is the same everywhere."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from sinlstm_dist.agreement import digest
from sinlstm_dist.data.steps import Split, is_by_array
from sinlstm_dist.task import Task
from sinlstm_dist.verify.bench import Bench, Finding
from sinlstm_dist.words import counted

EPOCHS = 2  # for which samples are counted
SHOWN = 3  # wrong samples per message list
OWN_LOOK_AT = (
    "your data sets: a sample may depend on its index and on what the generators of torch, numpy "
    "and random give in __getitem__, which are seeded for each sample, and on nothing else"
)


class Numbered(Dataset[Any]):
    """A data set whose samples have their own index as one more part, the last."""

    def __init__(self, data: Any) -> None:
        self._data, self.by_array = data, is_by_array(data)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: Any) -> Any:
        sample = self._data[index]
        if isinstance(index, np.ndarray):  # a batch: a tuple of tensors
            return (*sample, torch.from_numpy(index))
        return sample, index

    def fingerprint(self) -> str:
        """See SeriesDataset."""
        return str(self._data.fingerprint())


def numbered(task: Task) -> Task:
    """The task with numbered samples, to be counted and not to be trained."""
    return dataclasses.replace(
        task,
        train_data=Numbered(task.train_data),
        test_data=Numbered(task.test_data),
        totals=lambda model, batch: task.totals(model, batch[0]),
    )


def check_data(bench: Bench) -> Finding:
    """In each epoch all processes together draw each sample exactly once, the same everywhere."""
    job = bench.build(adapt=numbered)
    problems = []
    for epoch in range(EPOCHS):
        problems += _miscounted(bench, job.train, f"train sample, epoch {epoch + 1}", epoch=epoch)
    problems += _miscounted(bench, job.test, "test sample", epoch=0)
    plan = job.train.plan
    measured = (
        f"each of {counted(plan.size, 'train sample')} drawn once in each of {EPOCHS} epochs, "
        f"{plan.num_samples(plan.num_steps - 1)} in the last batch of {plan.global_batch_size}; "
        f"each of {counted(len(job.test.data), 'test sample')} once; the same values "
        + ("when fetched again" if bench.is_one else "for each process")
    )
    return Finding(measured, problems, look_at=OWN_LOOK_AT if bench.is_own else None)


def _miscounted(bench: Bench, split: Split, what: str, *, epoch: int) -> list[str]:
    """What is wrong with the samples of an epoch. Collective: yes."""
    world, size = bench.world, len(split.data)
    counts = torch.zeros(size, dtype=torch.int64, device=world.device)
    other = []
    for _, batch in split.batches(epoch=epoch):
        for piece in batch:
            if piece is None:
                continue
            indices = piece[-1].cpu()
            counts += torch.bincount(indices, minlength=size).to(counts.device)
            if digest(piece) != digest(split.some(indices.numpy(), [len(indices)], epoch=epoch)[0]):
                other += indices.tolist()
    drawn = enumerate(world.sum(counts).tolist())
    return [
        *_first([f"{what}: number {i} drawn {n} times" for i, n in drawn if n != 1], what),
        *_first(
            [f"{what}: number {i} has other values when it is fetched again" for i in other], what
        ),
        *_first(_differing(bench, split, what, epoch=epoch), what),
    ]


def _differing(bench: Bench, split: Split, what: str, *, epoch: int) -> list[str]:
    """The samples that this process fetches with other values than rank 0. Collective: yes."""
    size = len(split.data)
    samples = split.some(np.arange(size), [1] * size, epoch=epoch)
    digests = [int(digest(sample)[:15], 16) for sample in samples]  # of 60 bits: an int64
    mine = torch.tensor([digests], dtype=torch.int64, device=bench.world.device)
    everyones = bench.world.gather(mine)  # (world_size, size)
    differing = (everyones[0] != mine[0]).nonzero().flatten().tolist()
    return [f"{what}: number {i} has other values than on rank 0" for i in differing]


def _first(problems: Sequence[str], what: str) -> list[str]:
    """The first problems, and how many more there are."""
    more = [f"{what}: {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return [*problems[:SHOWN], *more]
