"""The key-value store in which processes find each other: reached, and read with care.

Whoever reaches its port can write there, so what is read is bounded, decoded whatever it is, and
checked by those who ask for it.
"""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from torch.distributed import (  # type: ignore[attr-defined]  # torch has them all the same
    PrefixStore,
    Store,
    TCPStore,
)

from sinlstm_dist.processes.launcher import Meeting

MOST_TEXT = 2000  # characters of what one process tells the others, such as why it failed
ESCAPED = 7  # at most so many characters for one of them in JSON
POLL_S = 0.02
REQUESTS_PER_S = 2000  # of all waiting processes together: in a larger world each asks less often
CONNECT_S = 1.0  # for one attempt to reach rank 0, between two looks at a request to stop

Answer = TypeVar("Answer")
Content = TypeVar("Content", bound=BaseModel)


class Foreign(Exception):
    """Something in the store that no process of this run can have written."""


class Board:
    """Short texts and counters that all processes see.

    Args:
        store: of torch.
        size: number of processes.
    """

    def __init__(self, store: Store, *, size: int) -> None:
        self._store, self._size = store, size
        self._is_lost = False
        self.poll_s = max(POLL_S, size / REQUESTS_PER_S)

    def ask(self, question: Callable[[], Answer], *, within_s: float) -> Answer | None:
        """What `question`, which uses this board, returns; None if the store is gone or silent.

        Raises:
            Foreign: from `question`.
        """
        if self._is_lost:  # the thread that still waits has the store's lock
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

        # A thread, since a question to a store whose process is stopped waits for ever.
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(within_s)
        if foreign:
            raise foreign[0]
        self._is_lost = not answers
        return answers[0] if answers else None

    def write(self, key: str, text: str) -> None:
        """Put `text` under `key`, in place of what is there."""
        self._store.set(key, text)

    def write_first(self, key: str, content: BaseModel) -> None:
        """Put `content` under `key` if nobody has written there before."""
        self._store.compare_set(key, "", content.model_dump_json())

    def has(self, keys: Sequence[str]) -> bool:
        """Whether all of the keys were written; one request."""
        return bool(self._store.check(list(keys)))

    def read(self, key: str, form: type[Content]) -> Content:
        """What `write_first` has put under a key.

        Raises:
            Foreign: something else is there.
        """
        text = _text(self._store.get(key), most=ESCAPED * MOST_TEXT * self._size)
        try:
            return form.model_validate_json(text)
        except ValidationError as error:
            raise Foreign(f"{key} is {text[:40]!r}") from error

    def read_each(self, keys: Sequence[str]) -> list[str]:
        """The texts under keys that were all written; one request.

        Raises:
            Foreign: one is longer than `MOST_TEXT` characters.
        """
        return [_text(value, MOST_TEXT) for value in self._store.multi_get(list(keys))]

    def missing(self, what: str) -> list[int]:
        """The ranks whose `what/RANK` was not written: one request if there is none."""
        keys = [f"{what}/{rank}" for rank in range(self._size)]
        if self.has(keys):
            return []
        return [rank for rank, key in enumerate(keys) if not self.has([key])]

    def count(self, key: str, more: int = 0) -> int:
        """A counter's value after `more` was added."""
        return int(self._store.add(key, more))

    def wait_for(self, key: str, timeout_s: float) -> bool:
        """Wait until somebody has written `key`. Returns whether it was in time."""
        deadline = time.monotonic() + timeout_s
        while not (is_there := self.has([key])) and time.monotonic() < deadline:
            time.sleep(self.poll_s)
        return is_there


def clean(text: str) -> str:
    """`text` as it can be told to others: of bounded length, and of characters that UTF-8 has."""
    return text[:MOST_TEXT].encode("utf-8", "replace").decode()


def _text(value: bytes, most: int) -> str:
    text = value.decode("utf-8", "replace")
    if len(text) > most:
        raise Foreign(f"a text of {len(text):,} characters")
    return text


def open_store(where: Meeting, prefix: str, *, is_master: bool, timeout_s: float) -> Store:
    """A connection to the store of the launcher's agent, or to the one that rank 0 keeps.

    Args:
        prefix: of the keys, which no other world uses.
        is_master: whether this process keeps the store.

    Raises:
        torch.distributed.DistError: there is no store at that address.
    """
    store = TCPStore(
        where.host,
        where.port,
        is_master=is_master,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
    )
    return PrefixStore(prefix, store)


def wait_for_port(where: Meeting, timeout_s: float, stop_reason: Callable[[], str]) -> str:
    """Wait until somebody listens there: torch's own wait hears no signal and prints its stack.

    Returns:
        why to stop waiting, if a request came; the empty string when somebody listens.

    Raises:
        OSError: why nobody could be reached in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((where.host, where.port), timeout=CONNECT_S).close()
            return ""
        except OSError:
            if reason := stop_reason():
                return reason
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
