"""Check weights against known ones: those that every CPU computes, and those of a record."""

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn

from sinlstm_dist import lstm
from sinlstm_dist.agreement import digest
from sinlstm_dist.arithmetic import arithmetic, changes
from sinlstm_dist.config import Config, load_config
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.golden import GOLDEN, weights_digest
from sinlstm_dist.job import Job
from sinlstm_dist.processes.world import World
from sinlstm_dist.verify import record
from sinlstm_dist.verify.alone import Alone, JobAlone
from sinlstm_dist.verify.bench import Bench, Finding
from sinlstm_dist.verify.record import Record
from sinlstm_dist.verify.running import run_job, runs_folder
from sinlstm_dist.verify.training import most_steps
from sinlstm_dist.words import counted, first_of

Digests = Mapping[str, str]  # of weights, by configuration

KNOWN = {name: golden.digest for name, golden in GOLDEN.items()}
STEPS = 20  # of each configuration in a record
YOURS, EACH = "this configuration", "each process alone"
ONE_NODE = "that node's CPU and memory; its compiled kernel; an edited package"


def check_golden(bench: Bench) -> Finding:
    """All processes together, and each one alone, end with the known weights."""
    if reason := _no_known_weights(bench):
        return Finding(reason, applies=False)
    together = _digests_together(bench)
    problems = []
    if differing := _differing(together, KNOWN):
        who = "this process" if bench.is_one else "all processes together"
        problems.append(f"{who}: other weights than the known ones ({differing})")
    measured = f"the known weights, SHA-256: {counted(len(together), 'configuration')}"
    if bench.is_one:
        return Finding(measured, problems)
    alone = _alone_apart(bench, _digests_alone(bench), KNOWN)
    problems += [f"{who}: other weights than the known ones ({what})" for who, what in alone]
    measured = f"{measured} on all processes together, {len(KNOWN)} on each process alone"
    is_of_some = bool(alone) and alone[0][0] != EACH
    return Finding(measured, problems, look_at=ONE_NODE if is_of_some else None)


def unlike_known(bench: Bench) -> list[str]:
    """Which of processes that differ do not compute the known weights alone, a line for each.

    Collective: yes.
    """
    if _no_known_weights(bench):
        return []
    alone = _alone_apart(bench, _digests_alone(bench), KNOWN)
    return [f"{who}: other weights than the known ones ({what})" for who, what in alone]


def check_record(bench: Bench) -> Finding:
    """Each process alone computes the weights of a record, or those of a new one."""
    world, path, recorded = bench.world, bench.asked.record, bench.recorded
    here = _new_record(bench)
    expected = recorded.digests if recorded else world.on_main(lambda: here.digests)
    other_than = recorded.source if recorded else "rank 0"
    clues = changes(recorded.arithmetic, here.arithmetic) if recorded else []
    problems = [
        f"{who}: other weights than {'; '.join([f'{other_than} ({what})', *clues])}"
        for who, what in _alone_apart(bench, here.digests, expected)
    ]
    who = "this process" if bench.is_one else EACH
    measured = f"{counted(len(here.digests), 'configuration')} on {who}"
    if recorded:
        measured += f": the weights of {recorded.source}"
    if path and not problems:
        world.on_main(lambda: here.write(path))
        measured += f"; written to {path}"
    return Finding(measured, problems)


def read_record(bench: Bench) -> Record | None:
    """What `asked.against` holds, if it is given and tells what these processes must compute.

    Raises:
        ConfigError: it does not.

    Collective: yes.
    """
    path = bench.asked.against
    if path is None:
        return None
    recorded = Record.model_validate(
        bench.world.on_main(lambda: record.read(path).model_dump()), strict=True
    )
    reasons = bench.world.gather_json(recorded.refuse(_facts(bench)))
    for rank, reason in enumerate(reasons):
        if reason:
            where = "" if bench.is_one or all(reasons) else f" on {bench.name(rank)}"
            raise ConfigError(f"--against {path} {reason}{where}: write another with --record")
    return recorded


def _no_known_weights(bench: Bench) -> str:
    """Why the known weights say nothing about these processes; "" if they do."""
    device = bench.world.device.type
    if device != "cpu":
        return f"known are the weights of CPUs, and here is {device}: see --record and --against"
    choice = lstm.choose(
        bench.config.model.lstm, device_type=device, input_size=1, hidden_size=1, num_layers=1
    )
    if choice.name != "fused":
        return (
            f"known are the weights of the compiled kernel, and here is nn.LSTM ({choice.reason})"
        )
    return ""


def _digests_together(bench: Bench) -> dict[str, str]:
    """Of runs on all processes, where there are pieces for all of them. Collective: yes."""
    digests = {}
    with runs_folder(bench.world) as folder:
        for name, golden in GOLDEN.items():
            config = load_config(overrides={**golden.changed, "output.dir": str(folder / name)})
            if bench.world.size <= config.train.virtual_shards:
                job = bench.parts.build(config, bench.world, lambda task: task)
                run_job(bench, config, job)
                digests[name] = weights_digest(job.task.model.state_dict())
    return digests


def _digests_alone(
    bench: Bench, changed: Mapping[str, object] = {}, *, num_steps: int | None = None
) -> dict[str, str]:
    """Of steps that this process takes alone.

    Args:
        changed: other values of some keys.
        num_steps: at most; None for all of a run.
    """
    alone, digests = _alone(bench), {}
    for name, golden in GOLDEN.items():
        config = load_config(overrides={**golden.changed, **changed})
        job = bench.parts.build(config, alone.world, lambda task: task)
        digests[name] = weights_digest(_trained(job, config, alone.world, num_steps).state_dict())
    return digests


def _alone(bench: Bench) -> Bench:
    """The bench of this process only."""
    return dataclasses.replace(bench, world=Alone(bench.world))


def _trained(job: Job, config: Config, world: World, num_steps: int | None = None) -> nn.Module:
    """The model after at most that many steps, or after all, that this process takes alone."""
    alone, whole = JobAlone(job, config, world), config.train.epochs * job.train.plan.num_steps
    for _ in alone.steps(min(whole, num_steps or whole)):
        pass
    return alone.model


def _facts(bench: Bench) -> Record:
    """A record of this process without digests."""
    device = bench.world.device
    return Record(
        written=record.now(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        arithmetic=arithmetic(bench.world, {}),
        configuration=_alone(bench).settings().model_dump(mode="json"),
        digests={},
    )


def _new_record(bench: Bench) -> Record:
    """The record of this process."""
    asked = {"model.lstm": bench.config.model.lstm}
    digests = _digests_alone(bench, asked, num_steps=STEPS)
    here = _facts(bench).model_copy(update={"digests": digests})
    if bench.config.train.reduction == "ordered":  # the bits of "ddp" depend on the processes
        alone = _alone(bench)
        job, config = alone.build(), alone.settings()
        model = _trained(job, config, alone.world, most_steps(bench))
        here.digests[YOURS] = digest(model.state_dict())
        here.arithmetic.update(job.agreement.arithmetic)
    return here


def _alone_apart(bench: Bench, mine: Digests, expected: Digests) -> list[tuple[str, str]]:
    """The processes that computed other weights than `expected` alone, and which. Collective: yes.

    Args:
        mine: this process's.
    """
    found = [_differing(theirs, expected) for theirs in bench.world.gather_json(mine)]
    if all(found):  # with what rank 0 has
        return [("this process" if bench.is_one else EACH, found[0])]
    return [(f"{bench.name(rank)} alone", what) for rank, what in enumerate(found) if what]


def _differing(digests: Digests, expected: Digests) -> str:
    """The configurations whose weights are other ones: `noisy 0f3a9c21 for d11edde3`; or ""."""
    return first_of([
        f"{name} {found[:8]} for {expected[name][:8]}"
        for name, found in digests.items()
        if found != expected[name]
    ])  # fmt: skip
