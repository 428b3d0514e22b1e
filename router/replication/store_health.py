"""Whether the store can be asked now: a circuit breaker. Pure.

The first thing that fails opens it, and from then on nobody waits for the store; only probes go
there, more and more rarely, until one is answered. So of a store that hangs each request that was
under way waits once, for as long as the bound of its call, and none that comes later.
"""

from __future__ import annotations

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0


class StoreHealth:
    """Begins degraded: until the first probe is answered nothing is known of the store."""

    def __init__(self) -> None:
        self._is_shared = False
        self._pause_s = FIRST_PAUSE_S
        self.why = "not asked yet"

    @property
    def is_shared(self) -> bool:
        """Else each router goes by what it knows itself."""
        return self._is_shared

    def failed(self, why: str) -> bool:
        """A call failed or took too long. Tells whether that is news."""
        was_shared, self._is_shared = self._is_shared, False
        self.why = why
        return was_shared

    def answered(self) -> bool:
        """A probe was answered. Tells whether that is news."""
        was_shared, self._is_shared = self._is_shared, True
        self._pause_s, self.why = FIRST_PAUSE_S, ""
        return not was_shared

    def next_pause_s(self) -> float:
        """How long to wait before the next probe."""
        pause, self._pause_s = self._pause_s, min(2 * self._pause_s, LONGEST_PAUSE_S)
        return pause
