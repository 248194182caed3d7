"""The command: check each claim in turn, agree on the verdicts, show them in one table."""

import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from sinlstm_dist.arithmetic import versions
from sinlstm_dist.command import command, let_another_speak, speaks
from sinlstm_dist.config import Config
from sinlstm_dist.errors import (
    CommandError,
    ConfigError,
    Disagreement,
    DriftedApart,
    ExitCode,
    LostProcess,
    RunError,
)
from sinlstm_dist.job import build
from sinlstm_dist.processes.launcher import is_speaker
from sinlstm_dist.processes.stop import StopRequest
from sinlstm_dist.processes.world import World, join_world
from sinlstm_dist.screen.console import show_error, show_table, show_text, tell_losses
from sinlstm_dist.verify import faults
from sinlstm_dist.verify.arithmetic import check_arithmetic
from sinlstm_dist.verify.claim import Bench, Claim, Finding, Parts, Verdict, is_large
from sinlstm_dist.verify.collectives import check_collectives, for_people
from sinlstm_dist.verify.faults import ARITHMETIC, WEIGHTS, Fault
from sinlstm_dist.verify.running import check_checkpoint, check_learning
from sinlstm_dist.verify.speed import check_speed
from sinlstm_dist.verify.training import check_data, check_metrics, check_weights
from sinlstm_dist.verify.world import check_world

WAIT_S = 30.0  # a process for the others
CLAIM_S = 120.0  # for a claim, on a machine that is busy with other things too
TOO_LARGE = ": the model is large for this machine, so verify a smaller --model.hidden_size"
SHOWN = 5  # problems of a claim in the table; the JSON file has all

CLAIMS = (
    Claim(
        "World", check_world, needs=(),
        look_at="the launcher's number of processes and address; the environment of each node",
    ),
    Claim(
        "Collectives", check_collectives,
        look_at="network, its driver, NCCL or gloo; GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME",
    ),
    Claim(
        ARITHMETIC, check_arithmetic, needs=("World", "Collectives"),
        look_at="that node's CPU or GPU, its libraries and its environment",
    ),
    Claim(
        "Data", check_data, needs=("World", ARITHMETIC),
        look_at="data/steps.py and plan.py; a sampler or loader that you have put there",
    ),
    Claim(
        WEIGHTS, check_weights, needs=("World", "Collectives", ARITHMETIC, "Data"),
        look_at="gradient.py; nodes with other CPUs (SINLSTM_DIST_INSTRUCTION_SET) or GPUs; "
        "failing memory",
    ),
    Claim(
        "Metrics", check_metrics, needs=("World", "Collectives", ARITHMETIC, "Data"),
        look_at="metrics.py and reduction.totals_over: sums and counts, divided once",
    ),
    Claim(
        "Checkpoint", check_checkpoint, needs=("World", "Collectives", ARITHMETIC, "Data"),
        look_at="the file system of ./runs on each node; run/checkpoint.py and run/folder.py; "
        "failing memory",
    ),
    Claim(
        "Learning", check_learning, needs=(ARITHMETIC, WEIGHTS),
        look_at="model.py and optim.py; the versions of torch and numpy",
    ),
    Claim(
        "Speed", check_speed, needs=("World", ARITHMETIC),
        look_at="what else runs on that node; its threads, its clock rate, its temperature",
    ),
)  # fmt: skip


class TimeLimit(CommandError):
    """A claim took too long in this process itself, not in waiting for others."""


class Verification:
    """The verdicts so far, which also a process that loses the others can show.

    Args:
        fault: what is injected, if anything.
        config: what the user will train with.
    """

    def __init__(self, fault: Fault | None, config: Config) -> None:
        self._fault, self._config = fault, config
        self.verdicts: list[Verdict] = []
        self.facts: dict[str, Any] = {}
        self._started = self._claim_started = time.perf_counter()

    def run(self) -> None:
        """Join the world and check all claims in it.

        Raises:
            BadArguments: the fault cannot happen here, or the configuration is wrong.
            LostProcess: a process died, hangs or has not come; the verdicts say so.

        Collective: yes.
        """
        with StopRequest() as request:
            try:
                with join_world(
                    timeout_s=WAIT_S,
                    one_thread=self._config.train.reduction == "ordered",
                    stop_reason=lambda: request.reason,
                ) as world:
                    self._check_all(world, request)
            except Exception as error:
                if not isinstance(error, BadArguments):
                    self._end_with(error)
                raise

    @property
    def passed(self) -> bool:
        """Whether every claim holds."""
        return all(verdict.result == "PASS" for verdict in self.verdicts)

    def _check_all(self, world: World, request: StopRequest) -> None:
        self.facts = {
            "world_size": world.size,
            "hosts": list(world.hosts),
            "device": world.device.type,
            "versions": versions(),
        }
        if self._fault and world.size < self._fault.least_processes:
            raise BadArguments(
                f"--inject needs {self._fault.least_processes} processes for this fault, and there "
                f"is {world.size}: {self._fault.what}"
            )
        _check_configuration(self._config, world)
        parts = self._fault.parts() if self._fault else Parts()
        bench = Bench(parts.world(world), parts, self._config)
        for claim in CLAIMS:
            self._claim_started = time.perf_counter()
            self.verdicts.append(self._verdict(claim, bench, world))
            reasons = [reason for reason in world.gather_json(request.reason) if reason]
            if reasons:
                return self._skip_rest(f"stopped by {reasons[0]}")
        return None

    def _verdict(self, claim: Claim, bench: Bench, world: World) -> Verdict:
        """What all processes find; they say so in the sound world, whatever is injected.

        Collective: yes.
        """
        broken = [v.claim for v in self.verdicts if v.claim in claim.needs and v.result != "PASS"]
        if broken:
            return Verdict(claim.name, "SKIP", f"depends on {broken[0]}")
        with _time_limit(claim.name, is_large=is_large(self._config)):
            try:
                finding = claim.check(bench)
            except DriftedApart as error:
                finding = Finding("", [error.what], look_at="")
            except (ConfigError, RunError) as error:  # which all processes raise alike
                finding = Finding("", [str(error)])
            everyones = world.gather_json(list(finding.problems))
        shared = [problem for problem in everyones[0] if all(problem in o for o in everyones)]
        problems = shared + [
            f"{bench.name(rank)}: {problem}"
            for rank, theirs in enumerate(everyones)
            for problem in theirs
            if problem not in shared
        ]
        look_at = claim.look_at if finding.look_at is None else finding.look_at
        return Verdict(
            claim.name,
            "FAIL" if problems else "PASS",
            finding.measured,
            problems,
            look_at if problems else "",
            time.perf_counter() - self._claim_started,
            finding.figures,
        )

    def _end_with(self, error: Exception) -> None:
        """The claim that was being checked fails with `error`, and nothing is left to check."""
        problem = str(error) if isinstance(error, CommandError) else repr(error)
        for claim in CLAIMS[len(self.verdicts) :][:1]:
            look_at = "" if isinstance(error, LostProcess) else claim.look_at
            seconds = time.perf_counter() - self._claim_started
            self.verdicts.append(Verdict(claim.name, "FAIL", "", [problem], look_at, seconds))
            self._skip_rest(f"{claim.name} did not end")

    def _skip_rest(self, why: str) -> None:
        for claim in CLAIMS[len(self.verdicts) :]:
            self.verdicts.append(Verdict(claim.name, "SKIP", f"not reached: {why}"))

    def show(self, path: Path | None) -> bool:
        """Print the tables of collectives and of claims, and the verdict; to `path` as JSON.

        Returns:
            Whether `path` could be written.
        """
        problem = ""
        try:
            if path:
                self._write(path)  # first: a terminal may be slow, and be given up
        except OSError as error:  # the disk has become full, for instance
            problem = f"--json {path} cannot be written: {error.strerror}"
        self._print()
        tell_losses()  # the exit code is for what was found
        if problem:
            show_error(problem)
        return not problem

    def _print(self) -> None:
        figures = [for_people(row) for verdict in self.verdicts for row in verdict.figures]
        if figures:
            show_table(figures, numbers=figures[0])
            show_text("\n")
        colours = {"PASS": "green", "FAIL": "bold red", "SKIP": "dim"}
        show_table([_row(verdict) for verdict in self.verdicts], colours=colours, wrap=True)
        seconds = time.perf_counter() - self._started
        failed = [v.claim for v in self.verdicts if v.result == "FAIL"]
        what = f"{', '.join(failed)} failed" if failed else "it was stopped"
        if self.passed:
            show_text(f"\nverified in {seconds:.0f} s: these processes train correctly\n")
        else:
            show_text(f"\nNOT verified, in {seconds:.0f} s: {what}\n")

    def _write(self, path: Path) -> None:
        content = {
            "passed": self.passed,
            **self.facts,
            "injected": self._fault.what if self._fault else "",
            "seconds": time.perf_counter() - self._started,
            "claims": [dataclasses.asdict(verdict) for verdict in self.verdicts],
        }
        path.write_text(json.dumps(content, indent=1) + "\n")


class BadArguments(ConfigError):
    """What the user asked for cannot be verified in this world."""


def _check_configuration(config: Config, world: World) -> None:
    """Raise BadArguments for what is the user's mistake, before a claim takes the blame for it.

    Collective: yes.
    """
    try:
        build(config, world)
    except Disagreement:
        pass  # the claims say where
    except ConfigError as error:
        raise BadArguments(str(error)) from error


def _row(verdict: Verdict) -> dict[str, str]:
    lines = list(verdict.problems[:SHOWN]) or [verdict.measured]
    if len(verdict.problems) > SHOWN:
        lines.append(f"and {len(verdict.problems) - SHOWN} more")
    if verdict.look_at:
        lines.append(f"look at: {verdict.look_at}")
    name = verdict.claim.replace(" and ", "\nand ")  # or it would take the others' columns
    return {"claim": name, "": verdict.result, "measured": "\n".join(lines)}


@contextlib.contextmanager
def _time_limit(name: str, *, is_large: bool) -> Iterator[None]:
    """Give a claim up that takes too long in this process itself; waiting has its own limit."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise TimeLimit(f"{name} is not done after {CLAIM_S:g} s{TOO_LARGE if is_large else ''}")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, CLAIM_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@command("verify")
def main(options: Namespace) -> int:
    """Prove that this set of processes trains correctly."""
    fault = faults.find(options.inject) if options.inject else None
    if options.json:
        _check_writable(options.json)
    verification = Verification(fault, options.config)
    is_teller = is_speaker()
    try:
        verification.run()
    except BadArguments:
        raise
    except CommandError as error:  # which the verdicts tell
        is_teller = speaks(error)
    except Exception:
        if is_teller:
            verification.show(options.json)
        raise
    if is_teller and not verification.show(options.json):
        return ExitCode.BAD_CONFIG
    if not is_teller and not verification.passed:
        let_another_speak()
    return ExitCode.DONE if verification.passed else ExitCode.FAILED


def _check_writable(path: Path) -> None:
    """Raises ConfigError; changes nothing, as the process that writes may be another one."""
    if not path.parent.is_dir():
        raise ConfigError(f"--json {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise ConfigError(f"--json {path} is a folder: name a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"--json {path} cannot be written: permission denied")


if __name__ == "__main__":
    sys.exit(main())
