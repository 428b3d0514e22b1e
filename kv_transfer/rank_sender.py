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
from core.tls_files import TlsFiles
from core.transfer_plan import EdgePlan, edges_from, make_plan
from crossdock.v1 import handoff_pb2 as pb
from kv_transfer.device import DevicePool
from kv_transfer.device_offers import DeviceOffers
from kv_transfer.offers import PoolOffers
from kv_transfer.regions import checksum_parts
from kv_transfer.transport import HostPool


class LocalRankSender:
    """A `RankSender`. Checksums have one thread, so that computing is not held up by many."""

    def __init__(
        self,
        pool: HostPool | DevicePool,
        layout: KVLayout,
        shape: ParallelShape,
        rank: int,
        transports: Sequence[str],
        host: str,
        tls: TlsFiles | None = None,
    ) -> None:
        """``pool``: of this rank; ``layout``: blocks of the whole model, split as ``shape``;
        ``tls``: with which TCP is offered, None: in the clear."""
        self._pool = pool
        self._layout = layout
        self._shape = shape
        self._rank = rank
        self._offers = _offers_of(pool, transports, host, tls)
        self._describer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kv-describe")

    async def offer(self, stream: str) -> pb.RankOffer:
        return self._offers.new_offer(stream)

    async def describe(
        self, stream: str, destination: ParallelShape, block_ids: Sequence[int]
    ) -> list[list[int]]:
        del stream
        edges = _edges_from(self._layout, self._shape, destination, self._rank)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._describer, _checksums, self._pool, block_ids, edges)

    def withdraw(self, stream: str) -> None:
        self._offers.withdraw(stream)

    def close(self) -> None:
        """Ends all threads and sockets; call before the pool's memory is given up."""
        self._offers.close()
        self._describer.shutdown()


@lru_cache(maxsize=256)
def _edges_from(
    layout: KVLayout, shape: ParallelShape, destination: ParallelShape, rank: int
) -> tuple[EdgePlan, ...]:
    """Those that start at ``rank``, in the order of the plan."""
    plan = make_plan(layout, shape, destination)
    return tuple(plan[place] for place in edges_from(plan, rank))


def _checksums(
    pool: HostPool | DevicePool, block_ids: Sequence[int], edges: Sequence[EdgePlan]
) -> list[list[int]]:
    """[block][edge]: xxh3-64 in host memory, ``kernels.checksum_blocks`` on a GPU."""
    if isinstance(pool, DevicePool):
        return pool.describe(block_ids, [edge.source_region for edge in edges])
    return checksum_parts(pool.blocks, block_ids, [edge.source_runs for edge in edges])


def _offers_of(
    pool: HostPool | DevicePool, transports: Sequence[str], host: str, tls: TlsFiles | None
) -> PoolOffers | DeviceOffers:
    if isinstance(pool, DevicePool):
        return DeviceOffers(pool, transports, host)
    return PoolOffers(pool, transports, host, tls)
