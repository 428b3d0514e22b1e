"""What one router knows of its workers' prefix caches.

Pure: the clock is passed in. Covers: events in their order, what is missing and asked for, blocks
that are expected, workers that tell nothing, the bound on memory. The index takes no more than
``max_blocks`` different blocks: beyond it, the ends of new chains are left out until there is room
for all that such a worker can hold. Does not cover: the wire, loads
(``router.routing.worker_load``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from core.block_hash import HashArray
from core.cache_events import NO_PARENT, CacheChange, StoredBlocks
from core.config import DEFAULT_MAX_INDEX_BLOCKS
from core.request import AttemptKey
from router.placement import WorkerId
from router.prefix_index.cache_view import ApplyChange, AskEvents, CacheView
from router.prefix_index.event_watch import EventWatch
from router.prefix_index.expected_blocks import ExpectedBlocks
from router.prefix_index.guessed_cache import GuessedCache
from router.prefix_index.held_blocks import HeldBlocks
from router.prefix_index.prefix_index import new_index

# A worker of which some blocks were left out is not asked for everything more often than this.
COMPLETE_AGAIN_S = 10.0


@dataclass(slots=True)
class _Known:
    view: CacheView
    num_blocks: int
    # Some of what it holds was left out.
    is_partial: bool = False
    completed_at: float = -math.inf
    guessed: GuessedCache | None = None


class WorkerCaches:
    """``index`` holds it all. A worker's entries outlive its stream, but not the worker."""

    def __init__(self, max_blocks: int = DEFAULT_MAX_INDEX_BLOCKS) -> None:
        self.index = new_index()
        self.max_blocks = max_blocks
        # Blocks that were left out for want of room.
        self.left_out = 0
        self._known: dict[WorkerId, _Known] = {}
        self._expected = ExpectedBlocks(self.index)
        self._watch = EventWatch()

    # Workers

    def attached(self, worker: WorkerId, num_blocks: int) -> int:
        """Returns its number in `overlaps`: its own until `forget`."""
        known = self._known.get(worker)
        if known is None:
            self._known[worker] = _Known(CacheView(worker.epoch), num_blocks)
        else:
            known.view.reattached()
        return self.index.number(worker)

    def lost(self, worker: WorkerId) -> None:
        """The stream broke: nothing that was sent to it is on its way any more."""
        self._expected.forget(worker)

    def forget(self, worker: WorkerId) -> None:
        """It is gone for good."""
        self._known.pop(worker, None)
        self.lost(worker)
        self._watch.forget(worker)
        self.index.remove_worker(worker)

    def sequence(self, worker: WorkerId) -> int:
        """The last change that is known of it; 0: none."""
        known = self._known.get(worker)
        return 0 if known is None else known.view.sequence

    def guess(self, worker: WorkerId) -> None:
        """It gives no events: from now on go by what it was sent."""
        known = self._known[worker]
        if known.guessed is None:
            self.index.reset(worker)
            known.guessed = GuessedCache(self.index, worker, known.num_blocks)

    def is_guessed(self, worker: WorkerId) -> bool:
        known = self._known.get(worker)
        return known is not None and known.guessed is not None

    # Events

    def take(
        self, worker: WorkerId, epoch: int, change: CacheChange, now: float
    ) -> AskEvents | None:
        """A change arrived. Returns what to ask the worker for, if anything is missing."""
        known = self._known.get(worker)
        if known is None:
            return None
        step = known.view.take(epoch, change, now)
        if not isinstance(step, ApplyChange):
            return step
        self._watch.heard(worker)
        if known.guessed is not None:
            return self._stop_guessing(worker, known, change, now)
        self._apply(worker, known, change)
        return self._complete(worker, known, now) if known.is_partial else None

    def hears_of(self, worker: WorkerId, epoch: int, sequence: int, now: float) -> AskEvents | None:
        """The worker says that all changes up to this one were told."""
        known = self._known.get(worker)
        return None if known is None else known.view.hears_of(epoch, sequence, now)

    def changed(self, worker: WorkerId, stored: HashArray, removed: HashArray) -> None:
        """A change without number, for who has none to miss: the simulator."""
        if len(removed):
            self.index.removed(worker, removed)
        if len(stored):
            self.index.stored(worker, stored)

    def _stop_guessing(
        self, worker: WorkerId, known: _Known, change: CacheChange, now: float
    ) -> AskEvents | None:
        known.guessed = None
        self.index.reset(worker)
        if change.cleared:
            self._apply(worker, known, change)
            return None
        return known.view.start_over(now)

    def _apply(self, worker: WorkerId, known: _Known, change: CacheChange) -> None:
        if change.cleared:
            self.index.reset(worker)
            known.is_partial = False
        if len(change.removed):
            self.index.removed(worker, change.removed)
        if known.is_partial or len(self.index) + len(change.stored) > self.max_blocks:
            self._store_what_fits(worker, known, change.stored)
        else:
            self.index.stored(worker, change.stored.hashes)

    def _store_what_fits(self, worker: WorkerId, known: _Known, stored: StoredBlocks) -> None:
        for parent, chain in stored.chains():
            fits = 0
            if parent == NO_PARENT or self.index.holds(worker, parent):
                fits = self._that_fit(chain)
            self.index.stored(worker, np.array(chain[:fits], dtype=np.uint64))
            self.left_out += len(chain) - fits
            known.is_partial |= fits < len(chain)

    def _that_fit(self, chain: list[int]) -> int:
        """How many of its leading blocks."""
        room = self.max_blocks - len(self.index)
        for place, block in enumerate(chain):
            room -= not self.index.is_known(block)
            if room < 0:
                return place
        return len(chain)

    def _complete(self, worker: WorkerId, known: _Known, now: float) -> AskEvents | None:
        """What was left out is asked for when there is room for all that the worker can hold."""
        lacking = known.num_blocks - self.index.num_held(worker)
        if known.view.is_behind or len(self.index) + lacking > self.max_blocks:
            return None
        if now < known.completed_at + COMPLETE_AGAIN_S:
            return None
        self.index.reset(worker)
        known.is_partial, known.completed_at = False, now
        return known.view.start_over(now)

    # What was sent

    def expect(
        self, key: AttemptKey, worker: WorkerId, hashes: HashArray, held: int, now: float
    ) -> None:
        """A prompt with these blocks (uint64) goes to ``worker``, which has ``held`` of them."""
        self._expected.add(key, worker, hashes, held, now)

    def settled(self, key: AttemptKey, worker: WorkerId) -> None:
        """The attempt ended, without an answer as far as is known."""
        self._expected.settle(key, worker)

    def answered(self, key: AttemptKey, worker: WorkerId, hashes: HashArray, now: float) -> bool:
        """The attempt, whose prompt has these blocks (uint64), gave its first output. Tells whether
        ``worker`` gives no events, though it did so until now."""
        self._expected.settle(key, worker)
        known = self._known.get(worker)
        if known is None:
            return False
        if known.guessed is not None:
            known.guessed.used(hashes, now, self.max_blocks - len(self.index))
            return False
        # What was left out may be there already.
        if known.is_partial or known.view.is_behind or self._told_of(worker, hashes):
            return False
        return self._watch.answered(worker, now)

    def _told_of(self, worker: WorkerId, hashes: HashArray) -> bool:
        """Whether its events named all these blocks: the last one is not there without the rest."""
        return not len(hashes) or self.index.holds(worker, int(hashes[-1]))

    # Prompts

    def overlaps(self, hashes: HashArray, count: int) -> HeldBlocks:
        """Leading blocks of a prompt that each worker with a number below ``count`` holds or is
        expected to."""
        return self.index.overlaps(hashes, count)
