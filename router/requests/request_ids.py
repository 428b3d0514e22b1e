"""Request ids in use: unique per tenant while a request runs and for a minute after."""

from __future__ import annotations

from collections import deque

from core.errors import AlreadyExists
from core.request import REQUEST_ID_KEPT_S, RequestKey


class RequestIds:
    """Remembers ids. Times in seconds on the caller's monotonic clock."""

    def __init__(self, kept_s: float = REQUEST_ID_KEPT_S) -> None:
        self._kept_s = kept_s
        self._taken: set[RequestKey] = set()
        self._ended: deque[tuple[float, RequestKey]] = deque()

    def check(self, key: RequestKey, now: float) -> None:
        """Raises AlreadyExists while the id is taken."""
        self._forget(now)
        if key in self._taken:
            raise id_taken(key, self._kept_s)

    def claim(self, key: RequestKey, now: float) -> None:
        """Take an id; raises AlreadyExists while it is taken."""
        self.check(key, now)
        self._taken.add(key)

    def release(self, key: RequestKey, now: float) -> None:
        """The request has ended; its id stays taken for a while, so that late copies are seen."""
        self._ended.append((now + self._kept_s, key))

    def _forget(self, now: float) -> None:
        while self._ended and self._ended[0][0] <= now:
            self._taken.discard(self._ended.popleft()[1])


def id_taken(key: RequestKey, kept_s: float = REQUEST_ID_KEPT_S) -> AlreadyExists:
    return AlreadyExists(
        f"request_id {key.request_id!r} runs, or ended less than {kept_s:g} s ago; "
        "choose another one",
        reason="REQUEST_ID_TAKEN",
        metadata={"request_id": key.request_id},
    )
