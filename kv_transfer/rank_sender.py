"""One rank of P in this process: offers its pool, computes checksums of what its blocks hold.

Does not cover: ranks in other processes (``worker.ranks``), the stream (``prefill_session``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from core.kv_layout import KVLayout
from core.shards import ParallelShape
from core.transfer_plan import Runs, edges_from, make_plan
from crossdock.v1 import handoff_pb2 as pb
from kv_transfer.offers import PoolOffers
from kv_transfer.regions import checksum_parts
from kv_transfer.transport import HostPool


class LocalRankSender:
    """A `RankSender`. Checksums have one thread, so that computing is not held up by many."""

    def __init__(
        self,
        pool: HostPool,
        layout: KVLayout,
        shape: ParallelShape,
        rank: int,
        transports: Sequence[str],
        host: str,
    ) -> None:
        """``pool``: of this rank; ``layout``: blocks of the whole model, split as ``shape``."""
        self._pool = pool
        self._layout = layout
        self._shape = shape
        self._rank = rank
        self._offers = PoolOffers(pool, transports, host)
        self._describer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kv-describe")

    async def offer(self, stream: str) -> pb.RankOffer:
        return self._offers.new_offer(stream)

    async def describe(
        self, stream: str, destination: ParallelShape, block_ids: Sequence[int]
    ) -> list[list[int]]:
        del stream
        parts = _parts_from(self._layout, self._shape, destination, self._rank)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._describer, checksum_parts, self._pool.blocks, block_ids, parts
        )

    def withdraw(self, stream: str) -> None:
        self._offers.withdraw(stream)

    def close(self) -> None:
        """Ends all threads and sockets; call before the pool's memory is given up."""
        self._offers.close()
        self._describer.shutdown()


@lru_cache(maxsize=256)
def _parts_from(
    layout: KVLayout, shape: ParallelShape, destination: ParallelShape, rank: int
) -> tuple[Runs, ...]:
    """What of a block goes over each edge that starts at ``rank``."""
    plan = make_plan(layout, shape, destination)
    return tuple(plan[place].source_runs for place in edges_from(plan, rank))
