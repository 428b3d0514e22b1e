"""All ranks of P as one sender: offers of all of them, pieces with the checksums of all edges.

Does not cover: one rank (``kv_transfer.rank_ports``), the stream (``prefill_session``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from core.handoff import Piece
from core.shards import ParallelShape
from core.transfer_plan import EdgePlan, edges_from
from crossdock.v1 import handoff_pb2 as pb
from kv_transfer.rank_ports import RankSender


class ReplicaSender:
    """Asks all ranks at the same time. ``senders``: one per rank, in their order."""

    def __init__(self, senders: Sequence[RankSender]) -> None:
        self._senders = senders

    async def offer(self, stream: str) -> list[pb.RankOffer]:
        """Of each rank, in their order."""
        return await asyncio.gather(*(sender.offer(stream) for sender in self._senders))

    async def describe(
        self,
        stream: str,
        destination: ParallelShape,
        plan: Sequence[EdgePlan],
        block_ids: Sequence[int],
        generations: Sequence[int],
    ) -> tuple[Piece, ...]:
        """Pieces of blocks that were finished at these generations.

        ``plan``: towards a decode worker of shape ``destination``.
        """
        # Of heads that several ranks hold, only one sends: the others need not be asked.
        ranks = sorted({edge.source for edge in plan})
        asked = [self._senders[r].describe(stream, destination, block_ids) for r in ranks]
        # A gather makes a task of each: with one rank its answer is a turn of the loop nearer.
        answers = [await asked[0]] if len(asked) == 1 else await asyncio.gather(*asked)
        by_edge: list[Sequence[int]] = [()] * len(plan)
        for rank, rows in zip(ranks, answers, strict=True):
            columns = zip(*rows, strict=True)
            for place, column in zip(edges_from(plan, rank), columns, strict=True):
                by_edge[place] = column
        return tuple(
            Piece(block_id, generation, checksums)
            for block_id, generation, checksums in zip(
                block_ids, generations, zip(*by_edge, strict=True), strict=True
            )
        )

    def withdraw(self, stream: str) -> None:
        """The stream has ended: ends what was opened with its offers, as far as P can."""
        for sender in self._senders:
            sender.withdraw(stream)
