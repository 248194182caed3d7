"""Check that each process is there once, is like the others, and computes the same bits."""

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import sinlstm_dist
from sinlstm_dist.arithmetic import versions
from sinlstm_dist.config import flat
from sinlstm_dist.errors import Disagreement
from sinlstm_dist.processes import launcher
from sinlstm_dist.processes.world import World
from sinlstm_dist.verify.bench import Bench, Finding
from sinlstm_dist.verify.known import unlike_known
from sinlstm_dist.words import counted

CLOCK_LIMIT_S = 1.0
PROBE_BYTES = 4 << 20  # much more than other traffic in the meantime
COUNTERS = Path("/proc/net/dev")
COMMAND = "sinlstm_dist.verify"  # in advice on how to start it


def check_world(bench: Bench) -> Finding:
    """Each process is there once, has a device of its own, and is like the others."""
    world = bench.world
    everyone = world.gather_json(_facts(bench))
    problems = [
        *_other_number(bench), *_counted_twice(bench, everyone), *_differing(bench, everyone)
    ]  # fmt: skip
    if bench.is_one:
        return _of_one(bench, problems)
    spread_s = _clock_spread_s(world)
    if spread_s > CLOCK_LIMIT_S:
        problems.append(f"clocks differ by {spread_s:.1f} s")
    hosts = {host: world.hosts.count(host) for host in world.hosts}
    where = ", ".join(f"{count} on {host}" for host, count in hosts.items())
    measured = (
        f"{world.size} processes ({where}), {world.device.type}; same "
        f"versions, configuration and source; clocks within {max(spread_s, 0.001):.3f} s; "
        f"traffic on {_interfaces(world)}"
    )
    return Finding(measured, problems)


def check_arithmetic(bench: Bench) -> Finding:
    """All processes compute the same bits with the user's own configuration.

    `train` checks it before its first step too.
    """
    try:
        job = bench.build_whole()  # raises if the initial weights differ
        job.agreement.check_start()
    except Disagreement as error:
        return Finding("", [str(error), *unlike_known(bench)])
    reduction = bench.config.train.reduction
    path = f"{bench.config.task.build or job.task.facts['model']}, {reduction} reduction"
    if bench.is_one:
        return Finding(f"one process: nothing to compare; {path}", applies=False)
    exact = ", gradients, optimizer steps and test results"
    if reduction == "ddp":
        exact = " and optimizer steps"
    return Finding(f"weights{exact} have the same bits on all processes; {path}")


def note_on_one(world: World) -> str:
    """What to say to the user of one process on a machine that has room for more; or ""."""
    if world.device.type == "cuda":
        room, of = torch.cuda.device_count(), "GPU"
    else:
        room, of = launcher.num_cores(), "core"
    if room == 1:
        return ""
    return (
        f"one process was started, on a machine with {counted(room, of)}: if more were meant, "
        f"start them with {launcher.torchrun(module=COMMAND)}; if not, say --processes 1"
    )


def _other_number(bench: Bench) -> list[str]:
    size, meant = bench.world.size, bench.asked.processes
    if meant in (None, size):
        return []
    there = f"there {'is' if size == 1 else 'are'} {counted(size, 'process')}"
    return [
        f"{there}, and --processes {meant} asks for another number: start them with "
        f"{launcher.torchrun(meant, COMMAND)} on one machine, with your cluster's launcher on "
        "several"
    ]


def _of_one(bench: Bench, problems: Sequence[str]) -> Finding:
    """The finding on a single process, which has no others to be like."""
    measured = f"1 process ({bench.world.hosts[0]}), {bench.world.device.type}"
    if bench.asked.processes:
        return Finding(f"{measured}, as --processes says", problems)
    return Finding(f"{measured}: nothing to compare", problems, applies=False)


def _facts(bench: Bench) -> dict[str, Any]:
    """This process's identity, code and configuration."""
    device = bench.world.device
    is_gpu = device.type == "cuda"
    return {
        "rank": bench.world.rank,
        "process": f"{bench.world.hosts[bench.world.rank]} process {os.getpid()}",
        "gpu": str(torch.cuda.get_device_properties(device).uuid) if is_gpu else "",
        "versions": versions(),
        "source": _source_digest(),
        "configuration": flat(bench.settings()),
    }


def _source_digest() -> str:
    """SHA-256 of the package's source."""
    root = Path(sinlstm_dist.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def _counted_twice(bench: Bench, everyone: Sequence[dict[str, Any]]) -> list[str]:
    problems = []
    for what in ("rank", "process", "gpu"):
        first: dict[Any, int] = {}
        for number, facts in enumerate(everyone):
            value = facts[what]
            if value != "" and value in first:
                both = f"{bench.name(first[value])} and {bench.name(number)}"
                problems.append(f"{both} are both {what} {value}")
            first.setdefault(value, number)
    return problems


def _differing(bench: Bench, everyone: Sequence[dict[str, Any]]) -> list[str]:
    problems, reference = [], everyone[0]
    for number, facts in enumerate(everyone):
        name = bench.name(number)
        if facts["source"] != reference["source"]:
            problems.append(f"{name} has another source of sinlstm_dist than rank 0")
        for kind, sign in (("versions", " "), ("configuration", "=")):
            for key, value in facts[kind].items():
                if value != (expected := reference[kind][key]):
                    problems.append(f"{name} has {key}{sign}{value}, but rank 0 has {expected}")
    return problems


def _clock_spread_s(world: World) -> float:
    """Seconds between the earliest and the latest clock.

    This is the least of some measurements, because a process may read its clock late.

    Collective: yes.
    """
    spreads = []
    for _ in range(5):
        world.wait_for_everyone()
        # Whole numbers: float32, the only float type on Apple GPUs, is too coarse for the time.
        seconds, parts = divmod(time.time(), 1)
        clocks = world.gather(torch.tensor([[int(seconds), int(parts * 1e6)]], device=world.device))
        microseconds = (clocks[:, 0] - clocks[0, 0]) * 1_000_000 + clocks[:, 1]
        spreads.append(int(microseconds.max() - microseconds.min()) / 1e6)
    return min(spreads)


def _interfaces(world: World) -> str:
    """The network interfaces that carry the traffic of a collective, on any node.

    Collective: yes.
    """
    world.wait_for_everyone()
    before = _sent_bytes()
    world.sum(torch.zeros(PROBE_BYTES // 4, device=world.device))
    world.wait_for_everyone()
    sent = {name: count - before.get(name, 0) for name, count in _sent_bytes().items()}
    most = max(sent.values(), default=0)
    mine = [name for name, count in sent.items() if count > max(most, PROBE_BYTES) / 10]
    names = sorted({name for names in world.gather_json(mine) for name in names})
    return ", ".join(names) or "no interface that counts it (shared memory, or RDMA)"


def _sent_bytes() -> dict[str, int]:
    """Bytes that each interface has sent since this machine or container started."""
    if not COUNTERS.exists():
        return {}
    rows = [line.replace(":", " ").split() for line in COUNTERS.read_text().splitlines()[2:]]
    return {row[0]: int(row[9]) for row in rows}
