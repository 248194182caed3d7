"""Who is there: at the start of a run, and after something went wrong.

Processes answer through the key-value store in which they first find each other, never through a
collective: a collective needs everybody, and here somebody is missing.
"""

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from torch.distributed import (  # type: ignore[attr-defined]  # torch has them all the same
    DistError,
    PrefixStore,
    Store,
    TCPStore,
)

from sinlstm_dist.config import ConfigError
from sinlstm_dist.launcher import is_node_speaker

ROLL_CALL_S = 2.0  # how long survivors wait for each other before they name who is missing
LONGEST_STEP_S = 20.0  # and how much longer for one that computes; torchrun gives them 30 s
SAME_S = 0.5  # how long one that failed waits for others to say that they failed alike
PATIENCE_S = 2.0  # more for a store that does not answer, as that of a stopped process
POLL_S = 0.02
CONNECT_S = 1.0  # for one attempt to reach rank 0, between two looks at a request to stop
DEFAULT_PORT = "29500"  # Accelerate's and torchrun's
GO = "go"

Answer = TypeVar("Answer")

_joins = itertools.count()  # a process may join several worlds, one after the other


class RunError(Exception):
    """The run cannot go on, for a reason that all processes know; exit code 1, no traceback."""


TOLD_BY_RANK_0 = (f"{ConfigError.__name__}: ", f"{RunError.__name__}: ")


class LostProcess(Exception):
    """Another process died, hangs, failed or cannot be reached.

    Args:
        message: names ranks and hosts.
        is_speaker: whether this is the survivor that tells the user.
    """

    def __init__(self, message: str, *, is_speaker: bool) -> None:
        super().__init__(message)
        self.is_speaker = is_speaker


class StoppedEarly(Exception):
    """A request to stop came before all processes were there: nothing was begun, nothing is saved.

    Args:
        reason: what asked.
        is_speaker: whether this process tells the user.
    """

    def __init__(self, reason: str, *, is_speaker: bool) -> None:
        super().__init__(f"{reason} before all processes had joined; nothing was begun")
        self.is_speaker = is_speaker


class RollCall:
    """The processes that signed in.

    Args:
        rank: of this process.
        size: number of processes.
        timeout_s: seconds that it waits for the others.
        stop_reason: called while it waits; what it returns, if anything, ends the wait for all.

    Raises:
        LostProcess: some did not come in time.
        StoppedEarly: one was asked to stop before all had come.

    Collective: yes, through the store.
    """

    def __init__(
        self, *, rank: int, size: int, timeout_s: float, stop_reason: Callable[[], str]
    ) -> None:
        self._rank, self._size, self._stop_reason = rank, size, stop_reason
        self._timeout_s = timeout_s
        self._store = _connect(rank=rank, timeout_s=timeout_s, stop_reason=stop_reason)
        signed_in = _in_time(lambda: self._sign_in(timeout_s), timeout_s=timeout_s + PATIENCE_S)
        if signed_in is None:
            raise LostProcess("rank 0 came, but cannot be reached now", is_speaker=rank == 1)
        present, plan = signed_in
        if plan != GO:
            is_first = self._is_first()
            self._leave_together(len(present))
            raise StoppedEarly(plan, is_speaker=is_first)
        if len(present) < size:
            missing = ", ".join(str(other) for other in range(size) if other not in present)
            is_first = self._is_first()
            self._leave_together(len(present))
            raise LostProcess(
                f"rank {missing} of {size} has not started within train.timeout_s={timeout_s:g}: "
                "look at the output of its node and launcher",
                is_speaker=is_first,
            )
        self.hosts = [present[other] for other in range(size)]

    def report(self, error: Exception) -> None:
        """Tell the others what happened here; call it before leaving the process group.

        A failure that all share, such as a full disk, is then known to all before any leaves.
        """
        own = _own_failure(error)
        self._tell("failed", own)
        if own:
            _in_time(lambda: self._hear("failed", SAME_S), timeout_s=PATIENCE_S)

    def verdict(self, error: Exception) -> Exception:
        """What to raise in place of `error`; call it after leaving the process group.

        Leaving makes those notice who still wait for this process. Then every survivor waits a
        moment for the others, and one of them names those that did not come.
        """
        own = _own_failure(error)
        self._tell("failed", own)
        # One that lives, but has much to compute, learns of a closed connection only after that;
        # it has had its time when ours was up.
        wait_s = ROLL_CALL_S
        if "timed out" not in str(error).lower():
            wait_s += min(self._timeout_s, LONGEST_STEP_S)
        heard = _in_time(
            lambda: self._call(own, wait_s), timeout_s=wait_s + ROLL_CALL_S + PATIENCE_S
        )
        if heard is None:  # the store is gone or stopped, and so is the process that keeps it
            lost = f"the connection to rank 0 on {self.hosts[0]} was lost"
            return error if own else LostProcess(lost, is_speaker=self._rank == 1)
        answers, is_first = heard
        alike = min((other for other, answer in answers.items() if answer == own), default=0)
        if isinstance(error, (ConfigError, RunError)) or (own and alike == self._rank):
            return error
        # What is a sentence for people, the launcher's rank 0 has told by itself.
        is_told = answers.get(0, "").startswith(TOLD_BY_RANK_0)
        return LostProcess(self._describe(answers, error), is_speaker=is_first and not is_told)

    def _sign_in(self, timeout_s: float) -> tuple[dict[int, str], str]:
        """The hosts of those that are there, by rank, and `GO`, or why all stop before they go."""
        self._tell("host", socket.gethostname())
        hosts = self._hear(
            "host",
            timeout_s,
            unless=lambda: bool(self._stop_reason()) or self._store.check(["plan"]),
        )
        if self._stop_reason() or len(hosts) == self._size:
            # The first one's plan is everybody's: none waits for one that has left.
            self._store.compare_set("plan", "", self._stop_reason() or GO)
        plan = self._store.get("plan").decode() if self._store.check(["plan"]) else GO
        return self._hear("host", 0), plan

    def _call(self, own: str, wait_s: float) -> tuple[dict[int, str], bool]:
        """What happened to each that answers, and whether this process tells the user."""
        answers = self._hear("failed", wait_s)
        is_first = not own and self._is_first()
        self._leave_together(len(answers))
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

    def _tell(self, what: str, answer: str) -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone: `_hear` finds out
            self._store.set(f"{what}/{self._rank}", answer)

    def _hear(
        self, what: str, timeout_s: float, *, unless: Callable[[], bool] = lambda: False
    ) -> dict[int, str]:
        """The answers by rank, of all processes or of those that come in time, `unless` it ends."""
        deadline = time.monotonic() + timeout_s
        present: list[int] = []
        while len(present) < self._size:
            present = [r for r in range(self._size) if self._store.check([f"{what}/{r}"])]
            if time.monotonic() > deadline or unless():
                break
            time.sleep(POLL_S)
        return {other: self._store.get(f"{what}/{other}").decode() for other in present}

    def _is_first(self) -> bool:
        """Whether nobody asked before: so one speaks, however late others wake up."""
        return bool(self._store.add("spoken", 1) == 1)

    def _leave_together(self, num_present: int) -> None:
        """Rank 0 may keep the store, and waits a moment until the others have read it."""
        self._store.add("left", 1)
        deadline = time.monotonic() + ROLL_CALL_S
        while self._rank == 0 and self._store.add("left", 0) < num_present:
            if time.monotonic() > deadline:
                return
            time.sleep(POLL_S)


def _connect(*, rank: int, timeout_s: float, stop_reason: Callable[[], str]) -> Store:
    """The store of the launcher's agent, or one that rank 0 keeps, as torch would make it."""
    if "MASTER_ADDR" not in os.environ:
        raise ConfigError("MASTER_ADDR is not set: several processes need rank 0's address there")
    host, port = os.environ["MASTER_ADDR"], int(os.environ.get("MASTER_PORT", DEFAULT_PORT))
    has_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    is_master = rank == 0 and not has_agent
    try:
        if not is_master:
            _wait_for_port(host, port, timeout_s=timeout_s, stop_reason=stop_reason)
        store = TCPStore(
            host,
            port,
            is_master=is_master,
            wait_for_workers=False,
            multi_tenant=True,  # torch makes its own at the same address
            timeout=timedelta(seconds=timeout_s),
        )
    except (OSError, DistError) as error:
        raise LostProcess(
            f"rank 0 cannot be reached at {host}:{port} within train.timeout_s={timeout_s:g}, or "
            f"another program has that port: look at its node's output, try another port ({error})",
            is_speaker=rank in (0, 1),
        ) from error
    # Agents count restarts each by itself: only where their store outlives the processes is the
    # count needed, to part them from those before.
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if has_agent else "0"
    return PrefixStore(f"sinlstm_dist/{restart}/{next(_joins)}", store)


def _wait_for_port(
    host: str, port: int, *, timeout_s: float, stop_reason: Callable[[], str]
) -> None:
    """Wait until somebody listens there: torch's own wait hears no signal and prints its stack.

    Raises:
        OSError: why nobody could be reached in time.
        StoppedEarly: a request to stop came, and nobody is there to be told.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host, port), timeout=CONNECT_S).close()
            return
        except OSError as error:
            if reason := stop_reason():
                raise StoppedEarly(reason, is_speaker=is_node_speaker()) from error
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)


def _in_time(function: Callable[[], Answer], *, timeout_s: float) -> Answer | None:
    """What `function` returns; None if its store is gone, or does not answer in time."""
    results: list[Answer] = []

    def call() -> None:
        with contextlib.suppress(RuntimeError):
            results.append(function())

    # A thread, since a question to a store whose process is stopped waits for ever.
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return results[0] if results else None


def _own_failure(error: Exception) -> str:
    """What failed in this process; "" if it only noticed that torch's process group gave up."""
    if isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL"))
    ):
        return ""
    return f"{type(error).__name__}: {error}"
