"""When a failed call is worth another try, and after how long. Pure: time is passed in.

gRPC's own retry policy is not used: it knows nothing of RetryInfo, which is how the server says
when there will be room. What gRPC does by itself stays on: a call that provably never reached a
server is sent once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import grpc

from crossdock.client.errors import ServerError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """``max_tries`` counts the first one: 1 is "no retries". Pauses in seconds; they double."""

    max_tries: int = 5
    first_pause_s: float = 0.1
    longest_pause_s: float = 5.0

    def __post_init__(self) -> None:
        if self.max_tries < 1:
            raise ValueError(f"max_tries = {self.max_tries}: must be at least 1")
        if not 0 < self.first_pause_s <= self.longest_pause_s:
            raise ValueError(
                f"first_pause_s = {self.first_pause_s}: must be above 0 and at most "
                f"longest_pause_s = {self.longest_pause_s}"
            )


class Tries:
    """The tries of one call. ``deadline``: on the caller's monotonic clock, None for none."""

    def __init__(self, policy: RetryPolicy, deadline: float | None, random: Random) -> None:
        self._policy = policy
        self._deadline = deadline
        self._random = random
        self._made = 1
        self._received = False
        self._backoff = policy.first_pause_s

    def remaining(self, now: float) -> float | None:
        """Seconds that the try which starts now may take."""
        return None if self._deadline is None else max(0.0, self._deadline - now)

    def received(self) -> None:
        """A part of the answer has come: from here on the call can't be tried again."""
        self._received = True

    def pause_after(self, error: ServerError, now: float) -> float | None:
        """Seconds to wait before the next try; None if ``error`` is to be told.

        Never earlier than the server asks for, never beyond the deadline, never twice at the same
        moment for clients that were refused together.
        """
        if self._received or self._made >= self._policy.max_tries or not _may_pass(error):
            return None
        pause = self._pause(error.retry_after)
        if self._deadline is not None and now + pause >= self._deadline:
            return None
        self._made += 1
        self._backoff = min(self._policy.longest_pause_s, 2 * self._backoff)
        return pause

    def _pause(self, asked: float | None) -> float:
        if asked is None:
            return self._random.uniform(self._backoff / 2, self._backoff)
        return asked + self._random.uniform(0, self._backoff)


def _may_pass(error: ServerError) -> bool:
    """An error of the server's own says by RetryInfo whether it may pass; one of the way may."""
    if error.code is grpc.StatusCode.UNAVAILABLE:
        return error.retry_after is not None or not error.reason
    return error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.retry_after is not None
