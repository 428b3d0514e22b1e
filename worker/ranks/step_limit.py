"""Whether the steps under way get no result for too long. Pure: told the counts now and then.

A rank whose engine hangs while the rest of its process lives on answers pings; ranks that wait
for its tensors give up by themselves, but after the rank that draws nobody waits for any.
"""

from __future__ import annotations


class StepLimit:
    """``limit_s``: how long steps may be under way without any of them getting its result."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._completed = -1
        self._since = 0.0

    def overdue(self, submitted: int, completed: int, now: float) -> bool:
        """``now`` in seconds, never less than before."""
        if submitted == completed or completed != self._completed:
            self._completed, self._since = completed, now
        return now - self._since >= self.limit_s
