"""D's one FIFO of everything that waits for blocks, and how its head gets them.

Covers: reserves, local prefills, preempted sequences and forks in one queue; blocks from the
prefix cache first; admission without reserving max_tokens. Pure: no clock, no I/O.
Does not cover: how many may run (``decode_worker.sequence_table``), what they compute when
(``decode_worker.scheduler``).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from core.block_hash import HashArray, TokenArray
from core.block_pool import BlockIds, BlockPool
from core.lease_events import Granted
from core.outputs import StepCounters
from core.request import AttemptKey
from core.sequence import Sequence


@dataclass(frozen=True, slots=True, eq=False)
class WaitingReserve:
    """A handoff in the FIFO: wants blocks for a prompt that a prefill worker computes.

    ``hashes``: of all full blocks of the prompt.
    """

    key: AttemptKey
    tokens: TokenArray
    salt: int
    num_answers: int
    hashes: HashArray


@dataclass(frozen=True, slots=True, eq=False)
class _Refusal:
    """There was no room for ``head``, with so many running, after so many returns of blocks.

    ``next_hash``: of the first of its blocks that was not in the cache and that it could use.
    """

    head: WaitingReserve | Sequence
    num_running: int
    num_returns: int
    next_hash: int | None


class AdmissionQueue:
    """First come, first served: whoever does not fit holds up those behind."""

    def __init__(self, pool: BlockPool, counters: StepCounters) -> None:
        self._pool = pool
        self._counters = counters
        self._waiting: deque[WaitingReserve | Sequence] = deque()
        self._refusal: _Refusal | None = None

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
        if self.admits_nobody(num_running):
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

    def admits_nobody(self, num_running: int) -> bool:
        """Whether nobody waits, or nothing that could help came since the head was refused: no
        block back, no sequence less that keeps room to grow, no more of its prefix in the cache."""
        if not self._waiting:
            return True
        refusal = self._refusal
        return (
            refusal is not None
            and refusal.head is self._waiting[0]
            and refusal.num_running <= num_running
            and refusal.num_returns == self._pool.num_returns
            and not (refusal.next_hash is not None and self._pool.is_cached(refusal.next_hash))
        )

    def head_may_continue(self, sequence: Sequence) -> bool:
        """Whether the head's tokens begin with all of a sequence: its next block may help."""
        if not self._waiting:
            return False
        head, end = self._waiting[0], sequence.length
        return (
            len(head.tokens) >= end
            and head.salt == sequence.salt
            and bool(head.tokens[end - 1] == sequence.tokens[-1])
            and np.array_equal(head.tokens[:end], sequence.tokens)
        )

    def _admit_sequence(self, sequence: Sequence, num_running: int) -> Sequence | None:
        # The last token is always computed, so that there are logits to draw from.
        found = self._find_blocks(sequence, sequence.length - 1, num_running)
        if found is None:
            return None
        held, fresh = found
        sequence.adopt_prefix(held)
        sequence.add_blocks(fresh)
        if sequence.computed_once == 0:
            sequence.cached_tokens = sequence.computed
            self._counters.prefix_tokens_hit += sequence.computed
        return sequence

    def _admit_reserve(self, waiting: WaitingReserve, num_running: int) -> Granted | None:
        found = self._find_blocks(waiting, len(waiting.tokens), num_running)
        if found is None:
            return None
        held, fresh = found
        self._counters.prefix_tokens_hit += len(held) * self._pool.block_size
        return Granted(waiting.key, np.concatenate([held, fresh]), len(held), waiting.hashes)

    def _find_blocks(
        self, head: WaitingReserve | Sequence, max_cached: int, num_running: int
    ) -> tuple[BlockIds, BlockIds] | None:
        """Cached blocks of the prefix, new ones for the rest and one more token; or None.

        Each other sequence that grows keeps room for a block, as far as the pool has so many, so
        that admission is not undone by preemption in the next step.
        """
        size = self._pool.block_size
        growing = num_running + head.num_answers - 1
        total = len(head.tokens) // size + 1
        hashes = head.hashes[: max_cached // size]
        held = self._pool.match_prefix(hashes, head.tokens)
        self._pool.acquire(held)
        count = total - len(held)
        room = min(growing, self._pool.num_blocks - total)
        fits = self._pool.num_available >= count + room
        fresh = self._pool.allocate(count) if fits else None
        if fresh is None:
            self._pool.release(held)
            self._refuse(num_running, hashes[len(held) :])
            return None
        return held, fresh

    def _refuse(self, num_running: int, not_cached: HashArray) -> None:
        next_hash = int(not_cached[0]) if len(not_cached) else None
        self._refusal = _Refusal(self._waiting[0], num_running, self._pool.num_returns, next_hash)
