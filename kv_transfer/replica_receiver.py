"""All ranks of D as one receiver: opened all or none; a piece is good if it is so on every rank.

Does not cover: one rank (``kv_transfer.rank_ports``), the streams (``decode_session``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from core.errors import Incompatible
from core.lease_events import PieceCopy
from crossdock.v1 import handoff_pb2 as pb
from kv_transfer.opening import open_all
from kv_transfer.rank_ports import EdgeChoice, RankCopied, RankReceiver


class ReplicaReceiver:
    """Asks all ranks at the same time. ``receivers``: one per rank, in their order."""

    def __init__(self, receivers: Sequence[RankReceiver]) -> None:
        self._receivers = receivers

    async def open(self, stream: str, hello: pb.Hello) -> tuple[EdgeChoice, ...]:
        """All edges, in the plan's order. Let it end: what it has opened needs closing.

        Raises `Incompatible`, naming the ranks and the reasons, if some edge has no transport.
        """
        openings = [self._open(rank, stream, hello) for rank in range(len(self._receivers))]
        opened = await open_all(openings, lambda: self.close(stream))
        return tuple(choice for choices in opened for choice in choices)

    async def copy(self, stream: str, copies: Sequence[PieceCopy]) -> RankCopied:
        """What landed on all ranks. Every one of them has ended its copy when this returns."""
        # A gather makes a task of each: with one rank its answer is a turn of the loop nearer.
        if len(self._receivers) == 1:
            return await self._receivers[0].copy(stream, copies)
        results = await asyncio.gather(*(r.copy(stream, copies) for r in self._receivers))
        good = set.intersection(*(set(result.good) for result in results))
        return RankCopied(
            tuple(item.index for item in copies if item.index in good),
            tuple(item.index for item in copies if item.index not in good),
            tuple(traffic for result in results for traffic in result.traffic),
            "; ".join(result.lost for result in results if result.lost),
        )

    def abort(self, stream: str) -> None:
        """Copies of this stream under way end at once; those that wait copy nothing."""
        for receiver in self._receivers:
            receiver.abort(stream)

    async def close(self, stream: str) -> None:
        """Returns when nothing of this stream can be written any more. Call after `abort`."""
        await asyncio.gather(*(receiver.close(stream) for receiver in self._receivers))

    async def _open(self, rank: int, stream: str, hello: pb.Hello) -> tuple[EdgeChoice, ...]:
        try:
            return await self._receivers[rank].open(stream, hello)
        except Incompatible as error:
            if len(self._receivers) == 1:
                raise
            raise Incompatible(f"to rank {rank}: {error.message}", reason=error.reason) from error
