"""One rank of D in this process: its edges from the ranks of prefill workers, stream by stream.

Does not cover: ranks in other processes (``worker.ranks``), one edge (``kv_transfer.edge``), the
stream (``decode_session``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from core.kv_layout import KVLayout
from core.lease_events import PieceCopy
from core.shards import ParallelShape
from core.tcp_options import PLAIN_TCP, TcpOptions
from core.transfer_plan import EdgePlan, edges_to, make_plan
from crossdock.v1 import handoff_pb2 as pb
from kv_transfer.device import DeviceBlocks, DeviceTarget
from kv_transfer.edge import Edge
from kv_transfer.handshake import stated_shape
from kv_transfer.opening import open_all
from kv_transfer.rank_ports import EdgeChoice, RankCopied
from kv_transfer.regions import PoolBytes
from kv_transfer.transport import EdgeTarget


class LocalRankReceiver:
    """A `RankReceiver`. The edges of a stream copy at the same time, each on its own thread."""

    def __init__(
        self,
        blocks: PoolBytes | DeviceBlocks,
        layout: KVLayout,
        shape: ParallelShape,
        rank: int,
        transports: Sequence[str],
        tcp: TcpOptions = PLAIN_TCP,
    ) -> None:
        """``blocks``: uint8 [num_blocks, block bytes of this rank], or a pool on a GPU;
        ``layout``: blocks of the whole model, split as ``shape``; ``transports``: those allowed,
        the fastest first; ``tcp``: how TCP is taken."""
        self._blocks = blocks
        self._layout = layout
        self._shape = shape
        self._rank = rank
        self._transports = transports
        self._tcp = tcp
        self._edges: dict[str, list[Edge]] = {}

    async def open(self, stream: str, hello: pb.Hello) -> tuple[EdgeChoice, ...]:
        plan = make_plan(self._layout, stated_shape(hello), self._shape)
        edges = {
            place: Edge(
                _target(self._blocks, plan[place], place), _name(plan[place], hello), self._tcp
            )
            for place in edges_to(plan, self._rank)
        }
        self._edges[stream] = list(edges.values())
        openings = [
            edge.open(hello.ranks[plan[place].source], self._transports)
            for place, edge in edges.items()
        ]
        return tuple(await open_all(openings, lambda: self.close(stream)))

    async def copy(self, stream: str, copies: Sequence[PieceCopy]) -> RankCopied:
        edges = self._edges.get(stream)
        if not edges:
            return RankCopied((), tuple(item.index for item in copies))
        # A gather makes a task of each: with one edge its answer is a turn of the loop nearer.
        if len(edges) == 1:
            results = [await edges[0].copy(copies)]
        else:
            results = await asyncio.gather(*(edge.copy(copies) for edge in edges))
        bad = {index for result in results for index in result.bad}
        return RankCopied(
            tuple(item.index for item in copies if item.index not in bad),
            tuple(item.index for item in copies if item.index in bad),
            tuple(result.traffic for result in results),
            "; ".join(result.lost for result in results if result.lost),
        )

    def abort(self, stream: str) -> None:
        for edge in self._edges.get(stream, ()):
            edge.abort()

    async def close(self, stream: str) -> None:
        await asyncio.gather(*(edge.close() for edge in self._edges.pop(stream, ())))


def _target(
    blocks: PoolBytes | DeviceBlocks, edge: EdgePlan, place: int
) -> EdgeTarget | DeviceTarget:
    if isinstance(blocks, DeviceBlocks):
        return DeviceTarget(blocks.tensor, blocks.device, edge, place)
    return EdgeTarget(blocks, edge, place)


def _name(edge: EdgePlan, hello: pb.Hello) -> str:
    """P's rank, as errors and logs call it."""
    if len(hello.ranks) == 1:
        return hello.worker
    return f"rank {edge.source} of {hello.worker}"
