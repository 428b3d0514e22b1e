"""Which worker holds which cached block, by block hash.

Fed from the workers' cache events; asked for the overlap with a prompt's hashes. Workers evict
leaf-first (a block never outlives its children), so what a worker holds of a prompt is a run from
its start, and the length of that run is found by galloping instead of looking at every block.
Does not cover: when a block is expected, what is taken in if there is no room (``worker_caches``).
"""

from __future__ import annotations

from typing import Protocol

from core.block_hash import HashArray
from native import library
from router.placement import WorkerId
from router.prefix_index.compiled_index import CompiledIndex
from router.prefix_index.held_blocks import HeldBlocks
from router.prefix_index.python_index import PythonIndex


class PrefixIndex(Protocol):
    """All ``hashes`` are uint64. A worker is known from the first call that names it on."""

    def __len__(self) -> int:
        """Different blocks that are held; at times also some that nobody holds any more."""

    def num_held(self, worker: WorkerId) -> int:
        """Blocks that ``worker`` has told of."""

    def holds(self, worker: WorkerId, block: int) -> bool:
        """Whether ``worker`` has told so; what is only expected does not count."""

    def is_known(self, block: int) -> bool:
        """Whether anybody holds it: to note another holder takes no room."""

    def stored(self, worker: WorkerId, hashes: HashArray) -> None:
        """``worker`` holds these from now on."""

    def removed(self, worker: WorkerId, hashes: HashArray) -> None:
        """``worker`` holds these no longer, if it did."""

    def expect(self, worker: WorkerId, hashes: HashArray) -> None:
        """``worker`` will have these soon: they count as held by it until `unexpect`."""

    def unexpect(self, worker: WorkerId, hashes: HashArray) -> None:
        """The end of that."""

    def reset(self, worker: WorkerId) -> None:
        """Forget what ``worker`` holds, at once for all who ask, in far less than a millisecond."""

    def remove_worker(self, worker: WorkerId) -> None:
        """``worker`` is gone; its number may be given to another."""

    def number(self, worker: WorkerId) -> int:
        """Which entry of `overlaps` is this worker's. Small, and its own until it is removed."""

    def overlaps(self, hashes: HashArray, count: int) -> HeldBlocks:
        """How many leading blocks of the prompt each worker with a number below ``count`` holds."""


def new_index() -> PrefixIndex:
    """An empty one, the fastest that there is here. What they find is the same."""
    compiled = library.choice().brief
    return PythonIndex() if compiled is None else CompiledIndex(compiled)
