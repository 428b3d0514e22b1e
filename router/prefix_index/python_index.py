"""The prefix index where nothing is compiled.

A plain dict from hash to a bitmask of workers, and a small one of the same kind for blocks that are
on their way into a cache. Workers evict leaf-first (a block never outlives its children), so what a
worker holds of a prompt is a run from its start, and the length of that run is found by galloping
instead of looking at every block.
Finds what ``router.prefix_index.compiled_index`` finds, probe by probe.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import repeat

import numpy as np

from core.block_hash import HashArray
from router.placement import WorkerId
from router.prefix_index.held_blocks import HeldBlocks, Numbers
from router.prefix_index.stale_bits import StaleBits

# Blocks that are looked at with one change: less than a millisecond.
_SLICE_BLOCKS = 1024

# (number of leading blocks, workers that hold so many)
Run = tuple[int, int]


class PythonIndex:
    """A `router.prefix_index.prefix_index.PrefixIndex`.

    ``slice_blocks``: after `reset`, so many blocks are looked at with each change.
    """

    def __init__(self, slice_blocks: int = _SLICE_BLOCKS) -> None:
        self._masks: dict[int, int] = {}
        self._expected: dict[int, int] = {}
        # A worker keeps its number; its bit is another one when it has started over.
        self._numbers: dict[WorkerId, int] = {}
        self._bits: dict[WorkerId, int] = {}
        self._held: dict[WorkerId, int] = {}
        self._free_numbers: list[int] = []
        self._free_bits: list[int] = []
        self._slice_blocks = slice_blocks
        self._stale = StaleBits(self._masks, slice_blocks)
        self._num_bits = 0
        # All bits that are somebody's, and by number which one; -1: nobody's.
        self._wanted = 0
        self._places: Numbers = np.zeros(0, dtype=np.intp)

    def __len__(self) -> int:
        return len(self._masks)

    def num_held(self, worker: WorkerId) -> int:
        return self._held.get(worker, 0)

    def holds(self, worker: WorkerId, block: int) -> bool:
        """Whether ``worker`` has told so; what is only expected does not count."""
        return bool(self._masks.get(block, 0) & self._bits.get(worker, 0))

    def is_known(self, block: int) -> bool:
        """Whether anybody holds it: to note another holder takes no room."""
        return block in self._masks

    def stored(self, worker: WorkerId, hashes: HashArray) -> None:
        if self._stale.is_due:
            self._clear_some()
        bit, masks, blocks = self._bit(worker), self._masks, hashes.tolist()
        before = len(masks)
        # Mostly nobody held them.
        found = list(map(masks.setdefault, blocks, repeat(bit)))
        new = len(masks) - before
        if new < len(blocks):
            known = {block: m for block, m in zip(blocks, found, strict=True) if m != bit}
            masks.update((block, m | bit) for block, m in known.items())
            new += sum([not m & bit for m in known.values()])
        self._held[worker] += new

    def removed(self, worker: WorkerId, hashes: HashArray) -> None:
        if self._stale.is_due:
            self._clear_some()
        bit, masks, blocks = self._bit(worker), self._masks, hashes.tolist()
        # Mostly nobody else holds them.
        taken = list(map(masks.pop, blocks, repeat(0)))
        dropped = taken.count(bit)
        if dropped < len(blocks):
            left = [(block, mask) for block, mask in zip(blocks, taken, strict=True) if mask != bit]
            masks.update((block, mask & ~bit) for block, mask in left if mask)
            dropped += sum([bool(mask & bit) for _, mask in left])
        self._held[worker] -= dropped

    def expect(self, worker: WorkerId, hashes: HashArray) -> None:
        bit, expected, blocks = self._bit(worker), self._expected, hashes.tolist()
        before = len(expected)
        found = list(map(expected.setdefault, blocks, repeat(bit)))
        if len(expected) - before < len(blocks):
            expected.update((b, m | bit) for b, m in zip(blocks, found, strict=True) if m != bit)

    def unexpect(self, worker: WorkerId, hashes: HashArray) -> None:
        self._unexpect(worker, hashes.tolist())

    def _unexpect(self, worker: WorkerId, blocks: list[int]) -> None:
        bit, expected = self._bits.get(worker, 0), self._expected
        # Mostly nobody else expects them.
        taken = list(map(expected.pop, blocks, repeat(bit)))
        if taken.count(bit) < len(blocks):
            for block, mask in zip(blocks, taken, strict=True):
                if mask != bit:
                    expected[block] = mask & ~bit

    def reset(self, worker: WorkerId) -> None:
        """Forget what ``worker`` holds, at once for all who ask; see
        ``router.prefix_index.stale_bits``."""
        if not self._held.get(worker):
            return
        old, new = self._bits[worker], self._new_bit()
        self._bits[worker] = new
        self._give_up(old, self._held[worker])
        self._held[worker] = 0
        for block in [block for block, mask in self._expected.items() if mask & old]:
            self._expected[block] += new - old
        self._list_bits()

    def remove_worker(self, worker: WorkerId) -> None:
        """``worker`` is gone; its number may be given to another."""
        bit = self._bits.get(worker)
        if bit is None:
            return
        self._unexpect(worker, list(self._expected))
        self._free_numbers.append(self._numbers.pop(worker))
        del self._bits[worker]
        self._give_up(bit, self._held.pop(worker))
        self._list_bits()

    def number(self, worker: WorkerId) -> int:
        self._bit(worker)
        return self._numbers[worker]

    def overlaps(self, hashes: HashArray, count: int) -> HeldBlocks:
        # The last place is nobody's.
        level_of = np.zeros(self._num_bits + 1, dtype=np.intp)
        runs = self._runs(hashes, self._wanted)
        runs.sort()
        for level, (_, mask) in enumerate(runs, 1):
            if mask & (mask - 1):
                level_of[_numbers(mask, self._num_bits)] = level
            else:
                level_of[mask.bit_length() - 1] = level
        if len(self._places) < count:
            missing = count - len(self._places)
            self._places = np.pad(self._places, (0, missing), constant_values=-1)
        return HeldBlocks([0, *[run[0] for run in runs]], level_of[self._places[:count]])

    def _runs(self, hashes: HashArray, wanted: int) -> list[Run]:
        """Of all that hold something, by galloping; where some runs end, by bisection."""
        held_by, expected_of = self._masks.get, self._expected.get
        blocks, end = hashes.data, len(hashes) - 1
        runs: list[Run] = []
        # Workers, a block that they hold, and a later one that none of them holds.
        ends: list[tuple[int, int, int]] = []
        held, last, step = wanted, -1, 1
        while held and last < end:
            probe = last + step if last + step < end else end
            block = blocks[probe]
            beyond = (held_by(block, 0) | expected_of(block, 0)) & held
            if beyond != held:
                ends.append((held ^ beyond, last, probe))
            held, last, step = beyond, probe, step * 2
        if held and last >= 0:
            runs.append((last + 1, held))
        while ends:
            ending, last, probe = ends.pop()
            while probe - last > 1:
                middle = (last + probe) >> 1
                block = blocks[middle]
                reached = (held_by(block, 0) | expected_of(block, 0)) & ending
                if not reached:
                    probe = middle
                    continue
                if reached != ending:
                    ends.append((ending ^ reached, last, middle))
                ending, last = reached, middle
            if last >= 0:
                runs.append((last + 1, ending))
        return runs

    # Bits

    def _bit(self, worker: WorkerId) -> int:
        bit = self._bits.get(worker)
        if bit is None:
            number = self._free_numbers.pop() if self._free_numbers else len(self._numbers)
            self._numbers[worker] = number
            bit = self._bits[worker] = self._new_bit()
            self._held[worker] = 0
            self._list_bits()
        return bit

    def _new_bit(self) -> int:
        if self._free_bits:
            return self._free_bits.pop()
        self._num_bits += 1
        return 1 << (self._num_bits - 1)

    def _list_bits(self) -> None:
        places = np.full(max(self._numbers.values(), default=-1) + 1, -1, dtype=np.intp)
        self._wanted = 0
        for worker, number in self._numbers.items():
            self._wanted |= self._bits[worker]
            places[number] = self._bits[worker].bit_length() - 1
        self._places = places

    def _give_up(self, bit: int, num_blocks: int) -> None:
        self._stale.add(bit, num_blocks)
        if len(self._masks) <= self._slice_blocks:
            self._clear_some()

    def _clear_some(self) -> None:
        cleared = self._stale.clear_some()
        while cleared:
            bit = cleared & -cleared
            self._free_bits.append(bit)
            cleared ^= bit


# The same workers hold the same beginnings for many prompts.
@lru_cache(maxsize=4096)
def _numbers(mask: int, count: int) -> Numbers:
    """Which bits are set."""
    octets = np.frombuffer(mask.to_bytes(-(-count // 8), "little"), dtype=np.uint8)
    return np.flatnonzero(np.unpackbits(octets, bitorder="little"))
