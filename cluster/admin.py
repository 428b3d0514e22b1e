"""The operators' door (``crossdock.v1.ClusterAdmin``): what the cluster looks like, and changes.

Does not cover: whether a change is possible (``cluster.pool_state``, ``cluster.places``).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc

from cluster.plan import Slot
from cluster.pool_messages import (
    DRAIN_LIMIT_S,
    DrainWorker,
    FlipWorker,
    Member,
    MemberState,
    ScaleTo,
)
from cluster.wanted import Wanted, refusal
from cluster.wishes import Wish
from cluster.worker_stats import ask_worker
from core.errors import InvalidField
from core.shards import ParallelShape
from core.tls_files import TlsFiles
from crossdock.v1 import admin_pb2, admin_pb2_grpc, registry_pb2
from router.doors.grpc_errors import as_crossdock_error
from wire.grpc_errors import abort

STATS_TIMEOUT_S = 2.0
# Checking every invariant takes longer on a large pool.
VALIDATE_TIMEOUT_S = 10.0
MAX_DRAIN_LIMIT_S = 24 * 3600.0

_NAMES = {
    MemberState.WAITING: "waiting",
    MemberState.STARTING: "starting",
    MemberState.LOST: "starting",
    MemberState.READY: "ready",
    MemberState.DRAINING: "draining",
}
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class ClusterView:
    """What the controller knows without asking anybody. ``shapes``: of the workers of each pool;
    ``utilization``: of each pool, None while it is not known; ``metrics_address``: host:port;
    ``routers``: those that are there; ``registry_address``: host:port; ``doors_tls``:
    whether the router's addresses are over TLS."""

    model: str
    grpc_address: str
    http_address: str
    members: tuple[Member, ...]
    shapes: Mapping[str, ParallelShape]
    wanted: Wanted
    restarts: int
    settled: bool
    utilization: Mapping[str, float | None] = field(default_factory=dict)
    metrics_address: str = ""
    routers: Sequence[registry_pb2.RouterReport] = ()
    registry_address: str = ""
    doors_tls: bool = False


class Operations(Protocol):
    """What operators' wishes are passed to: ``cluster.controller.Controller``."""

    @property
    def wanted(self) -> Wanted: ...
    async def change(self, wish: Wish) -> None: ...
    async def leave_node(self, address: str, limit_s: float) -> tuple[Slot, ...]: ...


class ClusterAdmin(admin_pb2_grpc.ClusterAdminServicer):
    """``view`` and ``operations`` are called for each request; the latter gives None while the
    cluster starts. ``tls``: by which workers are asked."""

    def __init__(
        self,
        view: Callable[[], ClusterView],
        operations: Callable[[], Operations | None],
        timeout_s: float | None = None,
        tls: TlsFiles | None = None,
    ) -> None:
        self._view = view
        self._operations = operations
        self._timeout_s = timeout_s
        self._tls = tls

    async def GetStatus(
        self, request: admin_pb2.GetStatusRequest, context: Context
    ) -> admin_pb2.ClusterStatus:
        view = self._view()
        timeout = self._timeout_s or (VALIDATE_TIMEOUT_S if request.validate else STATS_TIMEOUT_S)
        asked = (
            self._worker_status(member, view.shapes[member.slot.pool], request.validate, timeout)
            for member in view.members
        )
        return admin_pb2.ClusterStatus(
            model=view.model,
            grpc_address=view.grpc_address,
            http_address=view.http_address,
            prefill_wanted=view.wanted.prefill,
            decode_wanted=view.wanted.decode,
            workers=await asyncio.gather(*asked),
            restarts=view.restarts,
            settled=view.settled,
            prefill_utilization=view.utilization.get("prefill"),
            decode_utilization=view.utilization.get("decode"),
            metrics_address=view.metrics_address,
            routers=view.routers,
            registry_address=view.registry_address,
            doors_tls=view.doors_tls,
        )

    async def Scale(
        self, request: admin_pb2.ScaleRequest, context: Context
    ) -> admin_pb2.WantedWorkers:
        return await self._change(lambda: _scale(request), context)

    async def Drain(
        self, request: admin_pb2.DrainRequest, context: Context
    ) -> admin_pb2.WantedWorkers:
        return await self._change(lambda: _drain(request), context)

    async def Flip(
        self, request: admin_pb2.FlipRequest, context: Context
    ) -> admin_pb2.WantedWorkers:
        return await self._change(lambda: FlipWorker(request.worker), context)

    async def DrainNode(
        self, request: admin_pb2.DrainNodeRequest, context: Context
    ) -> admin_pb2.DrainNodeResponse:
        try:
            limit_s = _limit(request)
            leaving = await self._running().leave_node(request.address, limit_s)
        except Exception as error:
            await abort(context, as_crossdock_error(error))
        return admin_pb2.DrainNodeResponse(workers=sorted(slot.name for slot in leaving))

    async def _worker_status(
        self, member: Member, shape: ParallelShape, validate: bool, timeout: float
    ) -> admin_pb2.WorkerStatus:
        status = admin_pb2.WorkerStatus(
            worker=member.slot.name,
            endpoint=member.endpoint,
            state=_NAMES[member.state],
            detail=member.detail,
            tensor_parallel_size=shape.tensor,
            pipeline_parallel_size=shape.pipeline,
        )
        if member.state not in (MemberState.READY, MemberState.DRAINING):
            return status
        try:
            stats = await ask_worker(member.endpoint, timeout, tls=self._tls, validate=validate)
            status.stats.CopyFrom(stats)
        except grpc.aio.AioRpcError as error:
            if member.state is MemberState.READY:
                why = f"{error.code().name}: {error.details()}"
                status.state, status.detail = "unreachable", why
        return status

    def _running(self) -> Operations:
        operations = self._operations()
        if operations is None:
            raise refusal("the cluster is still starting; try again when it is ready")
        return operations

    async def _change(self, wish: Callable[[], Wish], context: Context) -> admin_pb2.WantedWorkers:
        try:
            operations = self._running()
            await operations.change(wish())
        except Exception as error:
            await abort(context, as_crossdock_error(error))
        return admin_pb2.WantedWorkers(
            prefill=operations.wanted.prefill, decode=operations.wanted.decode
        )


def _scale(request: admin_pb2.ScaleRequest) -> ScaleTo:
    return ScaleTo(
        prefill=request.prefill if request.HasField("prefill") else None,
        decode=request.decode if request.HasField("decode") else None,
    )


def _drain(request: admin_pb2.DrainRequest) -> DrainWorker:
    return DrainWorker(request.worker, replace=not request.no_replace, limit_s=_limit(request))


def _limit(request: admin_pb2.DrainRequest | admin_pb2.DrainNodeRequest) -> float:
    limit = request.limit_s if request.HasField("limit_s") else DRAIN_LIMIT_S
    if math.isnan(limit) or not 0 <= limit <= MAX_DRAIN_LIMIT_S:
        fix = f"must be between 0 and {MAX_DRAIN_LIMIT_S:g} seconds"
        raise InvalidField("limit_s", limit, fix)
    return limit
