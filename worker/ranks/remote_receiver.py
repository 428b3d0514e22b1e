"""One rank of D in another process, as the leading rank sees it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from core.errors import CrossdockError
from core.lease_events import PieceCopy
from crossdock.v1 import handoff_pb2
from crossdock.v1 import rank_pb2 as pb
from kv_transfer.rank_ports import EdgeChoice, RankCopied
from wire.rank_copies import copies_to_wire
from worker.ranks.copied_wire import copied_from_wire, edge_from_wire
from worker.ranks.group import RankGroup

_log = logging.getLogger(__name__)


class RemoteRankReceiver:
    """A ``kv_transfer.rank_ports.RankReceiver``. The rank first finishes the steps that have their
    result, then it writes to blocks.

    `open` raises ``ConnectionError`` too, if the rank is lost. A rank that is lost ends with its
    process, so nothing is written after its `close`.
    """

    def __init__(self, group: RankGroup, rank: int) -> None:
        self._group = group
        self._rank = rank

    async def open(self, stream: str, hello: handoff_pb2.Hello) -> tuple[EdgeChoice, ...]:
        opening = pb.OpenEdges(stream=stream, hello=hello)
        answer = await self._ask(pb.RankMessage(open=opening))
        return tuple(edge_from_wire(edge) for edge in answer.opened.edges)

    async def copy(self, stream: str, copies: Sequence[PieceCopy]) -> RankCopied:
        request = copies_to_wire(stream, self._group.completed_steps, copies)
        try:
            answer = await self._ask(pb.RankMessage(copy=request))
        except (OSError, CrossdockError) as error:
            _log.warning("rank %d copied nothing: %s", self._rank, error)
            return RankCopied((), tuple(copy.index for copy in copies), lost=str(error))
        return copied_from_wire(answer.copied)

    def abort(self, stream: str) -> None:
        with contextlib.suppress(OSError):
            abort = pb.AbortCopies(stream=stream)
            self._group.send(self._rank, pb.RankMessage(abort=abort))

    async def close(self, stream: str) -> None:
        with contextlib.suppress(OSError):
            await self._ask(pb.RankMessage(close=pb.CloseEdges(stream=stream)))

    async def _ask(self, message: pb.RankMessage) -> pb.RankMessage:
        return await asyncio.wrap_future(self._group.ask(self._rank, message))
