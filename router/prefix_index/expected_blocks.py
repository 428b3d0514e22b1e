"""Blocks that a worker will cache for prompts that were just sent to it.

Pure: the clock is passed in. Until the first event tells of them they count as held, so that a
burst of requests with the same beginning lands together. An expectation ends with the first output
or the end of its attempt, and at the latest after its lifetime.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.block_hash import HashArray
from core.request import AttemptKey
from router.placement import WorkerId
from router.prefix_index.prefix_index import PrefixIndex

# Longer than most prompts wait and compute; a mistake does no harm after it.
LIFETIME_S = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class Expectation:
    """``new_blocks``: hashes of those that were not there. ``sent_at`` in seconds."""

    new_blocks: HashArray
    sent_at: float


class ExpectedBlocks:
    """Keeps in ``index`` what is expected of each worker."""

    def __init__(self, index: PrefixIndex) -> None:
        self._index = index
        # Oldest first.
        self._open: dict[tuple[AttemptKey, WorkerId], Expectation] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(
        self, key: AttemptKey, worker: WorkerId, hashes: HashArray, held: int, now: float
    ) -> None:
        """The attempt's prompt goes to ``worker``, which has the first ``held`` blocks of it."""
        self.settle(key, worker)
        self._expire(now)
        new_blocks = hashes[held:]
        self._open[key, worker] = Expectation(new_blocks, now)
        self._index.expect(worker, new_blocks)

    def settle(self, key: AttemptKey, worker: WorkerId) -> None:
        """The events have told by now."""
        expectation = self._open.pop((key, worker), None)
        if expectation is not None:
            self._index.unexpect(worker, expectation.new_blocks)

    def forget(self, worker: WorkerId) -> None:
        for key, whose in [entry for entry in self._open if entry[1] == worker]:
            self.settle(key, whose)

    def _expire(self, now: float) -> None:
        while self._open:
            (key, worker), oldest = next(iter(self._open.items()))
            if now - oldest.sent_at < LIFETIME_S:
                return
            self.settle(key, worker)
