"""Which part of the time to the first token was spent in which phase, attempt by attempt.

Each side of a handoff has its own clock and its own view: P waits for D's promise, D for P's
blocks. Only attempts that came through count: of a failed one no phase is told.
Pure: the clock is passed in. Does not cover: histograms (``worker.metrics``).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from core.request import AttemptKey


class Phase(Enum):
    """QUEUE: until the first chunk is computed; PREFILL: until the first token is drawn; RESERVE:
    for a promise of blocks on D; TRANSFER: of blocks, on P only what is left of it after
    computing; COMMIT: until D has started the answer."""

    QUEUE = "queue"
    PREFILL = "prefill"
    RESERVE = "reserve"
    TRANSFER = "transfer"
    COMMIT = "commit"


ObservePhase = Callable[[Phase, float], None]


class PhaseClock:
    """``observe`` gets each phase and its seconds when the attempt has come through; None: nobody
    wants to know, and nothing is kept."""

    def __init__(self, observe: ObservePhase | None = None) -> None:
        self._observe = observe
        self._times: dict[AttemptKey, dict[Phase, tuple[float, float | None]]] = {}

    @property
    def listens(self) -> bool:
        return self._observe is not None

    def begin(self, key: AttemptKey, phase: Phase, now: float) -> None:
        """The last time counts."""
        if self.listens:
            self._times.setdefault(key, {})[phase] = (now, None)

    def begin_once(self, key: AttemptKey, phase: Phase, now: float) -> None:
        """The first time counts. Nothing for an attempt of which no phase has begun."""
        times = self._times.get(key)
        if times is not None:
            times.setdefault(phase, (now, None))

    def end(self, key: AttemptKey, phase: Phase, now: float) -> None:
        """The last time counts; nothing if the phase has not begun."""
        times = self._times.get(key)
        if times is not None and phase in times:
            times[phase] = (times[phase][0], now)

    def move(self, key: AttemptKey, ending: Phase, following: Phase, now: float) -> None:
        """One phase ends and the next one begins; the first time counts. Nothing for an attempt of
        which no phase has begun."""
        times = self._times.get(key)
        if times is not None and following not in times:
            self.end(key, ending, now)
            self.begin(key, following, now)

    def finish(self, key: AttemptKey) -> None:
        """The attempt has come through."""
        for phase, (began, ended) in self._times.pop(key, {}).items():
            if ended is not None and self._observe is not None:
                self._observe(phase, ended - began)

    def forget(self, key: AttemptKey) -> None:
        """The attempt has ended otherwise; nothing if it came through before."""
        self._times.pop(key, None)

    def __len__(self) -> int:
        """Attempts under way."""
        return len(self._times)
