"""Which worker holds which cached block, by block hash.

A plain dict from hash to a bitmask of workers, and a small one of the same kind for blocks that are
on their way into a cache. Workers evict leaf-first (a block never outlives its children), so what a
worker holds of a prompt is a run from its start, and the length of that run is found by galloping
instead of looking at every block.
Does not cover: when a block is expected, what is taken in if there is no room (``worker_caches``).
"""

from __future__ import annotations

from functools import lru_cache
from itertools import repeat
from operator import itemgetter

import numpy as np

from core.block_hash import HashArray
from router.held_blocks import HeldBlocks, Numbers
from router.placement import WorkerId

# (workers, number of leading blocks that they hold)
Run = tuple[int, int]


class PrefixIndex:
    """Fed from the workers' cache events; asked for the overlap with a prompt's hashes."""

    def __init__(self) -> None:
        self._masks: dict[int, int] = {}
        self._expected: dict[int, int] = {}
        self._bits: dict[WorkerId, int] = {}
        self._held: dict[WorkerId, int] = {}
        self._free_bits: list[int] = []

    def __len__(self) -> int:
        """Different blocks that are held."""
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
        bit, masks = self._bit(worker), self._masks
        blocks = dict.fromkeys(hashes.tolist(), bit)
        if masks.keys().isdisjoint(blocks):
            masks.update(blocks)
            self._held[worker] += len(blocks)
            return
        known = list(map(masks.get, blocks, repeat(0)))
        if len(set(known)) == 1:
            # A whole prompt that the same others hold.
            masks.update(dict.fromkeys(blocks, known[0] | bit))
        else:
            masks.update(zip(blocks, [mask | bit for mask in known], strict=True))
        self._held[worker] += sum([not mask & bit for mask in known])

    def removed(self, worker: WorkerId, hashes: HashArray) -> None:
        bit, masks, blocks = self._bit(worker), self._masks, hashes.tolist()
        # Mostly nobody else holds them.
        taken = list(map(masks.pop, blocks, repeat(0)))
        dropped = taken.count(bit)
        if dropped < len(blocks):
            left = [(block, mask) for block, mask in zip(blocks, taken, strict=True) if mask != bit]
            masks.update((block, mask & ~bit) for block, mask in left if mask)
            dropped += sum([bool(mask & bit) for _, mask in left])
        self._held[worker] -= dropped

    def expect(self, worker: WorkerId, blocks: list[int]) -> None:
        """``worker`` will have these soon: they count as held by it until `unexpect`."""
        bit, expected = self._bit(worker), self._expected
        if expected.keys().isdisjoint(blocks):
            expected.update(dict.fromkeys(blocks, bit))
        else:
            for block in blocks:
                expected[block] = expected.get(block, 0) | bit

    def unexpect(self, worker: WorkerId, blocks: list[int]) -> None:
        bit, expected = self._bits.get(worker, 0), self._expected
        # Mostly nobody else expects them.
        taken = list(map(expected.pop, blocks, repeat(bit)))
        if taken.count(bit) < len(blocks):
            for block, mask in zip(blocks, taken, strict=True):
                if mask != bit:
                    expected[block] = mask & ~bit

    def reset(self, worker: WorkerId) -> None:
        """Forget what ``worker`` holds. Looks at every block once: some 60 ms per million."""
        if not self._held.get(worker):
            return
        bit = self._bits[worker]
        for block in [block for block, mask in self._masks.items() if mask & bit]:
            self._set(block, self._masks[block] & ~bit)
        self._held[worker] = 0

    def remove_worker(self, worker: WorkerId) -> None:
        """``worker`` is gone; its bit may be given to another."""
        self.reset(worker)
        self.unexpect(worker, list(self._expected))
        bit = self._bits.pop(worker, None)
        self._held.pop(worker, None)
        if bit is not None:
            self._free_bits.append(bit)

    def number(self, worker: WorkerId) -> int:
        """Which entry of `overlaps` is this worker's. Small, and its own until it is removed."""
        return self._bit(worker).bit_length() - 1

    def overlap(self, hashes: HashArray, worker: WorkerId) -> int:
        """How many leading blocks of the prompt (uint64 hashes) ``worker`` holds."""
        runs = self._runs(hashes, self._bits.get(worker, 0))
        return runs[0][1] if runs else 0

    def overlaps(self, hashes: HashArray, count: int) -> HeldBlocks:
        """The same for all workers with numbers below ``count``."""
        level_of, levels = np.zeros(count, dtype=np.intp), [0]
        runs = self._runs(hashes, (1 << count) - 1)
        for mask, blocks in sorted(runs, key=itemgetter(1)):
            if mask & (mask - 1):
                level_of[_numbers(mask, count)] = len(levels)
            else:
                level_of[mask.bit_length() - 1] = len(levels)
            levels.append(blocks)
        return HeldBlocks(levels, level_of)

    def _runs(self, hashes: HashArray, wanted: int) -> list[Run]:
        """Of all that hold something, by galloping."""
        held_by, expected_of = self._masks.get, self._expected.get
        blocks, end = hashes.data, len(hashes) - 1
        runs: list[Run] = []
        held, last, step = wanted, -1, 1
        while held and last < end:
            probe = min(last + step, end)
            block = blocks[probe]
            beyond = (held_by(block, 0) | expected_of(block, 0)) & held
            if beyond != held:
                self._split(blocks, held, last, beyond, probe, runs)
            held, last, step = beyond, probe, step * 2
        if held and last >= 0:
            runs.append((held, last + 1))
        return runs

    def _split(
        self,
        blocks: memoryview[int],
        held: int,
        last: int,
        beyond: int,
        probe: int,
        runs: list[Run],
    ) -> None:
        """Adds the runs that end from ``last`` up to before ``probe``, by bisection."""
        ending = held & ~beyond
        if probe - last == 1:
            if last >= 0:
                runs.append((ending, last + 1))
            return
        middle = (last + probe) // 2
        block = blocks[middle]
        reached = (self._masks.get(block, 0) | self._expected.get(block, 0)) & ending
        if reached != ending:
            self._split(blocks, ending, last, reached, middle, runs)
        if reached:
            self._split(blocks, reached, middle, 0, probe, runs)

    def _set(self, block: int, mask: int) -> None:
        if mask:
            self._masks[block] = mask
        else:
            del self._masks[block]

    def _bit(self, worker: WorkerId) -> int:
        bit = self._bits.get(worker)
        if bit is None:
            bit = self._free_bits.pop() if self._free_bits else 1 << len(self._bits)
            self._bits[worker] = bit
            self._held[worker] = 0
        return bit


# The same workers hold the same beginnings for many prompts.
@lru_cache(maxsize=4096)
def _numbers(mask: int, count: int) -> Numbers:
    """Which bits are set."""
    octets = np.frombuffer(mask.to_bytes(-(-count // 8), "little"), dtype=np.uint8)
    return np.flatnonzero(np.unpackbits(octets, bitorder="little"))
