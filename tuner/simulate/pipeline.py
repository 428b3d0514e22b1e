"""When the stages of one replica's pipeline are busy with which step. Pure.

A step passes all stages, in each of which it takes an equal part of its time; stages take the steps
in their order. With one stage that is an engine that computes one step at a time.
"""

from __future__ import annotations


class Pipeline:
    """``depth`` stages. Times in femtoseconds. ``ended_at``: when the latest step is over."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.busy = 0
        self._free_at = [0] * depth
        self.ended_at = 0

    @property
    def entrance_free_at(self) -> int:
        """When the first stage takes the next step."""
        return self._free_at[0]

    def enter(self, now: int, time: int) -> int:
        """A step that takes ``time`` starts ``now``; returns its end, later than ``now``."""
        part = max(1, time // self.depth)
        # What the division leaves is the last stage's.
        parts = [part] * (self.depth - 1) + [max(1, time - part * (self.depth - 1))]
        reached = now
        for stage, duration in enumerate(parts):
            reached = max(reached, self._free_at[stage]) + duration
            self._free_at[stage] = reached
        self.busy += reached - max(now, self.ended_at)
        self.ended_at = reached
        return reached

    def pass_to(self, start: int, end: int) -> None:
        """Steps one after the other, nothing else under way, took from ``start`` to ``end``."""
        self._free_at = [end] * self.depth
        self.busy += end - start
        self.ended_at = end

    def busy_until(self, now: int) -> int:
        """Time up to ``now`` in which some step was under way."""
        return self.busy - max(0, self.ended_at - now)
