"""What a process computes alone, inside a larger world, to compare it with what all compute."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sinlstm_dist.config import Config
from sinlstm_dist.data.steps import Split, StepSampler
from sinlstm_dist.gradient import OrderedGradient
from sinlstm_dist.job import Job, new_update
from sinlstm_dist.metrics import Totals
from sinlstm_dist.optimizers import copied
from sinlstm_dist.processes.world import World
from sinlstm_dist.reduction import totals_over


class Alone(World):
    """A world of this process only, inside a larger one: nothing in it is a collective."""

    def __init__(self, world: World) -> None:
        vars(self).update(vars(world))  # the same device and the same Accelerate
        self.size, self.rank, self.is_main = 1, 0, True
        self.hosts = [world.hosts[world.rank]]

    def sum(self, values: Tensor) -> Tensor:
        """See World."""
        return values


class WholeLoader:
    """Fetches whole batches in this process, without DataLoader and Accelerate."""

    def __init__(self, split: Split, sampler: StepSampler, world: World) -> None:
        self._split, self._sampler, self._world = split, sampler, world

    def __iter__(self) -> Iterator[Any]:
        for (share,) in self._sampler:
            yield self._world.to_device(self._split.shares[share])


class JobAlone:
    """A copy of a job, whose steps this process takes alone with whole batches.

    It starts from the job's weights and optimizer state, and cuts batches into the same pieces.

    Args:
        job: the job of all processes.
        config: of the job.
        world: all processes.
    """

    def __init__(self, job: Job, config: Config, world: World) -> None:
        self._world = Alone(world)
        self.model, optimizer = copied(job.task.model, job.task.optimizer)
        self.rows = job.rows.of(self.model)
        self.train, self.test = self._whole(job.train), self._whole(job.test)
        self.gradient = OrderedGradient(self.rows, plan=self.train.plan, peers=self._world)
        task = dataclasses.replace(job.task, model=self.model, optimizer=optimizer)
        self.update = new_update(task, self.rows, config, self.train.plan)

    def steps(self, num_steps: int) -> Iterator[Tensor]:
        """Take steps; yields the weights before, between and after: (G,) each."""
        yield weights_vector(self.model)
        batches = first_batches(self.train, num_steps, whole=self.rows.is_whole)
        for number, (epoch, step, batch) in enumerate(batches):
            self.gradient(batch, epoch=epoch, step=step, stop=False)
            self.update(number)
            yield weights_vector(self.model)

    def count_train(self) -> Totals:
        """The totals of the first epoch, all with the weights of now."""
        totals = Totals()
        for step, batch in self.train.batches(whole=self.rows.is_whole):
            totals += self.gradient(batch, epoch=0, step=step, stop=False).totals
        return totals

    def count_test(self) -> Totals:
        """The totals of the test samples."""
        return totals_over(self.rows, self.test, peers=self._world)

    def _whole(self, split: Split) -> Split:
        plan = dataclasses.replace(split.plan, world_size=1, rank=0)
        sampler = StepSampler(plan, steps_per_fetch=split.sampler.steps_per_fetch)
        loader = WholeLoader(split, sampler, self._world)
        return dataclasses.replace(split, plan=plan, sampler=sampler, loader=loader)


def first_batches(split: Split, num_steps: int, *, whole: bool) -> Iterator[tuple[int, int, Any]]:
    """Yield the first steps: the epoch, the number of the step in it, and the batch."""
    in_epoch = split.plan.num_steps
    for epoch in range(-(-num_steps // in_epoch)):
        for step, batch in split.batches(epoch=epoch, whole=whole):
            if epoch * in_epoch + step < num_steps:
                yield epoch, step, batch


def weights_vector(model: nn.Module) -> Tensor:
    """A copy of all parameters as one vector: (G,)"""
    return torch.cat([parameter.detach().float().flatten() for parameter in model.parameters()])


def gradient_vector(model: nn.Module) -> Tensor:
    """A copy of all parameters' gradients as one vector, 0 for one that has no gradient: (G,)"""
    gradients = (torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters())
    return torch.cat([gradient.float().flatten() for gradient in gradients])


def distance(weights: Tensor, others: Tensor) -> float:
    """The largest absolute difference of two tensors."""
    return float((weights - others).abs().max())
