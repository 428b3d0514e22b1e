"""How often one request is tried, and how long it waits for workers.

Pure. Does not cover: which workers are avoided, and what is done in the end (``router.flow.flow``).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """Waiting for room is no failure: it is bounded by time, not by the number of attempts.

    A request that was taken and lost its workers waits longer for others (``replacement``) than a
    new one does while none can be reached (``attach``).
    """

    max_attempts: int = 5
    room_patience_s: float = 120.0
    attach_patience_s: float = 2.0
    attach_pause_s: float = 0.1
    replacement_patience_s: float = 60.0
    first_pause_s: float = 0.05
    longest_pause_s: float = 0.5
    retry_after_s: float = 2.0


class Retries:
    """Of one request. Times in seconds on the caller's monotonic clock."""

    __slots__ = ("_limits", "_no_room_since", "_unroutable_since", "failures")

    def __init__(self, limits: RetryLimits) -> None:
        self._limits = limits
        self.failures = 0
        self._no_room_since: float | None = None
        self._unroutable_since: float | None = None

    def count_failure(self) -> bool:
        """Of an attempt; whether there may be another one."""
        self.failures += 1
        return self.failures < self._limits.max_attempts

    def pause_s(self) -> float:
        """The first retry comes at once, further ones are spaced out."""
        if self.failures == 1:
            return 0.0
        pause = self._limits.first_pause_s * 2.0 ** (self.failures - 2)
        return min(pause, self._limits.longest_pause_s)

    def without_room_s(self, now: float) -> float:
        """For how long nobody has had room for it; it begins with the first call."""
        if self._no_room_since is None:
            self._no_room_since = now
        return now - self._no_room_since

    def routed(self) -> None:
        self._unroutable_since = None

    def may_wait_for_workers(self, now: float, *, taken: bool, hopeful: bool) -> bool:
        """There are none for it; the wait begins with the first call. ``taken``: there were some,
        and others are being started in their place; ``hopeful``: some are known that can't be
        reached yet."""
        if self._unroutable_since is None:
            self._unroutable_since = now
        if taken:
            patience = self._limits.replacement_patience_s
        else:
            patience = self._limits.attach_patience_s if hopeful else 0.0
        return now - self._unroutable_since < patience
