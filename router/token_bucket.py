"""A limit on something per second, with bursts: the token bucket.

Pure. What costs more than a full bucket holds is let through when it is full, and paid off
afterwards: so every request is possible, and the rate holds on average.
"""

from __future__ import annotations


class TokenBucket:
    """``rate`` per second, ``burst`` at once. Times in seconds."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._at = 0.0

    def wait_s(self, cost: float, now: float) -> float:
        """How long it takes until ``cost`` may be taken; 0 if it may be now."""
        self._fill(now)
        return max(0.0, (min(cost, self._burst) - self._level) / self._rate)

    def take(self, cost: float, now: float) -> None:
        """A negative one gives back."""
        self._fill(now)
        self._level = min(self._burst, self._level - cost)

    def _fill(self, now: float) -> None:
        if now > self._at:
            self._level = min(self._burst, self._level + (now - self._at) * self._rate)
            self._at = now
