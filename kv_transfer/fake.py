"""A transport within one process that fails on purpose: for tests of everything above transports.

Behind the same `PieceSource` as the real ones and with the same checks, but pieces may come late,
never, twice, in another order, cut off or damaged. What happens follows from a seed alone. Users
can't choose it: it is in no offer. Does not cover: faults of the handoff's messages.
"""

from __future__ import annotations

import random
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.errors import Incompatible
from core.lease_events import PieceCopy
from kv_transfer.regions import PoolBytes, checksum_part, part_view
from kv_transfer.transport import CopyResult, EdgeTarget, Generations


@dataclass(frozen=True, slots=True)
class Faults:
    """How likely each is for one piece, 0 to 1. ``delay_s``: each piece takes up to that long.

    ``reordering`` is of a whole copy: its pieces arrive in any order.
    """

    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    truncation: float = 0.0
    corruption: float = 0.0
    delay_s: float = 0.0


NO_FAULTS = Faults()


class FakePool:
    """P's end: the pool of one rank, found by ``name`` in this process while this object lives.

    ``blocks``: uint8 [num_blocks, block_bytes]; ``generations``: uint64 [num_blocks].
    """

    def __init__(self, name: str, blocks: PoolBytes, generations: Generations) -> None:
        self.name = name
        self.blocks = blocks
        self.generations = generations
        _POOLS[name] = self

    def close(self) -> None:
        """From now on no copy can be made, as if P had died."""
        _POOLS.pop(self.name, None)


_POOLS: weakref.WeakValueDictionary[str, FakePool] = weakref.WeakValueDictionary()


class FakeSource:
    """D's end of one edge."""

    transport = "fake"

    def __init__(
        self, name: str, target: EdgeTarget, faults: Faults = NO_FAULTS, seed: int = 0
    ) -> None:
        """Raises `Incompatible` if no such pool is offered or its blocks are not the plan's."""
        self._name = name
        self._target = target
        self._faults = faults
        self._chance = random.Random(seed)
        self._aborted = threading.Event()
        expected = target.plan.source_layout.block_bytes
        if self._find_pool().blocks.shape[1] != expected:
            raise Incompatible(
                f"blocks of {name} do not have the {expected} bytes of the plan",
                reason="FAKE_SELF_TEST_FAILED",
            )

    def copy(self, copies: Sequence[PieceCopy]) -> CopyResult:
        """As in `PieceSource`. Verified when all has arrived: a duplicate may damage a piece."""
        pool = self._find_pool()
        arrived: set[int] = set()
        for item in self._arrivals(copies):
            if self._aborted.wait(self._chance.uniform(0, self._faults.delay_s)):
                break
            if 0 <= item.piece.block_id < len(pool.blocks):
                self._deliver(pool, item)
                arrived.add(item.index)
        good = tuple(
            item.index for item in copies if item.index in arrived and self._is_good(pool, item)
        )
        bad = tuple(item.index for item in copies if item.index not in good)
        return CopyResult(good, bad)

    def abort(self) -> None:
        self._aborted.set()

    def close(self) -> None:
        self._aborted.set()

    def _find_pool(self) -> FakePool:
        pool = _POOLS.get(self._name)
        if pool is None:
            raise Incompatible(f"nobody offers {self._name}", reason="FAKE_UNREACHABLE")
        return pool

    def _arrivals(self, copies: Sequence[PieceCopy]) -> list[PieceCopy]:
        """What comes, in the order in which it does."""
        sent = [item for item in copies if not self._happens(self._faults.loss)]
        sent += [item for item in sent if self._happens(self._faults.duplication)]
        if self._happens(self._faults.reordering):
            self._chance.shuffle(sent)
        return sent

    def _deliver(self, pool: FakePool, item: PieceCopy) -> None:
        plan = self._target.plan
        runs = part_view(pool.blocks, plan.source_runs)[item.piece.block_id]
        data = np.frombuffer(runs.tobytes(), np.uint8).copy()
        if self._happens(self._faults.corruption):
            data[self._chance.randrange(len(data))] ^= 1 << self._chance.randrange(8)
        size = len(data)
        if self._happens(self._faults.truncation):
            size = self._chance.randrange(size)
        self._write(self._target.blocks[item.destination], data[:size])

    def _write(self, block: PoolBytes, data: PoolBytes) -> None:
        left = data
        for start, length in self._target.plan.destination_runs.tolist():
            block[start : start + min(length, len(left))] = left[:length]
            left = left[length:]

    def _is_good(self, pool: FakePool, item: PieceCopy) -> bool:
        piece = item.piece
        if int(pool.generations[piece.block_id]) != piece.generation:
            return False
        block = self._target.blocks[item.destination]
        return self._target.matches(piece, checksum_part(block, self._target.plan.destination_runs))

    def _happens(self, likelihood: float) -> bool:
        return self._chance.random() < likelihood
