"""Cache events of one worker as they reach one router: nothing missed, nothing taken twice.

Pure: the clock is passed in. Covers: numbers, gaps, late and doubled events, what to ask for again.
Does not cover: what the events say (``router.prefix_index.worker_caches``). A worker that restarts
is another worker: its new life has a view of its own, and events of the old one find none.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.cache_events import CacheChange

# An answer that takes longer than this (seconds) was lost.
ASK_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class AskEvents:
    """The worker is to send all events after this one."""

    after: int


@dataclass(frozen=True, slots=True, eq=False)
class ApplyChange:
    """The next change in order."""

    change: CacheChange


class CacheView:
    """``sequence``: the last change that was applied. A worker's life begins with an empty cache,
    before change 1."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.sequence = 0
        # What is awaited: the newest change that is known to exist, and since when.
        self._newest = 0
        self._asked_at: float | None = None

    @property
    def is_behind(self) -> bool:
        """Whether something is missing and was asked for."""
        return self._asked_at is not None

    def take(self, epoch: int, change: CacheChange, now: float) -> ApplyChange | AskEvents | None:
        if epoch != self.epoch:
            return None
        if change.cleared:
            return self._take_all(change)
        if change.sequence == self.sequence + 1:
            return self._apply(change)
        return self.hears_of(epoch, change.sequence, now)

    def hears_of(self, epoch: int, sequence: int, now: float) -> AskEvents | None:
        """The worker has told of all changes up to this one, it says."""
        if epoch != self.epoch:
            return None
        self._newest = max(self._newest, sequence)
        return self._ask(now) if self._newest > self.sequence else None

    def start_over(self, now: float) -> AskEvents | None:
        """What was applied is void: everything is wanted from the beginning."""
        self._newest = max(self._newest, self.sequence)
        self.sequence = 0
        return self._ask(now)

    def reattached(self) -> None:
        """What was asked for before went with the stream, and the worker knows our `sequence`."""
        self._asked_at = None

    def _take_all(self, change: CacheChange) -> ApplyChange | None:
        # A late one would bring back what is gone.
        return None if change.sequence < self.sequence else self._apply(change)

    def _apply(self, change: CacheChange) -> ApplyChange:
        self.sequence = change.sequence
        if self.sequence >= self._newest:
            self._asked_at = None
        return ApplyChange(change)

    def _ask(self, now: float) -> AskEvents | None:
        if self._asked_at is not None and now - self._asked_at < ASK_AGAIN_S:
            return None
        self._asked_at = now
        return AskEvents(self.sequence)
