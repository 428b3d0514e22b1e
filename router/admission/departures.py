"""How fast what waits gets its first token, for telling who is refused when to come again. Pure."""

from __future__ import annotations

# Each departure counts so much of the one after it.
_FADING = 0.95
_SHORTEST_S, _LONGEST_S = 0.1, 60.0


class Departures:
    """Of one line: how many are ``waiting``, and the mean time between their first tokens, of the
    time in which somebody waited. Seconds."""

    def __init__(self) -> None:
        self.waiting = 0
        self._mean_s: float | None = None
        self._since = 0.0

    def arrived(self, now: float) -> None:
        if not self.waiting:
            self._since = now
        self.waiting += 1

    def left(self, now: float) -> None:
        """One of those who wait has its first token."""
        self.gave_up()
        gap, self._since = now - self._since, now
        mean = self._mean_s
        self._mean_s = gap if mean is None else _FADING * mean + (1 - _FADING) * gap

    def gave_up(self) -> None:
        """One of those who wait waits no longer."""
        self.waiting -= 1

    def wait_s(self, now: float) -> float | None:
        """Until all who wait have left; None while nothing has been measured. A line that has come
        to a halt is as slow as it has stood still."""
        if self._mean_s is None:
            return None
        wait = self.waiting * max(self._mean_s, now - self._since)
        return min(max(_SHORTEST_S, wait), _LONGEST_S)
