"""Many steps at once, while each takes the same sequences with one token of each.

As long as sequences only decode, a step differs from the one before it in nothing but the tokens
drawn and, where blocks end, in blocks taken and published. So the state after many such steps
costs as much as its blocks, not as its tokens. A simulation of hours needs that; a worker with an
engine plans each step by itself.

Covers: how many of the next steps are certainly like that, and booking them: tokens, the blocks
that they take and publish, in the order of single steps, answers that end with the last one.
Does not cover: single steps (``decode_worker.scheduler``).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from core.block_pool import BlockPool
from core.errors import InternalError
from core.outputs import TokenOutput
from core.sequence import Sequence
from core.step import SampledToken
from decode_worker.admission import AdmissionQueue
from decode_worker.sequence_table import SequenceTable, token_output

# In each step blocks are first taken for all sequences; later those that became full are published.
_TAKE, _PUBLISH = 0, 1
# The step, from 1; what happens; the sequence's id, by which they have their turns, and itself.
_BlockEvent = tuple[int, int, int, Sequence]
# The step, from 1; the sequence's id; its block that becomes full, with its hash; the sequence.
_FullBlock = tuple[int, int, int, int, Sequence]
_NO_BLOCK = -1


class SteadySteps:
    """Steps of the sequences that run, many at a time. ``depth``: how many its engine may have
    under way at once."""

    def __init__(self, sequences: SequenceTable, depth: int = 1) -> None:
        self._sequences = sequences
        self._depth = depth

    def count(self) -> int:
        """How many next steps, after a call of `SequenceTable.admit`, certainly take all sequences
        that run now, with one token each, and change nothing else; only the last of them may end
        answers.

        0 if the next step is not like that, and always if several may be under way at once.
        """
        sequences = self._sequences
        running, queue = sequences.running, sequences.queue
        if self._depth > 1 or sequences.in_flight or sequences.forks or not running:
            return 0
        for sequence in running:
            if sequence.length - sequence.computed > 1 or not sequence.generated:
                return 0
        if sequences.has_place and not queue.admits_nobody(len(running)):
            return 0
        return _count_certain(running, sequences.pool, queue, sequences.eos)

    def complete(self, steps: int, token_of: Callable[[Sequence], int]) -> list[TokenOutput]:
        """Plans and books ``steps`` steps, 1 to `count`, in each of which each sequence draws its
        ``token_of``. Returns the tokens that end answers; all belong to the last step."""
        sequences = self._sequences
        drawn = [(sequence, token_of(sequence)) for sequence in sequences.running]
        for sequence, token in drawn:
            sequence.append(token, steps)
        _take_and_publish_blocks(sequences.running, sequences.pool, steps)
        sequences.num_planned += steps
        sequences.counters.steps += steps
        sequences.counters.decode_tokens += steps * len(drawn)
        outputs = []
        for sequence, token in drawn:
            sequence.last_step = sequences.num_planned
            sequence.advance(sequence.length - 1)
            finish = sequences.finish_if_over(sequence, token)
            if finish is not None:
                outputs.append(token_output(sequence, SampledToken(token), finish, first=False))
        return outputs


def _count_certain(
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
    if len(decoding) * (-(-limit // size)) <= available:
        return limit
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


def _take_and_publish_blocks(decoding: list[Sequence], pool: BlockPool, steps: int) -> None:
    """All blocks that ``steps`` steps take and publish. The tokens that they draw are in place."""
    size = pool.block_size
    full = _full_blocks(decoding, size, steps)
    takes = sorted(_takes(decoding, size, steps))
    ready: list[int] = []
    if _can_extend(full, pool):
        ready = pool.allocate_easily(len(takes)).tolist() if takes else []
        if len(ready) == len(takes):
            for block_id, (_, _, _, sequence) in zip(ready, takes, strict=True):
                sequence.add_block(block_id)
            if len(decoding) == 1:
                decoding[0].advance(decoding[0].computed + steps)
                decoding[0].publish_full_blocks(pool)
                return
            for _, _, place, value, sequence in sorted(full):
                _extend(sequence, place, value, pool)
            return
    _one_by_one(decoding, pool, steps, takes, ready)


def _full_blocks(decoding: list[Sequence], size: int, steps: int) -> list[_FullBlock]:
    full: list[_FullBlock] = []
    for sequence in decoding:
        start, computed, number = sequence.published, sequence.computed, sequence.sequence_id
        end = (computed + steps) // size
        if start < end:
            for place, value in enumerate(sequence.hashes[start:end].tolist(), start):
                full.append(((place + 1) * size - computed, number, place, value, sequence))
    return full


def _can_extend(full: list[_FullBlock], pool: BlockPool) -> bool:
    values = [block[3] for block in full]
    ends = [
        (int(sequence.hashes[place - 1]), int(sequence.block_ids[place - 1]))
        for _, _, place, _, sequence in full
        if place and place == sequence.published
    ]
    return len(set(values)) == len(values) and pool.can_extend(values, ends)


def _extend(sequence: Sequence, place: int, value: int, pool: BlockPool) -> None:
    size, block_ids = pool.block_size, sequence.block_ids
    parent = int(block_ids[place - 1]) if place else _NO_BLOCK
    tokens = sequence.tokens[place * size : (place + 1) * size]
    pool.extend(int(block_ids[place]), value, tokens, parent)
    sequence.published = place + 1


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
