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

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from core.block_pool import BlockPool
from core.errors import InternalError
from core.sequence import Sequence
from decode_worker.admission import AdmissionQueue

# In each step blocks are first taken for all sequences; later those that became full are published.
_TAKE, _PUBLISH = 0, 1
# The step, from 1; what happens; the sequence's id, by which they have their turns, and itself.
_BlockEvent = tuple[int, int, int, Sequence]


def count_steady_steps(
    decoding: list[Sequence], pool: BlockPool, queue: AdmissionQueue, eos: frozenset[int]
) -> int:
    """After so many steps an answer may end or somebody who waits be admitted, or the next step may
    lack a block. Whatever tokens are drawn, it is not so before."""
    steps = min(s.certain_tokens(eos) for s in decoding)
    for sequence in decoding:
        if queue.head_may_continue(sequence):
            steps = min(steps, _steps_to_full_block(sequence, pool.block_size))
    return _steps_with_blocks(decoding, pool, steps)


def _steps_with_blocks(decoding: list[Sequence], pool: BlockPool, limit: int) -> int:
    """How many steps, at most ``limit``, find all their blocks without preemption."""
    stock = np.array([s.num_blocks * pool.block_size - s.computed for s in decoding])
    if _blocks_to_take(stock, limit, pool.block_size) <= pool.num_available:
        return limit
    low, high = 0, limit - 1
    while low < high:
        steps = (low + high + 1) // 2
        if _blocks_to_take(stock, steps, pool.block_size) <= pool.num_available:
            low = steps
        else:
            high = steps - 1
    return low


def _blocks_to_take(stock: npt.NDArray[np.int64], steps: int, block_size: int) -> int:
    """``stock``: for how many tokens each sequence has room in its blocks."""
    return int((-(-np.maximum(steps - stock, 0) // block_size)).sum())


def _steps_to_full_block(sequence: Sequence, block_size: int) -> int:
    return block_size - sequence.computed % block_size


def take_and_publish_blocks(decoding: list[Sequence], pool: BlockPool, steps: int) -> None:
    """All blocks that ``steps`` steps take, and those that steps before the last one publish."""
    size = pool.block_size
    events = [event for s in decoding for event in _block_events(s, size, steps)]
    for _, kind, _, sequence in sorted(events):
        if kind == _TAKE:
            _take_block(sequence, pool)
        else:
            sequence.advance((sequence.published + 1) * size)
            sequence.publish_full_blocks(pool)


def _block_events(sequence: Sequence, size: int, steps: int) -> Iterator[_BlockEvent]:
    number = sequence.sequence_id
    for step in range(sequence.num_blocks * size - sequence.computed + 1, steps + 1, size):
        yield step, _TAKE, number, sequence
    for step in range(_steps_to_full_block(sequence, size), steps, size):
        yield step, _PUBLISH, number, sequence


def _take_block(sequence: Sequence, pool: BlockPool) -> None:
    fresh = pool.allocate(1)
    if fresh is None:
        raise InternalError("more steps at once than find blocks", reason="NOT_STEADY")
    sequence.add_blocks(fresh)
