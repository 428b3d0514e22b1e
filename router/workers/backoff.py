"""Growing pauses between attempts to connect."""

from __future__ import annotations

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0


class Backoff:
    """Each pause is twice as long as the one before, up to a second."""

    def __init__(self) -> None:
        self._pause_s = FIRST_PAUSE_S

    def next_pause(self) -> float:
        pause = self._pause_s
        self._pause_s = min(LONGEST_PAUSE_S, pause * 2)
        return pause

    def reset(self) -> None:
        self._pause_s = FIRST_PAUSE_S
