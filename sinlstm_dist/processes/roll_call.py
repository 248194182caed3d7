"""Find out which processes are there, at the start of a run and after a failure.

Processes answer through the key-value store in which they first find each other, never through a
collective: a collective needs everybody, and here somebody is missing. Each answers once, and one
concludes for all. So 64 on one machine ask the store 900 times until they have joined, and 4,400
times to name a lost one; each asking for each other took 39,000 and 127,000 (2026-11-25).
"""

import itertools
import socket
import time
from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel
from torch.distributed import DistError, Store  # type: ignore[attr-defined]

from sinlstm_dist.errors import (
    ConfigError,
    Disagreement,
    DriftedApart,
    LostProcess,
    RunError,
    StoppedEarly,
)
from sinlstm_dist.processes import launcher
from sinlstm_dist.processes.alive import is_gone, where_am_i
from sinlstm_dist.processes.rendezvous import Board, Foreign, clean, open_store, wait_for_port

ROLL_CALL_S = 2.0  # how long survivors wait for each other before they name who is missing
LONGEST_STEP_S = 20.0  # and how much longer for one that computes; torchrun gives them 30 s
SAME_S = 0.5  # how long one that failed waits for others to say that they failed alike
PATIENCE_S = 2.0  # more for a store that does not answer, as that of a stopped process

TOLD = (ConfigError, Disagreement, RunError, DriftedApart)
TOLD_BY_RANK_0 = tuple(f"{kind.__name__}: " for kind in TOLD)

Answer = TypeVar("Answer")

_joins = itertools.count()  # a process may join several worlds, one after the other


class Decision(BaseModel, extra="forbid", strict=True):
    """What the first process that knew enough decided for all."""

    hosts: list[str] = []  # by rank, if all have come
    processes: list[str] = []  # what `alive` needs of each
    missing: list[int] = []  # the ranks that had not come in time
    stop: str = ""  # why all stop before they begin, if a request came


class Roll(BaseModel, extra="forbid"):
    """What happened to each process that answered, by rank; "" if it only lost the others."""

    answers: dict[int, str]


class RollCall:
    """The processes that signed in.

    Args:
        rank: of this process.
        size: number of processes.
        timeout_s: seconds that it waits for the others.
        stop_reason: called while it waits; what it returns, if anything, ends the wait for all.

    Raises:
        ConfigError: the launcher did not say where processes find each other.
        LostProcess: some did not come in time.
        StoppedEarly: one was asked to stop before all had come.

    Collective: yes, through the store.
    """

    def __init__(
        self, *, rank: int, size: int, timeout_s: float, stop_reason: Callable[[], str]
    ) -> None:
        self._rank, self._size, self._stop_reason = rank, size, stop_reason
        self._timeout_s, self._has_answered = timeout_s, False
        self._seen_dead: set[int] = set()
        self._where = launcher.meeting()
        self._prefix = f"sinlstm_dist/{self._where.restart}/{next(_joins)}"
        self._board = self._find_board()
        signed_in = self._ask(self._sign_in, timeout_s + 2 * PATIENCE_S)
        if signed_in is None:
            lost = (
                f"rank 0's store at {self._where.host}:{self._where.port} was there and is not now"
            )
            raise LostProcess(lost, is_speaker=self._speaks_for_rank_0())
        launcher.note_that_we_met()
        plan, is_first = signed_in
        if plan.stop:
            raise StoppedEarly(plan.stop, is_speaker=is_first)
        if plan.missing:
            missing = ", ".join(map(str, plan.missing))
            raise LostProcess(
                f"rank {missing} of {size} has not started within train.timeout_s={timeout_s:g}: "
                "look at the output of its node and launcher",
                is_speaker=is_first,
            )
        self.hosts, self._processes = plan.hosts, plan.processes

    def new_store(self) -> Store:
        """Another connection to the store, for the process group: one that waits has its own."""
        return self._open_store(is_master=False)

    def report(self, error: Exception) -> None:
        """Tell the others what happened here; call it before leaving the process group.

        A failure that all share, such as a full disk, is then known to all before any leaves.
        """
        own = _own_failure(error)

        def tell() -> bool:
            self._answer(own)
            return not own or self._board.wait_for("roll", SAME_S)

        self._ask(tell, SAME_S + PATIENCE_S)

    def verdict(self, error: Exception) -> Exception:
        """What to raise in place of `error`; call it after leaving the process group.

        Leaving makes those notice who still wait for this process. Then every survivor waits a
        moment for the others, and one of them names those that did not come.
        """
        own = _own_failure(error)
        # One that lives, but has much to compute, learns of a closed connection only after that;
        # it has had its time when ours was up.
        wait_s = ROLL_CALL_S
        if "timed out" not in str(error).lower():
            wait_s += min(self._timeout_s, LONGEST_STEP_S)
        heard = self._ask(lambda: self._call(own, wait_s), wait_s + ROLL_CALL_S + 2 * PATIENCE_S)
        if heard is None:  # the store is gone or stopped, and so is the process that keeps it
            lost = f"the connection to rank 0 on {self.hosts[0]} was lost"
            return error if own else LostProcess(lost, is_speaker=self._speaks_for_rank_0())
        answers, is_first = heard
        alike = min((other for other, answer in answers.items() if answer == own), default=0)
        if isinstance(error, (ConfigError, RunError)) or (own and alike == self._rank):
            return error
        # Rank 0 has already printed user errors itself.
        is_told = answers.get(0, "").startswith(TOLD_BY_RANK_0)
        return LostProcess(self._describe(answers, error), is_speaker=is_first and not is_told)

    def _find_board(self) -> Board:
        where, timeout_s = self._where, self._timeout_s
        is_master = self._rank == 0 and not where.has_agent
        try:
            reason = "" if is_master else wait_for_port(where, timeout_s, self._stop_reason)
            if reason:
                raise StoppedEarly(reason, is_speaker=launcher.is_node_speaker())
            return Board(self._open_store(is_master=is_master), size=self._size)
        except (OSError, DistError) as error:
            is_absent = isinstance(error, OSError) and not where.has_agent
            raise LostProcess(
                f"rank 0 cannot be reached at {where.host}:{where.port} within train.timeout_s="
                f"{timeout_s:g}, or another program has that port: look at its node's output, try "
                f"another port ({error})",
                is_speaker=self._speaks_for_rank_0() if is_absent else launcher.is_node_speaker(),
            ) from error

    def _open_store(self, *, is_master: bool) -> Store:
        return open_store(self._where, self._prefix, is_master=is_master, timeout_s=self._timeout_s)

    def _speaks_for_rank_0(self) -> bool:
        """Whether this process tells its node what rank 0 cannot."""
        return launcher.is_node_speaker() or self._rank == 1

    def _ask(self, question: Callable[[], Answer], within_s: float) -> Answer | None:
        try:
            return self._board.ask(question, within_s=within_s)
        except Foreign as error:
            raise LostProcess(
                f"{self._where.host}:{self._where.port} holds what no process of this run wrote "
                f"({error}): keep that port closed to other users and programs, or take another",
                is_speaker=launcher.is_node_speaker(),
            ) from error

    def _sign_in(self) -> tuple[Decision, bool]:
        """What all do now, and whether this process tells the user, if they do not go."""
        board, deadline = self._board, time.monotonic() + self._timeout_s
        board.write(f"process/{self._rank}", where_am_i())
        board.write(f"host/{self._rank}", clean(socket.gethostname()))
        if board.count("present", 1) >= self._size:
            self._plan(is_late=False)
        while not board.has(["plan"]):
            is_late = self._is_clerk("plan", deadline)
            if is_late or self._stop_reason():
                self._plan(is_late=is_late)
            else:
                time.sleep(board.poll_s)
        plan = board.read("plan", Decision)
        if len(plan.hosts) == len(plan.processes) == self._size:
            return plan, False
        if not plan.stop and not plan.missing:
            raise Foreign("a plan for another number of processes")
        is_first = self._is_first()
        self._leave_together(board.count("present"))
        return plan, is_first

    def _plan(self, *, is_late: bool) -> None:
        """Decide for all, if that can be done: the first plan is everybody's."""
        reason = self._stop_reason()
        missing = [] if reason else self._board.missing("host")
        if reason:
            plan = Decision(stop=clean(reason))
        elif not missing:
            plan = Decision(hosts=self._read_all("host"), processes=self._read_all("process"))
        elif is_late:
            plan = Decision(missing=missing)
        else:
            return
        self._board.write_first("plan", plan)

    def _answer(self, own: str) -> None:
        """Say once what happened here; the last one to do so concludes for all."""
        if self._has_answered:
            return
        self._has_answered = True
        self._board.write(f"failed/{self._rank}", own)
        self._count_answer()

    def _answer_for_the_dead(self) -> None:
        """Count those of this machine that ended without an answer, which nobody need wait for."""
        for rank, process in enumerate(self._processes):
            if rank in self._seen_dead or not is_gone(process):
                continue
            self._seen_dead.add(rank)
            is_silent = not self._board.has([f"failed/{rank}"])
            if is_silent and self._board.count(f"dead/{rank}", 1) == 1:
                self._count_answer()

    def _count_answer(self) -> None:
        if self._board.count("answered", 1) >= self._size:
            self._conclude()

    def _conclude(self) -> None:
        missing = self._board.missing("failed")
        answered = [rank for rank in range(self._size) if rank not in missing]
        told = self._board.read_each([f"failed/{rank}" for rank in answered])
        roll = Roll(answers=dict(zip(answered, told, strict=True)))
        self._board.write_first("roll", roll)

    def _call(self, own: str, wait_s: float) -> tuple[dict[int, str], bool]:
        """What happened to each that answers, and whether this process tells the user."""
        board, deadline = self._board, time.monotonic() + wait_s
        self._answer(own)
        while not board.has(["roll"]):
            if self._is_clerk("roll", deadline):
                self._conclude()
            else:
                self._answer_for_the_dead()
                time.sleep(board.poll_s)
        told = board.read("roll", Roll).answers
        answers = {r: text for r, text in told.items() if 0 <= r < self._size} | {self._rank: own}
        is_first = not own and self._is_first()
        self._leave_together(len(told))
        return answers, is_first

    def _describe(self, answers: dict[int, str], error: Exception) -> str:
        where = [f"rank {other} on {host}" for other, host in enumerate(self.hosts)]
        parts = [f"{where[other]} failed: {answer}" for other, answer in answers.items() if answer]
        parts += [
            f"{where[other]} died, hangs or cannot be reached"
            for other in range(self._size)
            if other not in answers
        ]
        return "; ".join(parts) or f"the processes lost each other: {error}"

    def _read_all(self, what: str) -> list[str]:
        return self._board.read_each([f"{what}/{rank}" for rank in range(self._size)])

    def _is_clerk(self, what: str, deadline: float) -> bool:
        """Whether this process concludes for those that wait: the first one whose time is up."""
        late_s = time.monotonic() - deadline
        return late_s > 0 and (self._board.count(f"clerks/{what}", 1) == 1 or late_s > PATIENCE_S)

    def _is_first(self) -> bool:
        """Whether nobody asked before: so one speaks, however late others wake up."""
        return self._board.count("spoken", 1) == 1

    def _leave_together(self, num_present: int) -> None:
        """Rank 0 may keep the store, and waits a moment until the others have read it."""
        self._board.count("left", 1)
        deadline = time.monotonic() + ROLL_CALL_S
        while self._rank == 0 and time.monotonic() < deadline:
            if self._board.count("left") >= num_present:
                return
            time.sleep(self._board.poll_s)


def is_lost(error: Exception) -> bool:
    """Whether `error` only says that torch's process group gave up: something failed elsewhere."""
    words = ("gloo", "NCCL")
    is_torchs = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return is_torchs or isinstance(error, DistError)


def _own_failure(error: Exception) -> str:
    """What failed in this process; "" if it only noticed that others had."""
    return "" if is_lost(error) else clean(f"{type(error).__name__}: {error}")
