"""D's one FIFO of everything that waits for blocks, and how its head gets them.

Covers: reserves, local prefills, preempted sequences and forks in one queue; blocks from the
prefix cache first; admission without reserving max_tokens. Pure: no clock, no I/O.
Does not cover: what admitted sequences compute when (``decode_worker.scheduler``).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from core.block_hash import HashArray, TokenArray, block_hashes
from core.block_pool import BlockIds, BlockPool
from core.lease_events import Granted
from core.outputs import StepCounters
from core.request import AttemptKey
from core.sequence import Sequence


@dataclass(frozen=True, slots=True, eq=False)
class WaitingReserve:
    """A handoff in the FIFO: wants blocks for a prompt that a prefill worker computes."""

    key: AttemptKey
    tokens: TokenArray
    salt: int
    num_answers: int


class AdmissionQueue:
    """First come, first served: whoever does not fit holds up those behind."""

    def __init__(self, pool: BlockPool, counters: StepCounters) -> None:
        self._pool = pool
        self._counters = counters
        self._waiting: deque[WaitingReserve | Sequence] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def sequences(self) -> list[Sequence]:
        """Those that compute their prompt, or what they lost, on this worker."""
        return [x for x in self._waiting if isinstance(x, Sequence)]

    def add(self, item: WaitingReserve | Sequence) -> None:
        self._waiting.append(item)

    def add_first(self, sequence: Sequence) -> None:
        """A preempted sequence resumes before anything new starts."""
        self._waiting.appendleft(sequence)

    def remove(self, sequence: Sequence) -> None:
        self._waiting.remove(sequence)

    def remove_reserve(self, key: AttemptKey) -> None:
        self._waiting = deque(
            x for x in self._waiting if not (isinstance(x, WaitingReserve) and x.key == key)
        )

    def admit_next(self, num_running: int) -> Sequence | Granted | None:
        """The head with its blocks, if they are there."""
        if not self._waiting:
            return None
        head = self._waiting[0]
        admitted: Sequence | Granted | None
        if isinstance(head, Sequence):
            admitted = self._admit_sequence(head, num_running)
        else:
            admitted = self._admit_reserve(head, num_running)
        if admitted is not None:
            self._waiting.popleft()
        return admitted

    def _admit_sequence(self, sequence: Sequence, num_running: int) -> Sequence | None:
        growing = num_running + sequence.num_answers - 1
        # The last token is always computed, so that there are logits to draw from.
        found = self._find_blocks(sequence.tokens, sequence.salt, sequence.length - 1, growing)
        if found is None:
            return None
        held, fresh, hashes = found
        sequence.adopt_prefix(held, hashes, self._pool.block_size)
        sequence.add_blocks(fresh)
        if sequence.computed_once == 0:
            sequence.cached_tokens = sequence.computed
            self._counters.prefix_tokens_hit += sequence.computed
        return sequence

    def _admit_reserve(self, waiting: WaitingReserve, num_running: int) -> Granted | None:
        growing = num_running + waiting.num_answers - 1
        found = self._find_blocks(waiting.tokens, waiting.salt, len(waiting.tokens), growing)
        if found is None:
            return None
        held, fresh, hashes = found
        self._counters.prefix_tokens_hit += len(held) * self._pool.block_size
        return Granted(waiting.key, np.concatenate([held, fresh]), len(held), hashes)

    def _find_blocks(
        self, tokens: TokenArray, salt: int, max_cached: int, growing: int
    ) -> tuple[BlockIds, BlockIds, HashArray] | None:
        """Cached blocks of the prefix, new ones for the rest and one more token; or None.

        Each of ``growing`` other sequences keeps room for a block, as far as the pool has so many,
        so that admission is not undone by preemption in the next step.
        """
        size = self._pool.block_size
        total = len(tokens) // size + 1
        hashes = block_hashes(tokens, size, salt)
        held = self._pool.match_prefix(hashes[: max_cached // size], tokens)
        self._pool.acquire(held)
        count = total - len(held)
        room = min(growing, self._pool.num_blocks - total)
        fits = self._pool.num_available >= count + room
        fresh = self._pool.allocate(count) if fits else None
        if fresh is None:
            self._pool.release(held)
            return None
        return held, fresh, hashes
