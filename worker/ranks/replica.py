"""All ranks of a replica, as the service of the leading one sees them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from core.errors import CrossdockError
from crossdock.v1 import rank_pb2 as pb
from crossdock.v1 import worker_pb2
from engine.loop import StepExecutor
from worker.ranks.group import RankGroup

_log = logging.getLogger(__name__)
_STATS_LIMIT_S = 1.0


class Replica:
    """``executor`` computes steps on all ranks; ``own_stats`` tells of the leading one; ``group``
    holds the others, None if there are none."""

    def __init__(
        self,
        executor: StepExecutor,
        own_stats: Callable[[], worker_pb2.RankStats],
        group: RankGroup | None = None,
    ) -> None:
        self.executor = executor
        self._own_stats = own_stats
        self._group = group

    def on_lost(self, callback: Callable[[BaseException], None]) -> None:
        """``callback`` gets the error if another rank is lost: once, on any thread, or right now
        if that has happened."""
        if self._group is not None:
            self._group.lost.add_done_callback(lambda lost: callback(_error_of(lost.exception())))

    async def stats(self) -> list[worker_pb2.RankStats]:
        """Of each rank that answers within a second, in their order."""
        ranks = self._group.ranks if self._group is not None else []
        others = await asyncio.gather(*(self._stats_of(rank) for rank in ranks))
        return [self._own_stats(), *(stats for stats in others if stats is not None)]

    async def _stats_of(self, rank: int) -> worker_pb2.RankStats | None:
        assert self._group is not None
        question = pb.RankMessage(ask_stats=pb.AskRankStats())
        try:
            asked = asyncio.wrap_future(self._group.ask(rank, question))
            return (await asyncio.wait_for(asked, _STATS_LIMIT_S)).stats
        except (OSError, TimeoutError, CrossdockError) as error:
            _log.warning("rank %d tells nothing of itself: %s", rank, error)
            return None


def _error_of(error: BaseException | None) -> BaseException:
    assert error is not None, "a replica is lost by an error"
    return error
