"""Check each claim in turn on all processes, which agree on a verdict."""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from sinlstm_dist import status
from sinlstm_dist.arithmetic import versions
from sinlstm_dist.config import Config
from sinlstm_dist.errors import (
    CommandError,
    ConfigError,
    Disagreement,
    DriftedApart,
    LostProcess,
    RunError,
)
from sinlstm_dist.job import build
from sinlstm_dist.processes.joining import join_world
from sinlstm_dist.processes.stop import StopRequest
from sinlstm_dist.processes.world import World
from sinlstm_dist.verify.bench import Asked, Bench, Finding, Parts, is_large
from sinlstm_dist.verify.claims import Claim, claims
from sinlstm_dist.verify.faults import Fault
from sinlstm_dist.verify.known import read_record
from sinlstm_dist.verify.record import Record
from sinlstm_dist.verify.world import note_on_one

WAIT_S = 30.0  # for which a process waits for the others
CLAIM_S = 120.0  # for the check of a claim, on a machine that is busy with other things too
TOO_LARGE = ": the model is large for this machine, so verify a smaller --model.hidden_size"
TOO_LONG = ": the steps are long for this machine, so verify a smaller --train.global_batch_size"


class TimeLimit(CommandError):
    """The check of a claim takes too long on this process, not counting waits for others."""


class BadArguments(ConfigError):
    """What the user asked for cannot be verified with these processes."""


@dataclass(frozen=True)
class Verdict:
    """The result of a claim on all processes.

    Args:
        claim: its name.
        result: "PASS", "FAIL", or "SKIP" if it was not checked.
        measured: one line for the table; why, if it was not checked.
        problems: why the claim does not hold.
        look_at: where to look; "" for no advice.
        seconds: the duration of the check.
        figures: rows of measurements by name.
        applies: whether there was something to check; if not, it is skipped without harm.
    """

    claim: str
    result: str
    measured: str
    problems: Sequence[str] = ()
    look_at: str = ""
    seconds: float = 0.0
    figures: Sequence[Mapping[str, float]] = ()
    applies: bool = True

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against the claim."""
        return self.result == "PASS" or not self.applies


class Verification:
    """Joins the world and collects a verdict on each claim, also after an error.

    Args:
        fault: to inject, or None.
        config: what the user will train with.
        asked: what else the user asks for.
    """

    def __init__(self, fault: Fault | None, config: Config, asked: Asked) -> None:
        self._fault, self._config, self._asked = fault, config, asked
        self._claims = claims(asked)
        self.note = ""  # to the user of a single process, which may be a mistake
        self.verdicts: list[Verdict] = []
        self._facts: dict[str, Any] = {}
        self._started = self._claim_started = time.perf_counter()

    @property
    def passed(self) -> bool:
        """Whether every claim holds that these processes can show."""
        return all(verdict.holds for verdict in self.verdicts)

    @property
    def world_size(self) -> int:
        """How many processes have joined; 0 if they have not."""
        return int(self._facts.get("world_size", 0))

    @property
    def seconds(self) -> float:
        """The time since the start."""
        return time.perf_counter() - self._started

    def content(self) -> dict[str, Any]:
        """Everything that was found, for a JSON file."""
        return {
            "passed": self.passed,
            **self._facts,
            "injected": self._fault.what if self._fault else "",
            "seconds": self.seconds,
            "claims": [dataclasses.asdict(verdict) for verdict in self.verdicts],
        }

    def run(self, request: StopRequest) -> None:
        """Join the world and check all claims. After an error, `verdicts` has it too.

        Args:
            request: a request to stop, which skips the rest of the claims.

        Raises:
            BadArguments: the fault is impossible here, or the configuration is wrong; no verdicts.
            LostProcess: a process died, hangs or did not start.

        Collective: yes.
        """
        try:
            with join_world(
                timeout_s=WAIT_S,
                one_thread=self._config.train.reduction == "ordered",
                stop_reason=lambda: request.reason,
            ) as world:
                self._check_all(world, request)
        except BadArguments:
            raise
        except Exception as error:
            self._end_with(error)
            raise

    def _check_all(self, world: World, request: StopRequest) -> None:
        self._facts = {
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
        parts = self._fault.parts if self._fault else Parts()
        bench = Bench(parts.world(world), parts, self._config, self._asked)
        bench = dataclasses.replace(bench, recorded=_recorded(bench))
        if world.size == 1 and self._asked.processes is None:
            self.note = note_on_one(world)
        for claim in self._claims:
            self._claim_started = time.perf_counter()
            status.say(
                f"checking {claim.name} ({len(self.verdicts) + 1} of {len(self._claims)}) ..."
            )
            self.verdicts.append(self._verdict(claim, bench, world))
            reasons = [reason for reason in world.gather_json(request.reason) if reason]
            if reasons:
                self._skip_rest(f"stopped by {reasons[0]}")
                break

    def _verdict(self, claim: Claim, bench: Bench, world: World) -> Verdict:
        """Check a claim on every process, and collect the problems.

        They are collected over the sound world, even when a fault is injected.

        Collective: yes.
        """
        broken = [v for v in self.verdicts if v.claim in claim.needs and not v.holds]
        if broken:
            first = broken[0]  # if it was skipped too, it says on which claim it depends
            why = first.measured if first.result == "SKIP" else f"depends on {first.claim}"
            return Verdict(claim.name, "SKIP", why)
        with _time_limit(claim.name, _advice(self._config)):
            finding = _finding(claim, bench)
            problems = _agreed(world.gather_json(list(finding.problems)), bench)
        look_at = claim.look_at if finding.look_at is None else finding.look_at
        result = "PASS" if finding.applies else "SKIP"
        return Verdict(
            claim.name,
            "FAIL" if problems else result,
            finding.measured,
            problems,
            look_at if problems else "",
            time.perf_counter() - self._claim_started,
            finding.figures,
            finding.applies or bool(problems),
        )

    def _end_with(self, error: Exception) -> None:
        """Let the claim that was being checked fail with `error`, and skip the rest."""
        if len(self.verdicts) == len(self._claims):
            return  # the error came while leaving the world
        claim = self._claims[len(self.verdicts)]
        problem = str(error) if isinstance(error, CommandError) else repr(error)
        look_at = "" if isinstance(error, LostProcess) else claim.look_at
        seconds = time.perf_counter() - self._claim_started
        self.verdicts.append(Verdict(claim.name, "FAIL", "", [problem], look_at, seconds))
        self._skip_rest(f"{claim.name} did not end")

    def _skip_rest(self, why: str) -> None:
        for claim in self._claims[len(self.verdicts) :]:
            self.verdicts.append(Verdict(claim.name, "SKIP", f"not reached: {why}"))


def _check_configuration(config: Config, world: World) -> None:
    """Raise BadArguments for a mistake of the user, which would fail some claim otherwise.

    Collective: yes.
    """
    try:
        build(config, world)
    except Disagreement:
        pass  # a claim will say where
    except ConfigError as error:
        raise BadArguments(str(error)) from error


def _recorded(bench: Bench) -> Record | None:
    """What to compare with. Raises BadArguments if it cannot be used. Collective: yes."""
    try:
        return read_record(bench)
    except ConfigError as error:
        raise BadArguments(str(error)) from error


def _finding(claim: Claim, bench: Bench) -> Finding:
    """Check a claim; an error that all processes raise alike is a problem. Collective: yes."""
    try:
        return claim.check(bench)
    except DriftedApart as error:
        return Finding("", [error.what], look_at="")
    except (ConfigError, RunError) as error:
        return Finding("", [str(error)])


def _agreed(everyones: Sequence[Sequence[str]], bench: Bench) -> list[str]:
    """The problems of all processes: first those that all have, then the others, with names."""
    shared = [problem for problem in everyones[0] if all(problem in o for o in everyones)]
    return shared + [
        f"{bench.name(rank)}: {problem}"
        for rank, theirs in enumerate(everyones)
        for problem in theirs
        if problem not in shared
    ]


def _advice(config: Config) -> str:
    """What to do where a claim takes too long."""
    if config.task.build:
        return TOO_LONG
    return TOO_LARGE if is_large(config) else ""


@contextlib.contextmanager
def _time_limit(name: str, advice: str) -> Iterator[None]:
    """Raise TimeLimit after CLAIM_S, except in a collective, which has a timeout of its own."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise TimeLimit(f"{name} is not done after {CLAIM_S:g} s{advice}")

    if signal.getsignal(signal.SIGALRM) is None:  # a handler of C code, which cannot be put back
        yield
        return
    previous = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, CLAIM_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
