"""One rank of P in another process, as the leading rank sees it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import numpy as np

from core.shards import ParallelShape
from crossdock.v1 import handoff_pb2
from crossdock.v1 import rank_pb2 as pb
from worker.ranks.group import RankGroup

_INT32 = np.dtype("<i4")


class RemoteRankSender:
    """A ``kv_transfer.rank_ports.RankSender``. The rank first finishes the steps that have their
    result, then it looks at blocks.

    `offer` and `describe` raise ``ConnectionError`` if the rank is lost, ``InternalError`` if it
    failed.
    """

    def __init__(self, group: RankGroup, rank: int) -> None:
        self._group = group
        self._rank = rank

    async def offer(self, stream: str) -> handoff_pb2.RankOffer:
        answer = await self._ask(pb.RankMessage(make_offer=pb.MakeOffer(stream=stream)))
        return answer.offer

    async def describe(
        self, stream: str, destination: ParallelShape, block_ids: Sequence[int]
    ) -> list[list[int]]:
        describe = pb.DescribeBlocks(
            stream=stream,
            after_step=self._group.completed_steps,
            tensor_parallel_size=destination.tensor,
            pipeline_parallel_size=destination.pipeline,
            block_ids=np.array(block_ids, _INT32).tobytes(),
        )
        found = (await self._ask(pb.RankMessage(describe=describe))).checksums
        values, edges = list(found.checksums), found.edges
        return [values[i * edges : (i + 1) * edges] for i in range(len(block_ids))]

    def withdraw(self, stream: str) -> None:
        with contextlib.suppress(OSError):
            withdraw = pb.WithdrawOffer(stream=stream)
            self._group.send(self._rank, pb.RankMessage(withdraw=withdraw))

    async def _ask(self, message: pb.RankMessage) -> pb.RankMessage:
        return await asyncio.wrap_future(self._group.ask(self._rank, message))
