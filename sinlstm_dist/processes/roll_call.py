"""Find out which processes are there, at the start of a run and after a failure.

Processes answer through the key-value store in which they first found each other. A collective
would need all of them, and here one is missing. Each process answers once, and one of them
concludes for all. So 64 processes on one machine ask the store 900 times until they have joined,
and 4,400 times to name a lost one. When each asked for each other, it took 39,000 and 127,000
requests (2026-11-25).
"""

import itertools
import socket
import time
from collections.abc import Callable
from typing import TypeVar

from torch.distributed import Store  # type: ignore[attr-defined]  # it has it

from sinlstm_dist.errors import (
    ConfigError,
    Disagreement,
    DriftedApart,
    LostProcess,
    RunError,
    StoppedEarly,
)
from sinlstm_dist.processes import launcher
from sinlstm_dist.processes.alive import is_gone, machine_of, where_am_i
from sinlstm_dist.processes.answers import Decision, Roll, own_failure
from sinlstm_dist.processes.launcher import Launch
from sinlstm_dist.processes.rendezvous import Board, Foreign, clean, open_store, reach_store

ROLL_CALL_S = 2.0  # survivors wait this time for each other before they name who is missing
LONGEST_STEP_S = 20.0  # extra time for a process that still computes; torchrun gives them 30 s
SAME_S = 0.5  # a process that failed waits this time for others that failed alike
PATIENCE_S = 2.0  # extra time if the store does not answer (e.g. its process is stopped)

TOLD = (ConfigError, Disagreement, RunError, DriftedApart)
TOLD_BY_RANK_0 = tuple(f"{kind.__name__}: " for kind in TOLD)

Answer = TypeVar("Answer")

# A process may join several worlds, one after the other. Each needs its own keys in the store:
# torch numbers groups from 0 after a reset, https://github.com/pytorch/pytorch/issues/55967
# Test: test_runs_one_after_the_other_in_the_same_processes
_joins = itertools.count()


class RollCall:
    """Waits until all processes have signed in, and later finds out which are left.

    Args:
        launch: this process's place among all.
        timeout_s: seconds that a process waits for the others.
        stop_reason: called while it waits; a text that it returns ends the wait for all.
        gpu: the UUID of the GPU on which this process will compute; "" for the CPU.

    Raises:
        ConfigError: the launcher did not say where the processes find each other, or two of them
            have the same GPU.
        LostProcess: some did not come in time.
        StoppedEarly: a process was asked to stop before all had come.

    Collective: yes, through the store.
    """

    def __init__(
        self, launch: Launch, *, timeout_s: float, stop_reason: Callable[[], str], gpu: str = ""
    ) -> None:
        self._gpu = gpu
        self._rank, self._size, self._stop_reason = launch.rank, launch.size, stop_reason
        self._timeout_s, self._has_answered = timeout_s, False
        self._seen_dead: set[int] = set()
        self._where = launcher.meeting()
        self._prefix = f"sinlstm_dist/{self._where.restart}/{next(_joins)}"
        store = reach_store(
            self._where,
            self._prefix,
            rank=launch.rank,
            timeout_s=timeout_s,
            stop_reason=stop_reason,
        )
        self._board = Board(store, size=launch.size)
        signed_in = self._ask(self._sign_in, timeout_s + 2 * PATIENCE_S)
        if signed_in is None:
            lost = f"the store of rank 0 at {self._where.host}:{self._where.port} is gone"
            raise LostProcess(lost, is_speaker=launcher.speaks_for_rank_0())
        launcher.note_that_we_met()
        decision, is_first = signed_in
        if decision.stop:
            raise StoppedEarly(decision.stop, is_speaker=is_first)
        if decision.missing:
            missing = ", ".join(map(str, decision.missing))
            raise LostProcess(
                f"rank {missing} of {launch.size} has not started within train.timeout_s="
                f"{timeout_s:g}: look at the output of its node and launcher",
                is_speaker=is_first,
            )
        if shared := decision.shared_gpu():
            raise ConfigError(shared, is_speaker=is_first)
        self.hosts, self._processes = decision.hosts, decision.processes
        self.machines = [machine_of(process) for process in self._processes]

    def new_store(self) -> Store:
        """Open another connection to the store, for the process group: each request blocks its own.

        Raises:
            torch.distributed.DistError: the store is gone.
        """
        return open_store(self._where, self._prefix, is_master=False, timeout_s=self._timeout_s)

    def has_lost(self) -> bool:
        """Whether another process has ended, or has failed or lost others, as far as it told."""
        if any(map(is_gone, self._processes)):
            return True
        return self._ask(lambda: self._board.count("answered"), LONGEST_STEP_S) != 0

    def report(self, error: Exception) -> None:
        """Tell the others what failed here; call it before leaving the process group.

        If all processes fail alike, such as on a full disk, all know it before any of them leaves.
        """
        own = own_failure(error)

        def tell() -> bool:
            self._answer(own)
            return not own or self._board.wait_for("roll", SAME_S)

        self._ask(tell, SAME_S + PATIENCE_S)

    def verdict(self, error: Exception) -> Exception:
        """Find out what to raise in place of `error`; call it after leaving the process group.

        Leaving makes the processes that still wait for this one notice. Then every survivor waits
        a moment for the others, and one of them names those that did not come.
        """
        own = own_failure(error)
        # A process in a long computation notices a closed connection only afterwards. If ours timed
        # out, it has had its time.
        wait_s = ROLL_CALL_S
        if "timed out" not in str(error).lower():
            wait_s += min(self._timeout_s, LONGEST_STEP_S)
        heard = self._ask(lambda: self._call(own, wait_s), wait_s + ROLL_CALL_S + 2 * PATIENCE_S)
        if heard is None:  # the process that keeps the store is gone or stopped
            lost = f"the connection to rank 0 on {self.hosts[0]} was lost"
            return error if own else LostProcess(lost, is_speaker=launcher.speaks_for_rank_0())
        answers, is_first = heard
        alike = min((other for other, answer in answers.items() if answer == own), default=0)
        if isinstance(error, (ConfigError, RunError)) or (own and alike == self._rank):
            return error
        # Rank 0 has already printed user errors itself.
        is_told = answers.get(0, "").startswith(TOLD_BY_RANK_0)
        return LostProcess(self._describe(answers, error), is_speaker=is_first and not is_told)

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
        """Sign in and wait for the decision.

        Returns:
            the decision, and whether this process tells the user if it is not to begin.
        """
        board, deadline = self._board, time.monotonic() + self._timeout_s
        board.write(f"process/{self._rank}", where_am_i())
        board.write(f"gpu/{self._rank}", self._gpu)
        board.write(f"host/{self._rank}", clean(socket.gethostname()))
        if board.count("present", 1) >= self._size:
            self._decide(is_late=False)
        while not board.has(["decision"]):
            is_late = self._is_clerk("decision", deadline)
            if is_late or self._stop_reason():
                self._decide(is_late=is_late)
            else:
                time.sleep(board.poll_s)
        decision = board.read("decision", Decision)
        all_have_come = decision.sizes() == {self._size}
        if all_have_come and not decision.shared_gpu():
            return decision, False
        if not (all_have_come or decision.stop or decision.missing):
            raise Foreign("a decision for another number of processes")
        is_first = self._is_first()
        self._leave_together(board.count("present"))
        return decision, is_first

    def _decide(self, *, is_late: bool) -> None:
        """Decide for all, if this process knows enough; the first decision counts."""
        reason = self._stop_reason()
        missing = [] if reason else self._board.missing("host")
        if reason:
            decision = Decision(stop=clean(reason))
        elif not missing:
            hosts, processes, gpus = map(self._read_all, ("host", "process", "gpu"))
            decision = Decision(hosts=hosts, processes=processes, gpus=gpus)
        elif is_late:
            decision = Decision(missing=missing)
        else:
            return
        self._board.write_first("decision", decision)

    def _answer(self, own: str) -> None:
        """Write once what failed here; the last process to do so concludes for all."""
        if self._has_answered:
            return
        self._has_answered = True
        self._board.write(f"failed/{self._rank}", own)
        self._count_answer()

    def _answer_for_the_dead(self) -> None:
        """Count those of this machine that ended without an answer: nobody waits for them."""
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
        """Answer, and wait for the others' answers; also whether this process tells the user."""
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
        """Whether this process has to write `what` now, because time is up.

        The first process that asks does; the others only if PATIENCE_S later it is still missing.
        """
        late_s = time.monotonic() - deadline
        return late_s > 0 and (self._board.count(f"clerks/{what}", 1) == 1 or late_s > PATIENCE_S)

    def _is_first(self) -> bool:
        """Whether this process prints the error: only the first one that asks does."""
        return self._board.count("spoken", 1) == 1

    def _leave_together(self, num_present: int) -> None:
        """Rank 0 may keep the store: it waits a moment until the others have read it."""
        self._board.count("left", 1)
        deadline = time.monotonic() + ROLL_CALL_S
        while self._rank == 0 and time.monotonic() < deadline:
            if self._board.count("left") >= num_present:
                return
            time.sleep(self._board.poll_s)
