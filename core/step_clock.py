"""How long steps take when several of them may be under way. Pure: the clock is passed in."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple


# A tuple, as one is made for each step.
class StepTime(NamedTuple):
    """``total``: seconds from plan to result, the wait for earlier steps included; ``own``: without
    that wait, so that the ``own`` of all steps add up to the time in which the engine was busy."""

    total: float
    own: float


class StepClock:
    """Steps are completed in the order of their plans."""

    def __init__(self) -> None:
        # When each step under way was planned, oldest first.
        self._planned_at: deque[float] = deque()
        self._completed_at = float("-inf")

    def planned(self, now: float) -> None:
        self._planned_at.append(now)

    def completed(self, now: float) -> StepTime:
        """The oldest step under way has its result."""
        planned_at = self._planned_at.popleft()
        began_at = max(planned_at, self._completed_at)
        self._completed_at = now
        return StepTime(now - planned_at, now - began_at)
