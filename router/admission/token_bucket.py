"""A limit on something per second, with bursts: the token bucket.

Pure. What costs more than a full bucket holds is let through when it is full, and paid off
afterwards: so every request is possible, and the rate holds on average.
"""

from __future__ import annotations

from typing import NamedTuple

from core.tenants import TenantLimits

_MINUTE_S = 60.0


class Budget(NamedTuple):
    """``rate`` per second, ``burst`` at once."""

    rate: float
    burst: float

    def part(self, part: float) -> Budget:
        """Of several that share it; each lets one through at once all the same."""
        return Budget(self.rate * part, max(1.0, self.burst * part))


def request_budget(limits: TenantLimits) -> Budget | None:
    """None: no limit."""
    rate = limits.requests_per_second
    return None if rate is None else Budget(rate, max(1.0, rate))


def token_budget(limits: TenantLimits) -> Budget | None:
    """None: no limit."""
    tokens = limits.tokens_per_minute
    return None if tokens is None else Budget(tokens / _MINUTE_S, tokens)


class TokenBucket:
    """``rate`` per second, ``burst`` at once. Times in seconds."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._at = 0.0

    def become(self, budget: Budget, now: float) -> None:
        """From now on it has another rate and burst, and is as full as before."""
        self._fill(now)
        self._level *= budget.burst / self._burst
        self._rate, self._burst = budget

    def level(self, now: float) -> float:
        """What is left; less than 0 while something is paid off."""
        self._fill(now)
        return self._level

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
