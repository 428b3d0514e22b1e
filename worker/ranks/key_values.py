"""The rendezvous of a replica's ranks: small values by key, kept by the leading rank.

Both classes are ``engine.rendezvous.KeyValues``. Does not cover: what is kept there (process
groups' addresses, by torch).
"""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import Future, InvalidStateError

from crossdock.v1 import rank_pb2 as pb
from worker.ranks.connection import RankConnection


class LeaderKeyValues:
    """In the memory of the leading rank; ``timeout_s``: how long `get` waits for a value."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._values: dict[str, Future[bytes]] = {}
        self._closed: BaseException | None = None

    def set(self, key: str, value: bytes) -> None:
        """The last one that was set counts."""
        with self._lock:
            future = self._find(key)
            if future.done():
                future = self._values[key] = Future()
        with contextlib.suppress(InvalidStateError):  # Closed in between.
            future.set_result(value)

    def get(self, key: str) -> bytes:
        """Blocks until it is there. Raises ``TimeoutError``, or why it never will be."""
        try:
            return self.when_set(key).result(self._timeout_s)
        except TimeoutError:
            raise _missing(key, self._timeout_s) from None

    def has(self, key: str) -> bool:
        """Whether it is there now. Raises why it never will be."""
        found = self.when_set(key)
        if not found.done():
            return False
        found.result()
        return True

    def when_set(self, key: str) -> Future[bytes]:
        """Done as soon as there is a value. Not to be cancelled: others wait for the same."""
        with self._lock:
            return self._find(key)

    def close(self, error: BaseException) -> None:
        """Whoever waits, and whoever will, gets ``error``."""
        with self._lock:
            self._closed = error
            waiting = [future for future in self._values.values() if not future.done()]
        for future in waiting:
            with contextlib.suppress(InvalidStateError):  # Set in between.
                future.set_exception(error)

    def _find(self, key: str) -> Future[bytes]:
        future = self._values.get(key)
        if future is None:
            future = self._values[key] = Future()
            if self._closed is not None:
                future.set_exception(self._closed)
        return future


class RemoteKeyValues:
    """The same ones, from another rank."""

    def __init__(self, leader: RankConnection, timeout_s: float) -> None:
        self._leader = leader
        self._timeout_s = timeout_s

    def set(self, key: str, value: bytes) -> None:
        self._leader.send(pb.RankMessage(set_value=pb.SetValue(key=key, value=value)))

    def get(self, key: str) -> bytes:
        """Blocks until it is there. Raises ``TimeoutError`` or ``ConnectionError``."""
        return self._ask(pb.GetValue(key=key)).value

    def has(self, key: str) -> bool:
        """Whether it is there now. Raises as `get`."""
        return not self._ask(pb.GetValue(key=key, now=True)).missing

    def _ask(self, question: pb.GetValue) -> pb.FoundValue:
        asked = self._leader.ask(pb.RankMessage(get_value=question))
        try:
            return asked.result(self._timeout_s).found_value
        except TimeoutError:
            raise _missing(question.key, self._timeout_s) from None


def _missing(key: str, timeout_s: float) -> TimeoutError:
    return TimeoutError(f"no rank has set {key} within {timeout_s:g} s")
