"""One worker process from settings to a serving gRPC endpoint. No Ray in here.

Covers: binding the process to its cores before torch starts threads, loading the model, hosting
the role's service, draining and stopping. Does not cover: who starts it (`cluster.worker_actor`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from dataclasses import dataclass

import grpc

from core.worker_settings import WorkerSettings
from kv_transfer.prefill_session import MAX_MESSAGE_BYTES

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


def bind_process(settings: WorkerSettings) -> None:
    """Pins this process and its torch threads. Call before anything starts threads."""
    if settings.cores:
        os.sched_setaffinity(0, settings.cores)
    import torch

    torch.set_num_threads(settings.threads)


class WorkerHost:
    """Loads a model and serves one role until stopped."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._ending = asyncio.Lock()

    async def start(self) -> WorkerPlace:
        """Returns when the worker accepts work."""
        settings = self._settings
        bind_process(settings)
        # Imported only now: torch reads the affinity of the process when it is imported.
        from cluster.worker_parts import load_model, make_senders, make_service

        self._model = await asyncio.to_thread(load_model, settings)
        epoch = secrets.randbits(62) + 1
        self._senders = make_senders(settings, self._model)
        self._service = make_service(settings, epoch, self._model, self._senders)
        self._server = grpc.aio.server(options=_SERVER_OPTIONS)
        self._service.register(self._server)
        port = self._server.add_insecure_port(f"{settings.host}:0")
        self._service.start()
        await self._server.start()
        endpoint = f"{settings.host}:{port}"
        return WorkerPlace(settings.worker, endpoint, epoch, settings.role.value, os.getpid())

    async def wait_closed(self) -> None:
        """Returns when the worker was stopped; raises what its engine crashed with."""
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
        await self._service.stop()
        for sender in self._senders:
            sender.close()
        self._model.pool.close()
        if not self._service.closed.done():
            self._service.closed.set_result(None)
