"""Asks workers how they are, over gRPC."""

from __future__ import annotations

from core.tls_files import TlsFiles
from crossdock.v1 import worker_pb2, worker_pb2_grpc
from wire.tls_grpc import open_channel

# Without its own pool a channel inherits the back-off of an earlier one to the same address.
_CHANNEL_OPTIONS = (("grpc.use_local_subchannel_pool", 1),)


async def ask_worker(
    endpoint: str, timeout_s: float, *, tls: TlsFiles | None = None, validate: bool = False
) -> worker_pb2.WorkerStats:
    """Raises ``grpc.aio.AioRpcError`` if there is no answer in time, or if the worker finds one of
    its invariants broken (``validate``)."""
    async with open_channel(endpoint, tls, _CHANNEL_OPTIONS) as channel:
        stub = worker_pb2_grpc.WorkerStub(channel)
        request = worker_pb2.GetStatsRequest(validate=validate)
        stats: worker_pb2.WorkerStats = await stub.GetStats(request, timeout=timeout_s)
        return stats
