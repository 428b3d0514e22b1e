"""Whether the store can be asked now: a circuit breaker. Pure.

The first thing that fails opens it, and from then on nobody waits for the store; only probes go
there, more and more rarely, until one is answered. So of a store that hangs each request that was
under way waits once, for as long as the bound of its call, and none that comes later. A store that
fails again soon after it was back, as a slow one does, is probed as rarely as before.
"""

from __future__ import annotations

import math

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
# Who has answered for so long is as good as new.
STEADY_S = 10.0


class StoreHealth:
    """Begins degraded: until the first probe is answered nothing is known of the store. Times in
    seconds."""

    def __init__(self) -> None:
        self._is_shared = False
        self._shared_since = -math.inf
        self._pause_s = FIRST_PAUSE_S
        self.why = "not asked yet"

    @property
    def is_shared(self) -> bool:
        """Else each router goes by what it knows itself."""
        return self._is_shared

    def failed(self, why: str, now: float) -> bool:
        """A call failed or took too long. Tells whether that is news."""
        was_shared, self._is_shared = self._is_shared, False
        self.why = why
        if was_shared and now - self._shared_since >= STEADY_S:
            self._pause_s = FIRST_PAUSE_S
        return was_shared

    def answered(self, now: float) -> bool:
        """A probe was answered. Tells whether that is news."""
        was_shared, self._is_shared = self._is_shared, True
        self.why = ""
        if not was_shared:
            self._shared_since = now
        return not was_shared

    def next_pause_s(self) -> float:
        """How long to wait before the next probe."""
        pause, self._pause_s = self._pause_s, min(2 * self._pause_s, LONGEST_PAUSE_S)
        return pause
