"""A server whose answers a test writes: one step of the script for each Generate call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from core.errors import CrossdockError
from crossdock.v1 import inference_pb2 as pb
from crossdock.v1.inference_pb2_grpc import InferenceServicer, add_InferenceServicer_to_server
from wire.grpc_errors import abort

SERVICE = "crossdock.v1.Inference"


@dataclass
class Answer:
    """Texts to send; then an error, an open end, or a good one."""

    texts: Sequence[str] = ()
    error: CrossdockError | None = None
    hangs: bool = False


@dataclass
class ScriptedServer(InferenceServicer):
    script: list[Answer] = field(default_factory=list)
    seen: list[pb.GenerateRequest] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    sending: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self, address: str = "127.0.0.1:0") -> str:
        self.health = health.aio.HealthServicer()
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_InferenceServicer_to_server(self, self.server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        port = self.server.add_insecure_port(address)
        await self.server.start()
        return f"127.0.0.1:{port}"

    async def set_serving(self, serving: bool) -> None:
        statuses = health_pb2.HealthCheckResponse
        await self.health.set(SERVICE, statuses.SERVING if serving else statuses.NOT_SERVING)

    async def Generate(
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        self.seen.append(request)
        answer = self.script[len(self.seen) - 1]
        for text in answer.texts:
            yield pb.GenerateResponse(chunk=pb.Chunk(text=text, token_ids=[1]))
        if answer.hangs:
            await self._hang()
        if answer.error is not None:
            await abort(context, answer.error)
        yield pb.GenerateResponse(complete=pb.Complete(finish_reason="stop"))

    async def _hang(self) -> None:
        self.sending.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    async def Abort(self, request: pb.AbortRequest, context: Any) -> pb.AbortResponse:
        self.aborted.append(request.request_id)
        return pb.AbortResponse()

    async def GetModelInfo(
        self, request: pb.GetModelInfoRequest, context: Any
    ) -> pb.GetModelInfoResponse:
        return pb.GetModelInfoResponse(model="tiny")
