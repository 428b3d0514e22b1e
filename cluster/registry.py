"""Tells routers over gRPC who is ready or drains, and where (``crossdock.v1.Registry``)."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence

import grpc

from cluster.pool_messages import Member, MemberState
from crossdock.v1 import metrics_pb2, registry_pb2, registry_pb2_grpc

# Routers report every few seconds (``router.workers.router_reports``).
REPORT_KEPT_S = 20.0
_MOST_ROUTERS = 1024


class Registry(registry_pb2_grpc.RegistryServicer):
    """Keeps the current list; every watcher gets it at once and again on each change.

    ``metrics`` gives what the controller's own ``/metrics`` shows; `metrics_address` says where
    that is, once it is known.
    """

    def __init__(self, metrics: Callable[[], bytes] = bytes) -> None:
        self._metrics = metrics
        self.metrics_address = ""
        self._cache_secret = secrets.token_bytes(32)
        self._current = registry_pb2.WorkerList()
        self._version = 0
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self.num_watchers = 0
        self._reports: dict[str, tuple[float, registry_pb2.RouterReport]] = {}

    @property
    def router_reports(self) -> list[registry_pb2.RouterReport]:
        """Of routers that are there, in the order of their ids."""
        latest = time.monotonic() - REPORT_KEPT_S
        reports = self._reports.items()
        self._reports = {router: told for router, told in reports if told[0] >= latest}
        return [self._reports[router][1] for router in sorted(self._reports)]

    def publish(self, workers: Sequence[Member]) -> None:
        """``workers`` is the full list. A watcher that is behind skips to the newest."""
        self._current = registry_pb2.WorkerList(
            workers=[_record(member) for member in workers],
            metrics_address=self.metrics_address,
            cache_secret=self._cache_secret,
        )
        self._version += 1
        task = asyncio.create_task(self._wake())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def Watch(
        self,
        request: registry_pb2.WatchRequest,
        context: grpc.aio.ServicerContext[registry_pb2.WatchRequest, registry_pb2.WorkerList],
    ) -> AsyncIterator[registry_pb2.WorkerList]:
        self.num_watchers += 1
        try:
            while True:
                seen = self._version
                yield self._current
                async with self._changed:
                    while self._version == seen:
                        await self._changed.wait()
        finally:
            self.num_watchers -= 1

    async def ReportRouter(
        self,
        request: registry_pb2.RouterReport,
        context: grpc.aio.ServicerContext[registry_pb2.RouterReport, registry_pb2.RouterReported],
    ) -> registry_pb2.RouterReported:
        now = time.monotonic()
        if request.router_id in self._reports or len(self._reports) < _MOST_ROUTERS:
            self._reports[request.router_id] = (now, request)
        return registry_pb2.RouterReported()

    async def GetMetrics(
        self,
        request: metrics_pb2.GetMetricsRequest,
        context: grpc.aio.ServicerContext[metrics_pb2.GetMetricsRequest, metrics_pb2.MetricsText],
    ) -> metrics_pb2.MetricsText:
        return metrics_pb2.MetricsText(text=self._metrics())


def _record(member: Member) -> registry_pb2.WorkerRecord:
    return registry_pb2.WorkerRecord(
        worker=member.slot.name,
        endpoint=member.endpoint,
        epoch=member.epoch,
        role=member.slot.role_name,
        draining=member.state is MemberState.DRAINING,
    )
