"""Follows the controller's list of workers. Without the registry the last list stays in use."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import grpc.aio

from core.tls_files import TlsFiles
from crossdock.v1 import registry_pb2 as pb
from crossdock.v1.metrics_pb2 import GetMetricsRequest
from crossdock.v1.registry_pb2_grpc import RegistryStub
from router.workers.backoff import Backoff
from wire.grpc_streams import read
from wire.tls_grpc import open_channel

log = logging.getLogger(__name__)

# Is told the workers, and the secret of the block hashes; b"": there is none.
WorkerListListener = Callable[[Sequence[pb.WorkerRecord], bytes], None]
_CHANNEL_OPTIONS = (("grpc.use_local_subchannel_pool", 1),)


class Directory:
    """Watches the registry at ``address`` (host:port) and passes each full list on, with the
    cluster's secret for block hashes. ``start``, then ``close``."""

    def __init__(
        self,
        address: str,
        router_id: str,
        listener: WorkerListListener,
        tls: TlsFiles | None = None,
    ) -> None:
        self.address = address
        self._tls = tls
        self._router_id = router_id
        self._listener = listener
        # Is called whenever the list is not followed any more, or can't be.
        self.lost: Callable[[], None] = lambda: None
        # Where the controller's /metrics is; "" while that is not known.
        self.metrics_address = ""

    def start(self) -> None:
        self._task = asyncio.create_task(self._follow(), name="directory")

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def metrics(self, timeout_s: float) -> bytes:
        """What the controller's ``/metrics`` shows. Raises ``grpc.aio.AioRpcError``."""
        async with open_channel(self.address, self._tls, _CHANNEL_OPTIONS) as channel:
            told = await RegistryStub(channel).GetMetrics(GetMetricsRequest(), timeout=timeout_s)
            return bytes(told.text)

    async def report(self, report: pb.RouterReport, timeout_s: float) -> None:
        """For ``status``. Raises ``grpc.aio.AioRpcError``."""
        async with open_channel(self.address, self._tls, _CHANNEL_OPTIONS) as channel:
            await RegistryStub(channel).ReportRouter(report, timeout=timeout_s)

    async def _follow(self) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._watch(backoff)
            except grpc.aio.AioRpcError as error:
                log.info("registry %s: %s", self.address, error.details())
            except Exception:
                log.exception("what the registry %s sent could not be used", self.address)
            self.lost()
            await asyncio.sleep(backoff.next_pause())

    async def _watch(self, backoff: Backoff) -> None:
        async with open_channel(self.address, self._tls, _CHANNEL_OPTIONS) as channel:
            stub = RegistryStub(channel)
            call = stub.Watch(pb.WatchRequest(router_id=self._router_id))
            while (listed := await read(call)) is not None:
                backoff.reset()
                self.metrics_address = listed.metrics_address
                self._listener(listed.workers, listed.cache_secret)
