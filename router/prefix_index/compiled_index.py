"""The prefix index in C++ (``native/prefix_index.cpp``): what a decision asks is one call.

A table from block hashes to sets of workers. Does not cover: where nothing is compiled
(``router.prefix_index.python_index``).
"""

from __future__ import annotations

import ctypes
import weakref

import numpy as np

from core.block_hash import HashArray
from router.placement import WorkerId
from router.prefix_index.held_blocks import Counts, HeldBlocks, Numbers


class CompiledIndex:
    """A `router.prefix_index.prefix_index.PrefixIndex`. For one thread: ``library`` is called with
    Python's lock kept."""

    def __init__(self, library: ctypes.PyDLL) -> None:
        self._library = library
        self._index: int = library.crossdock_index_new()
        weakref.finalize(self, library.crossdock_index_delete, self._index)
        self._numbers: dict[WorkerId, int] = {}
        self._free_numbers: list[int] = []
        self._held: dict[WorkerId, int] = {}
        self._make_columns(0)

    def __len__(self) -> int:
        size: int = self._library.crossdock_index_size(self._index)
        return size

    def num_held(self, worker: WorkerId) -> int:
        return self._held.get(worker, 0)

    def holds(self, worker: WorkerId, block: int) -> bool:
        number = self._numbers.get(worker)
        if number is None:
            return False
        return bool(self._library.crossdock_index_holds(self._index, number, block))

    def is_known(self, block: int) -> bool:
        return bool(self._library.crossdock_index_knows(self._index, block))

    def stored(self, worker: WorkerId, hashes: HashArray) -> None:
        store, number = self._library.crossdock_index_store, self.number(worker)
        self._held[worker] += store(self._index, number, hashes.tobytes(), len(hashes))

    def removed(self, worker: WorkerId, hashes: HashArray) -> None:
        remove, number = self._library.crossdock_index_remove, self.number(worker)
        self._held[worker] -= remove(self._index, number, hashes.tobytes(), len(hashes))

    def expect(self, worker: WorkerId, hashes: HashArray) -> None:
        expect, number = self._library.crossdock_index_expect, self.number(worker)
        expect(self._index, number, hashes.tobytes(), len(hashes))

    def unexpect(self, worker: WorkerId, hashes: HashArray) -> None:
        number = self._numbers.get(worker)
        if number is not None:
            unexpect = self._library.crossdock_index_unexpect
            unexpect(self._index, number, hashes.tobytes(), len(hashes))

    def reset(self, worker: WorkerId) -> None:
        if self._held.get(worker):
            self._library.crossdock_index_reset(self._index, self._numbers[worker])
            self._held[worker] = 0

    def remove_worker(self, worker: WorkerId) -> None:
        number = self._numbers.pop(worker, None)
        if number is not None:
            self._library.crossdock_index_reset(self._index, number)
            self._library.crossdock_index_unexpect_all(self._index, number)
            self._free_numbers.append(number)
            del self._held[worker]

    def number(self, worker: WorkerId) -> int:
        number = self._numbers.get(worker)
        if number is None:
            number = self._free_numbers.pop() if self._free_numbers else len(self._numbers)
            self._library.crossdock_index_know(self._index, number)
            self._numbers[worker], self._held[worker] = number, 0
        return number

    def overlaps(self, hashes: HashArray, count: int) -> HeldBlocks:
        if count > len(self._level_of):
            self._make_columns(count)
        runs: int = self._library.crossdock_index_overlaps(
            self._index, hashes.tobytes(), len(hashes), count, self._level_of_at, self._lengths_at
        )
        return HeldBlocks([0, *self._lengths[:runs].tolist()], self._level_of[:count].copy())

    def _make_columns(self, count: int) -> None:
        """Where `overlaps` has its answer written: to ask an array for its address each time takes
        as long as the answer. No more runs than workers."""
        self._level_of: Numbers = np.zeros(count, dtype=np.int64)
        self._lengths: Counts = np.zeros(count, dtype=np.int64)
        self._level_of_at, self._lengths_at = self._level_of.ctypes.data, self._lengths.ctypes.data
