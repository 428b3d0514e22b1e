"""The leading rank of a replica from settings to a serving gRPC endpoint. No Ray in here.

Covers: binding the process to its cores before torch starts threads, waiting for the other ranks,
loading the model, hosting the role's service, draining and stopping, the end of a replica that
lost a rank. Does not cover: who starts it (`cluster.worker_actor`), the other ranks
(`cluster.rank_host`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from cluster.process_binding import bind_cores, bind_process, exempt_from_collection
from core.tls_files import server_files
from core.worker_settings import LeaderAddress, WorkerSettings
from kv_transfer.prefill_session import MAX_MESSAGE_BYTES
from wire.peer_check import members_only
from wire.tls_check import check_files
from wire.tls_grpc import open_port
from worker.daemon_call import call_in_daemon
from worker.ranks.group import RankGroup

if TYPE_CHECKING:
    from cluster.worker_parts import LoadedRank

_log = logging.getLogger(__name__)
_STREAM_GRACE_S = 1.0
_SERVER_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
    # A router or peer that hangs is noticed, and what it asked for is freed.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Peers ping idle streams; without this the server would take that for abuse.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
]


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """Where a started worker is, and which life of it this is."""

    worker: str
    endpoint: str
    epoch: int
    role: str
    pid: int


class WorkerHost:
    """Loads a model and serves one role until stopped.

    After a failure, of `start` too, the process has to end: its engine may hang. The other ranks
    of the replica end in the same moment.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._ending = asyncio.Lock()
        self._group: RankGroup | None = None

    def prepare(self) -> LeaderAddress | None:
        """Listens for the other ranks, which are to be told where; None if there are none.

        Call before `start`. Quick: loads nothing.
        """
        bind_cores(self._settings.cores)
        if self._settings.shape.num_ranks == 1:
            return None
        self._group = RankGroup(self._settings)
        return self._group.address

    async def start(self) -> WorkerPlace:
        """Returns when all ranks have loaded the model and the worker accepts work. Raises
        ``InvalidField`` if files of ``tls`` can't be used, and what loading does."""
        alone = self._settings.shape.num_ranks == 1
        assert alone or self._group is not None, "the other ranks are told where by prepare()"
        bind_process(self._settings.cores, self._settings.threads)
        try:
            return await self._start()
        except BaseException as error:
            if self._group is not None:
                self._group.fail(error)
            raise

    async def _start(self) -> WorkerPlace:
        settings = self._settings
        # Those of this node, which nobody else has looked at.
        check_files(settings.tls)
        # Imported only now: torch reads the affinity of the process when it is imported.
        from cluster.worker_parts import make_service

        self._rank = await self._load()
        epoch = secrets.randbits(62) + 1
        self._service = make_service(settings, epoch, self._rank, self._group)
        self._service.closed.add_done_callback(self._on_closed)
        self._server = grpc.aio.server(
            options=_SERVER_OPTIONS, interceptors=members_only(settings.tls)
        )
        self._service.register(self._server)
        port = open_port(self._server, f"{settings.host}:0", server_files(settings.tls))
        await self._service.open_doors()
        self._service.start()
        await self._server.start()
        exempt_from_collection()
        endpoint = f"{settings.host}:{port}"
        return WorkerPlace(settings.worker, endpoint, epoch, settings.role.value, os.getpid())

    async def _load(self) -> LoadedRank:
        """Fails at once if a rank is lost, also while torch waits for it."""
        from cluster.worker_parts import load_leading_rank

        group = self._group
        loading = call_in_daemon(lambda: load_leading_rank(self._settings, group), "rank-load")
        if group is not None:
            lost = asyncio.wrap_future(group.lost)
            for outcome in (loading, lost):
                outcome.add_done_callback(_look_at)
            await asyncio.wait((loading, lost), return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                lost.result()
        return await loading

    def _on_closed(self, closed: asyncio.Future[None]) -> None:
        error = closed.exception()
        if error is not None and self._group is not None:
            self._group.fail(error)

    async def wait_closed(self) -> None:
        """Returns when the worker was stopped; raises what its engine crashed with, or that one of
        its ranks is lost."""
        await asyncio.shield(self._service.closed)

    async def stop(self, drain_s: float) -> None:
        """Takes nothing new, lets running attempts end for up to ``drain_s`` seconds, cuts what
        is left, frees everything. A second call with less time hurries the first."""
        self._service.refuse_new()
        if not await self._service.wait_idle(drain_s):
            _log.warning("%s: not drained after %g s", self._settings.worker, drain_s)
            self._service.cut(f"the drain limit of {drain_s:g} s was over")
        async with self._ending:
            if not self._service.closed.done():
                await self._end()

    async def _end(self) -> None:
        await self._server.stop(_STREAM_GRACE_S)
        await self._service.close_doors()
        await self._service.stop()
        if self._service.closed.done():
            return  # It crashed meanwhile: what its engine may work on stays.
        if self._group is not None:
            self._group.close()
        self._rank.close()
        self._service.closed.set_result(None)


def _look_at(outcome: asyncio.Future[Any]) -> None:
    """Only the first of several failures is raised; asyncio shall not miss the others."""
    if not outcome.cancelled():
        outcome.exception()
