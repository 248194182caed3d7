"""Reach the key-value store in which processes find each other, and read it with care.

Anybody who can reach its port can write there. So the length of what is read is bounded, any bytes
can be decoded, and the reader checks the content.
"""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from torch.distributed import (  # type: ignore[attr-defined]  # mypy does not see them
    DistError,
    PrefixStore,
    Store,
    TCPStore,
)

from sinlstm_dist.errors import LostProcess, StoppedEarly
from sinlstm_dist.processes import launcher
from sinlstm_dist.processes.launcher import Meeting

MOST_TEXT = 2000  # characters of one process's text, such as why it failed
ESCAPED = 7  # JSON writes one character as at most seven
POLL_S = 0.02
REQUESTS_PER_S = 2000  # of all waiting processes together: in a larger world each asks less often
CONNECT_S = 1.0  # per attempt to reach rank 0; between attempts a request to stop is noticed

# The store at each address that this process keeps. It does so until it ends: others that have left
# a world may already wait there for the next one. Test: test_worlds_one_after_the_other
_kept: dict[Meeting, Store] = {}

Answer = TypeVar("Answer")
Content = TypeVar("Content", bound=BaseModel)


class Foreign(Exception):
    """The store holds something that no process of this run can have written."""


class Board:
    """Short texts and counters in a store, seen by all processes.

    Args:
        store: torch's.
        size: number of processes.
    """

    def __init__(self, store: Store, *, size: int) -> None:
        self._store, self._size = store, size
        self._is_lost = False
        self.poll_s = max(POLL_S, size / REQUESTS_PER_S)

    def ask(self, question: Callable[[], Answer], *, within_s: float) -> Answer | None:
        """Call `question`, which uses this board, and wait for it at most `within_s`.

        Returns:
            what `question` returns; None if the store is gone or does not answer.

        Raises:
            Foreign: raised by `question`.
        """
        if self._is_lost:  # a thread still waits for the store and holds its lock
            return None
        answers: list[Answer] = []
        foreign: list[Foreign] = []

        def call() -> None:
            try:
                answers.append(question())
            except Foreign as error:
                foreign.append(error)
            except RuntimeError:  # the store is gone
                pass

        # In a thread: a store whose process is stopped never answers, and TCPStore has no timeout
        # for that. Test: test_died_or_hangs[hang-0]
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(within_s)
        if foreign:
            raise foreign[0]
        self._is_lost = not answers
        return answers[0] if answers else None

    def write(self, key: str, text: str) -> None:
        """Write `text` under `key`, replacing what is there."""
        self._store.set(key, text)

    def write_first(self, key: str, content: BaseModel) -> None:
        """Write `content` under `key` if nobody has written there before."""
        self._store.compare_set(key, "", content.model_dump_json())

    def has(self, keys: Sequence[str]) -> bool:
        """Whether all of these keys were written; one request."""
        return bool(self._store.check(list(keys)))

    def read(self, key: str, form: type[Content]) -> Content:
        """Read what `write_first` has written under `key`.

        Raises:
            Foreign: something else is there.
        """
        text = _text(self._store.get(key), most=ESCAPED * MOST_TEXT * self._size)
        try:
            return form.model_validate_json(text)
        except ValidationError as error:
            raise Foreign(f"{key} is {text[:40]!r}") from error

    def read_each(self, keys: Sequence[str]) -> list[str]:
        """Read the texts under these keys, which must all be there; one request.

        Raises:
            Foreign: a text is longer than `MOST_TEXT` characters.
        """
        return [_text(value, MOST_TEXT) for value in self._store.multi_get(list(keys))]

    def missing(self, what: str) -> list[int]:
        """The ranks whose `what/RANK` was not written; a single request if all were."""
        keys = [f"{what}/{rank}" for rank in range(self._size)]
        if self.has(keys):
            return []
        return [rank for rank, key in enumerate(keys) if not self.has([key])]

    def count(self, key: str, more: int = 0) -> int:
        """Add `more` to a counter. Returns its new value."""
        return int(self._store.add(key, more))

    def wait_for(self, key: str, timeout_s: float) -> bool:
        """Wait until somebody has written `key`. Returns whether that was in time."""
        deadline = time.monotonic() + timeout_s
        while not (is_there := self.has([key])) and time.monotonic() < deadline:
            time.sleep(self.poll_s)
        return is_there


def clean(text: str) -> str:
    """Shorten `text` to `MOST_TEXT` characters, and replace those that UTF-8 cannot write."""
    return text[:MOST_TEXT].encode("utf-8", "replace").decode()


def _text(value: bytes, most: int) -> str:
    text = value.decode("utf-8", "replace")
    if len(text) > most:
        raise Foreign(f"a text of {len(text):,} characters")
    return text


def reach_store(
    where: Meeting, prefix: str, *, rank: int, timeout_s: float, stop_reason: Callable[[], str]
) -> Store:
    """Connect to the store as soon as it is there; without a launcher's agent, rank 0 keeps it.

    Args:
        where: the store's address.
        prefix: of all keys.
        rank: of this process.
        timeout_s: seconds to wait for the store, and later for its answers.
        stop_reason: called while this process waits; a text that it returns ends the wait.

    Raises:
        LostProcess: nobody can be reached at that address in time, or not a store.
        StoppedEarly: `stop_reason` ended the wait.
    """
    is_master = rank == 0 and not where.has_agent
    try:
        if not is_master:
            _wait_for_port(where, timeout_s, stop_reason)
        return open_store(where, prefix, is_master=is_master, timeout_s=timeout_s)
    except (OSError, DistError) as error:
        is_absent = isinstance(error, OSError) and not where.has_agent
        speaks = launcher.speaks_for_rank_0() if is_absent else launcher.is_node_speaker()
        raise LostProcess(
            f"rank 0 cannot be reached at {where.host}:{where.port} within train.timeout_s="
            f"{timeout_s:g}, or another program has that port: look at its node's output, try "
            f"another port ({error})",
            is_speaker=speaks,
        ) from error


def open_store(where: Meeting, prefix: str, *, is_master: bool, timeout_s: float) -> Store:
    """Open one connection to the store, which this process keeps if `is_master`.

    Raises:
        torch.distributed.DistError: there is no store at that address.
    """
    store = TCPStore(
        where.host,
        where.port,
        is_master=is_master,
        wait_for_workers=False,
        multi_tenant=True,  # also if this process already keeps it
        timeout=timedelta(seconds=timeout_s),
    )
    if is_master:
        _kept[where] = store
    return PrefixStore(prefix, store)


def _wait_for_port(where: Meeting, timeout_s: float, stop_reason: Callable[[], str]) -> None:
    """Wait until somebody listens: torch's own wait ignores signals, and prints its stack."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((where.host, where.port), timeout=CONNECT_S).close()
            return
        except OSError:
            if reason := stop_reason():
                raise StoppedEarly(reason, is_speaker=launcher.is_node_speaker()) from None
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
