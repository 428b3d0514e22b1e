"""How fast what waits gets its first token, for telling who is refused when to come again. Pure."""

from __future__ import annotations

# Each departure counts so much of the one after it.
_FADING = 0.95
# Said while nothing has been measured.
_UNKNOWN_S = 2.0
_SHORTEST_S, _LONGEST_S = 0.1, 60.0


class Departures:
    """Mean time between first tokens, of the time in which somebody waited. Seconds."""

    def __init__(self) -> None:
        self._mean_s: float | None = None
        self._since = 0.0

    def began(self, now: float) -> None:
        """From now on somebody waits."""
        self._since = now

    def left(self, now: float) -> None:
        """One of those who wait has its first token."""
        gap, self._since = now - self._since, now
        mean = self._mean_s
        self._mean_s = gap if mean is None else _FADING * mean + (1 - _FADING) * gap

    def wait_s(self, waiting: int) -> float:
        """Until so many have left."""
        if self._mean_s is None:
            return _UNKNOWN_S
        return min(max(_SHORTEST_S, waiting * self._mean_s), _LONGEST_S)
