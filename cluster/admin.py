"""The operators' door: what the cluster looks like now (``crossdock.v1.ClusterAdmin``)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from cluster.pool_state import Member, MemberState
from crossdock.v1 import admin_pb2, admin_pb2_grpc, worker_pb2, worker_pb2_grpc

STATS_TIMEOUT_S = 2.0
# Checking every invariant takes longer on a large pool.
VALIDATE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class ClusterView:
    """What the controller knows without asking anybody."""

    model: str
    grpc_address: str
    http_address: str
    members: tuple[Member, ...]
    prefill_wanted: int
    decode_wanted: int
    restarts: int


class ClusterAdmin(admin_pb2_grpc.ClusterAdminServicer):
    """``view`` is called for each request."""

    def __init__(self, view: Callable[[], ClusterView], timeout_s: float | None = None) -> None:
        self._view = view
        self._timeout_s = timeout_s

    async def GetStatus(
        self,
        request: admin_pb2.GetStatusRequest,
        context: grpc.aio.ServicerContext[admin_pb2.GetStatusRequest, admin_pb2.ClusterStatus],
    ) -> admin_pb2.ClusterStatus:
        view = self._view()
        timeout = self._timeout_s or (VALIDATE_TIMEOUT_S if request.validate else STATS_TIMEOUT_S)
        asked = (_worker_status(member, request.validate, timeout) for member in view.members)
        return admin_pb2.ClusterStatus(
            model=view.model,
            grpc_address=view.grpc_address,
            http_address=view.http_address,
            prefill_wanted=view.prefill_wanted,
            decode_wanted=view.decode_wanted,
            workers=await asyncio.gather(*asked),
            restarts=view.restarts,
        )


async def _worker_status(member: Member, validate: bool, timeout: float) -> admin_pb2.WorkerStatus:
    status = admin_pb2.WorkerStatus(worker=member.slot.name, endpoint=member.endpoint)
    if member.state is not MemberState.READY:
        status.state, status.detail = "starting", member.detail
        return status
    try:
        status.stats.CopyFrom(await _ask(member.endpoint, validate, timeout))
        status.state = "ready"
    except grpc.aio.AioRpcError as error:
        status.state, status.detail = "unreachable", f"{error.code().name}: {error.details()}"
    return status


async def _ask(endpoint: str, validate: bool, timeout: float) -> worker_pb2.WorkerStats:
    async with grpc.aio.insecure_channel(endpoint) as channel:
        stub = worker_pb2_grpc.WorkerStub(channel)
        request = worker_pb2.GetStatsRequest(validate=validate)
        stats: worker_pb2.WorkerStats = await stub.GetStats(request, timeout=timeout)
        return stats
