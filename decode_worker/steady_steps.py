"""Many steps at once, while each takes the same sequences with one token of each.

As long as sequences only decode, a step differs from the one before it in nothing but the tokens
drawn and, where blocks end, in blocks taken and published. So the state after many such steps
costs as much as its blocks, not as its tokens. A simulation of hours needs that; a worker with an
engine plans each step by itself.

Covers: how many steps are certainly like that, and the blocks they take and publish, in the order
of single steps. Does not cover: whether the next step is like that at all, and the end of the last
one (``decode_worker.scheduler``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.block_hash import HashArray, TokenArray
from core.block_pool import BlockPool
from core.errors import InternalError
from core.sequence import Sequence
from decode_worker.admission import AdmissionQueue

# In each step blocks are first taken for all sequences; later those that became full are published.
_TAKE, _PUBLISH = 0, 1
# The step, from 1; what happens; the sequence's id, by which they have their turns, and itself.
_BlockEvent = tuple[int, int, int, Sequence]
_NO_BLOCK = -1


@dataclass(frozen=True, slots=True, eq=False)
class _FullBlocks:
    """Blocks ``start`` to ``end - 1`` of a sequence become full. ``hashes``: uint64."""

    sequence: Sequence
    start: int
    end: int
    hashes: HashArray

    @classmethod
    def of(cls, sequence: Sequence, computed: int, size: int) -> _FullBlocks | None:
        """Those that are not published once ``computed`` tokens are."""
        start, end = sequence.published, computed // size
        return cls(sequence, start, end, sequence.hashes[start:end]) if end > start else None

    @property
    def builds_on(self) -> tuple[int, int] | None:
        """(hash, id) of the block before the first; None at the start of a prompt."""
        sequence, before = self.sequence, self.start - 1
        if before < 0:
            return None
        return int(sequence.hashes[before]), int(sequence.block_ids[before])

    @property
    def parents(self) -> list[int]:
        start, before = self.start, self.sequence.block_ids[max(0, self.start - 1) : self.end - 1]
        return [_NO_BLOCK] * (start == 0) + before.tolist()

    def tokens(self, size: int) -> TokenArray:
        return self.sequence.tokens[self.start * size : self.end * size]


def count_steady_steps(
    decoding: list[Sequence], pool: BlockPool, queue: AdmissionQueue, eos: frozenset[int]
) -> int:
    """After so many steps an answer may end or somebody who waits be admitted, or the next step may
    lack a block. Whatever tokens are drawn, it is not so before."""
    steps = min([s.certain_tokens(eos) for s in decoding])
    if len(queue):
        continued = filter(queue.head_may_continue, decoding)
        steps = min([steps, *(_steps_to_full_block(s, pool.block_size) for s in continued)])
    return _steps_with_blocks(decoding, pool, steps)


def _steps_with_blocks(decoding: list[Sequence], pool: BlockPool, limit: int) -> int:
    """How many steps, at most ``limit``, find all their blocks without preemption."""
    size, available = pool.block_size, pool.num_available
    # For how many more tokens each sequence has room in its blocks.
    room = np.array([s.num_blocks * size - s.computed for s in decoding])
    low, high = 0, min(limit, (int(room.sum()) + available * size) // len(decoding))
    if _blocks_to_take(room, high, size) <= available:
        return high
    while low < high:
        steps = (low + high + 1) // 2
        if _blocks_to_take(room, steps, size) <= available:
            low = steps
        else:
            high = steps - 1
    return low


def _blocks_to_take(room: npt.NDArray[np.int64], steps: int, block_size: int) -> int:
    return int((-(-np.maximum(steps - room, 0) // block_size)).sum())


def _steps_to_full_block(sequence: Sequence, block_size: int) -> int:
    return block_size - sequence.computed % block_size


def take_and_publish_blocks(decoding: list[Sequence], pool: BlockPool, steps: int) -> None:
    """All blocks that ``steps`` steps take and publish. The tokens that they draw are in place."""
    size = pool.block_size
    full = [x for s in decoding if (x := _FullBlocks.of(s, s.computed + steps, size)) is not None]
    takes = sorted(_takes(decoding, size, steps))
    ready: list[int] = []
    if _can_extend(full, pool):
        ready = pool.allocate_easily(len(takes)).tolist() if takes else []
        if len(ready) == len(takes):
            for block_id, (_, _, _, sequence) in zip(ready, takes, strict=True):
                sequence.add_block(block_id)
            _extend(full, pool)
            return
    _one_by_one(decoding, pool, steps, takes, ready)


def _can_extend(full: list[_FullBlocks], pool: BlockPool) -> bool:
    values = [value for blocks in full for value in blocks.hashes.tolist()]
    ends = [end for blocks in full if (end := blocks.builds_on) is not None]
    return len(set(values)) == len(values) and pool.can_extend(values, ends)


def _extend(full: list[_FullBlocks], pool: BlockPool) -> None:
    if not full:
        return
    pool.extend(
        np.concatenate([x.sequence.block_ids[x.start : x.end] for x in full]),
        np.concatenate([x.hashes for x in full]),
        np.concatenate([x.tokens(pool.block_size) for x in full]).reshape(-1, pool.block_size),
        np.array([parent for x in full for parent in x.parents], dtype=np.int32),
    )
    for blocks in full:
        blocks.sequence.published = blocks.end


def _one_by_one(
    decoding: list[Sequence],
    pool: BlockPool,
    steps: int,
    takes: list[_BlockEvent],
    ready: list[int],
) -> None:
    """In the order of single steps, as what a cache holds may depend on it. ``ready``: the first
    blocks that are taken."""
    size = pool.block_size
    first = iter(ready)
    for _, kind, _, sequence in sorted([*takes, *_publications(decoding, size, steps)]):
        if kind == _TAKE:
            block_id = next(first, None)
            sequence.add_block(_one_block(pool) if block_id is None else block_id)
        else:
            sequence.advance((sequence.published + 1) * size)
            sequence.publish_full_blocks(pool)


def _takes(decoding: list[Sequence], size: int, steps: int) -> list[_BlockEvent]:
    events: list[_BlockEvent] = []
    for sequence in decoding:
        lacking = sequence.num_blocks * size - sequence.computed + 1
        if lacking <= steps:
            number = sequence.sequence_id
            events += [(at, _TAKE, number, sequence) for at in range(lacking, steps + 1, size)]
    return events


def _publications(decoding: list[Sequence], size: int, steps: int) -> list[_BlockEvent]:
    return [
        (at, _PUBLISH, sequence.sequence_id, sequence)
        for sequence in decoding
        for at in range(size - sequence.computed % size, steps + 1, size)
    ]


def _one_block(pool: BlockPool) -> int:
    fresh = pool.allocate(1)
    if fresh is None:
        raise InternalError("more steps at once than find blocks", reason="NOT_STEADY")
    return int(fresh[0])
