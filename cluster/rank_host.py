"""A rank of a replica that does not lead it, from settings to computing. No Ray in here.

Covers: binding the process to its cores before torch starts threads, joining the leading rank,
loading this rank's part of the model, its metrics, the end. Does not cover: who starts it, the
leading rank (`cluster.worker_host`), what a rank does for its leader (`worker.ranks.follower`).
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from cluster.process_binding import bind_process, exempt_from_collection
from core.errors import Unavailable
from core.tls_files import server_files
from core.worker_settings import LeaderAddress, RankSettings
from wire.metrics_door import MetricsDoor
from wire.tls_check import check_files
from worker.daemon_call import call_in_daemon
from worker.ranks.connect import connect_to_leader
from worker.ranks.metrics import RankMetrics

if TYPE_CHECKING:
    from cluster.worker_parts import LoadedRank
    from worker.ranks.follower import Follower


class RankHost:
    """After a failure, of `start` or told by `wait_closed`, the process has to end: its engine may
    hang in a collective operation."""

    def __init__(self, settings: RankSettings) -> None:
        self._settings = settings
        self._follower: Follower | None = None
        self._metrics_door = MetricsDoor(RankMetrics(settings).render)
        self._rank: LoadedRank | None = None

    async def start(self, leader: LeaderAddress) -> int:
        """Joins the replica and loads; returns this process's id when the rank is ready.

        Raises ``Unavailable`` if the leader can't be reached or is lost meanwhile, ``Incompatible``
        if it refuses this rank, ``InvalidField`` if this node's files of ``tls`` can't be used.
        """
        settings = self._settings
        bind_process(settings.cores, settings.threads)
        check_files(settings.worker.tls)
        # Imported only now: torch reads the affinity of the process when it is imported.
        from worker.ranks.follower import Follower

        connection = await call_in_daemon(
            lambda: connect_to_leader(leader, settings.worker.tls), "rank-connect"
        )
        follower = self._follower = Follower(settings, connection)
        try:
            await follower.join()
            self._rank = await self._load(follower)
            self._serve(follower, self._rank)
            await self._tell_metrics()
            exempt_from_collection()
        except Exception as error:
            follower.crash(error)
            raise follower.ended.exception() or error from error
        return os.getpid()

    async def wait_closed(self) -> None:
        """Returns when the replica was stopped in order; raises why this rank can't go on."""
        assert self._follower is not None, "start() comes first"
        await asyncio.shield(self._follower.ended)

    async def stop(self) -> None:
        """Ends this rank and frees its memory, unless its engine hangs in it."""
        await self._metrics_door.stop()
        if self._follower is None or not await self._follower.stop():
            return
        if self._rank is not None:
            self._rank.close()
            self._rank = None

    async def _tell_metrics(self) -> None:
        """On a port that monitors know; nobody else is told of it."""
        first_port = self._settings.worker.metrics_port
        if first_port:
            files = server_files(self._settings.worker.tls)
            await self._metrics_door.start(self._settings.host, first_port, files)

    async def _load(self, follower: Follower) -> LoadedRank:
        """Fails at once if the leader is lost, also while torch waits for it."""
        from cluster.worker_parts import load_rank

        settings = self._settings
        loading = call_in_daemon(
            lambda: load_rank(settings.worker, settings.rank, settings.host, follower.key_values),
            "rank-load",
        )
        await asyncio.wait((loading, follower.ended), return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            follower.ended.result()
            raise Unavailable("the replica was stopped while it loaded", reason="REPLICA_STOPPED")
        return await loading

    def _serve(self, follower: Follower, rank: LoadedRank) -> None:
        model = rank.model
        follower.serve(
            model.runner.execute,
            model.pool.generations,
            rank.model_hash,
            rank.sender,
            rank.receiver,
        )
