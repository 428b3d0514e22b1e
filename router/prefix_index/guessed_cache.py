"""What a worker without cache events probably holds: the prompts that it was sent lately.

Pure: the clock is passed in. The guess forgets the least recently used blocks first, as workers do,
children before their parents. Does not cover: when to guess (``router.prefix_index.event_watch``).
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from core.block_hash import HashArray
from router.placement import WorkerId
from router.prefix_index.prefix_index import PrefixIndex

# Without events nobody tells that a block was evicted.
LIFETIME_S = 120.0


class GuessedCache:
    """Keeps in ``index`` what is guessed of ``worker``, at most ``num_blocks``."""

    def __init__(self, index: PrefixIndex, worker: WorkerId, num_blocks: int) -> None:
        self._index = index
        self._worker = worker
        self._num_blocks = num_blocks
        # Least recently used first: when each was used, in seconds.
        self._used_at: OrderedDict[int, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._used_at)

    def used(self, hashes: HashArray, now: float, room: int) -> None:
        """A prompt with these blocks (uint64) was sent, and answered. ``room``: new blocks that the
        index can take."""
        room = min(room, self._num_blocks)
        chain = hashes[: self._num_blocks].tolist()
        new = [block for block in chain if block not in self._used_at][:room]
        known = set(new)
        for block in reversed(chain):
            if block in known or block in self._used_at:
                self._used_at[block] = now
                self._used_at.move_to_end(block)
        self._index.stored(self._worker, np.array(new, dtype=np.uint64))
        self._forget_old(now)

    def _forget_old(self, now: float) -> None:
        gone: list[int] = []
        while self._used_at:
            block, used_at = next(iter(self._used_at.items()))
            if len(self._used_at) <= self._num_blocks and now - used_at < LIFETIME_S:
                break
            gone.append(block)
            del self._used_at[block]
        self._index.removed(self._worker, np.array(gone, dtype=np.uint64))
