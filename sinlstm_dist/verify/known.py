"""Check weights against known ones: those that every CPU computes, and those of a record."""

import dataclasses
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from sinlstm_dist import lstm
from sinlstm_dist.arithmetic import arithmetic, changes
from sinlstm_dist.config import Config, load_config
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.golden import GOLDEN, KNOWN, weights_digest
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

STEPS = 10  # of each configuration in a record
BRIEF = "noisy"  # tells processes apart that compute differently, also where computing is slow
YOURS, EACH = "this configuration", "each process alone"
THAN = "other weights than the known ones"
ONE_NODE = "that node's CPU and memory; its compiled kernel; an edited package"


def check_golden(bench: Bench) -> Finding:
    """All processes together, and each one alone, end with the known weights."""
    if reason := _no_known_weights(bench):
        return Finding(reason, applies=False)
    together = _digests_together(bench)
    problems = []
    if differing := _differing(together, KNOWN):
        who = "this process" if bench.is_one else "all processes together"
        problems.append(f"{who}: {THAN} ({differing})")
    names = _names(bench)
    listed = first_of([f"{name} {KNOWN[name][:8]}" for name in names])
    ends, what = f": the known weights, SHA-256 {listed}", counted(len(together), "configuration")
    if bench.is_one:
        return Finding(f"{what}{ends}", problems)
    alone = _unlike(bench, _differing(_digests_alone(bench, names), KNOWN), THAN)
    problems += alone
    measured = f"{what} on all processes together, {len(names)} on each process alone{ends}"
    is_of_some = bool(alone) and not alone[0].startswith(EACH)
    return Finding(measured, problems, look_at=ONE_NODE if is_of_some else None)


def unlike_known(bench: Bench) -> list[str]:
    """Which of processes that differ do not compute the known weights alone, a line for each.

    Collective: yes.
    """
    if _no_known_weights(bench):
        return []
    return _unlike(bench, _differing(_digests_alone(bench, [BRIEF]), KNOWN), THAN)


def check_record(bench: Bench) -> Finding:
    """Each process alone computes the weights of a record, or those of a new one."""
    world, path, recorded = bench.world, bench.asked.record, bench.recorded
    here = _new_record(bench)
    expected = recorded.digests if recorded else world.on_main(lambda: here.digests)
    differing = _differing(here.digests, expected)
    if recorded and differing:
        differing = "; ".join([differing, *changes(recorded.arithmetic, here.arithmetic).values()])
    than = f"other weights than {f'the record of {recorded.source}' if recorded else 'rank 0'}"
    problems = _unlike(bench, differing, than)
    who = "this process" if bench.is_one else EACH
    measured = f"{counted(len(here.digests), 'configuration')} on {who}"
    if recorded:
        measured += f": the weights of the record of {recorded.source}"
    if path and not problems:
        try:
            world.on_main(here.write, path)
        except ConfigError as error:  # such as a full disk: no device is to blame
            return Finding("", [f"--record {error}"], look_at="")
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
    """Why the known weights say nothing about these processes; "" if they do. Collective: yes."""
    return next(filter(None, bench.world.gather_json(_no_known_weights_here(bench))), "")


def _no_known_weights_here(bench: Bench) -> str:
    choice = _choice(bench, BRIEF)
    if choice.name != "torch":
        return ""
    why = f"the known weights are those of this package's kernel, not of nn.LSTM ({choice.reason})"
    return why if bench.world.device.type == "cpu" else f"{why}: see --record and --against"


def _names(bench: Bench) -> list[str]:
    """The configurations to train: the reference is so slow that one must do."""
    if bench.config.model.lstm == "reference":
        return [BRIEF]
    return [name for name in GOLDEN if _choice(bench, name).name == "fused"]


def _choice(bench: Bench, name: str) -> lstm.Choice:
    """How the recurrence of a configuration is computed here."""
    model = _golden_config(bench, name).model
    return lstm.choose(
        model.lstm,
        device_type=bench.world.device.type,
        input_size=1,
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
    )


def _golden_config(bench: Bench, name: str, changed: Mapping[str, object] = {}) -> Config:
    """A configuration whose weights are known, on the code that the user asks for."""
    asked = bench.config.model.lstm
    code = "auto" if asked == "fused" else asked  # a GPU's kernel has one layer
    return load_config(overrides={**GOLDEN[name].changed, "model.lstm": code, **changed})


def _digests_together(bench: Bench) -> dict[str, str]:
    """Of runs on all processes, where there are pieces for all of them. Collective: yes."""
    digests = {}
    with runs_folder(bench.world) as folder:
        for name in _names(bench):
            config = _golden_config(bench, name, {"output.dir": str(folder / name)})
            if bench.world.size <= config.train.virtual_shards:
                job = bench.parts.build(config, bench.world, lambda task: task)
                run_job(bench, config, job)
                digests[name] = weights_digest(job.task.model.state_dict())
    return digests


def _digests_alone(
    bench: Bench, names: Iterable[str], *, num_steps: int | None = None
) -> dict[str, str]:
    """Of steps that this process takes alone.

    Args:
        names: of configurations.
        num_steps: at most; None for all of a run.
    """
    alone, digests = _alone(bench), {}
    for name in names:
        config = _golden_config(bench, name)
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
        arithmetic=arithmetic(bench.world, {}, reduction=bench.config.train.reduction),
        configuration=_alone(bench).settings().model_dump(mode="json"),
        digests={},
    )


def _new_record(bench: Bench) -> Record:
    """The record of this process."""
    facts = _facts(bench)
    digests = _digests_alone(bench, GOLDEN, num_steps=STEPS)
    decides = facts.arithmetic
    if bench.config.train.reduction == "ordered":  # the bits of "ddp" depend on the processes
        alone = _alone(bench)
        job, config = alone.build(), alone.settings()
        model = _trained(job, config, alone.world, most_steps(bench))
        digests |= {YOURS: weights_digest(model.state_dict())}
        decides = {**decides, **job.agreement.arithmetic}
    return facts.model_copy(update={"digests": digests, "arithmetic": decides})


def _unlike(bench: Bench, differing: str, than: str) -> list[str]:
    """A line for each process that computes other weights alone; one line if all do.

    Args:
        differing: which are others on this process; "" if there are none.
        than: what is wrong with them.

    Collective: yes.
    """
    everyones = bench.world.gather_json(differing)
    if all(everyones):  # with what rank 0 has
        return [f"{'this process' if bench.is_one else EACH}: {than} ({everyones[0]})"]
    named = ((bench.name(rank), what) for rank, what in enumerate(everyones) if what)
    return [f"{name} alone: {than} ({what})" for name, what in named]


def _differing(digests: Digests, expected: Digests) -> str:
    """The configurations whose weights are other ones: `noisy 0f3a9c21 for d11edde3`; or ""."""
    return first_of([
        f"{name} {found[:8]} for {expected.get(name, 'nothing')[:8]}"
        for name, found in digests.items()
        if found != expected.get(name)
    ])  # fmt: skip
