"""Reads an answer from the router and, by its tickets, from decode workers: the asyncio client.

Does not cover: what is done with what comes (``crossdock.client.ticket_answer``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import grpc
import grpc.aio

from crossdock.client.connection import WORKER_CHANNEL_OPTIONS, Metadata, WorkerChannels
from crossdock.client.errors import Cancelled, ServerError, Unavailable, decode
from crossdock.client.ticket_answer import (
    Action,
    End,
    Fail,
    Give,
    Read,
    Relay,
    StopReading,
    TicketAnswer,
    unreachable,
)
from crossdock.client.tls import Tls, open_async_channel
from crossdock.v1 import inference_pb2 as pb
from crossdock.v1 import token_stream_pb2
from crossdock.v1.token_stream_pb2_grpc import TokenStreamStub

_END: Any = grpc.aio.EOF  # type: ignore[attr-defined]
# What came or ended, as a call of a method of ``TicketAnswer``.
_Event = Callable[[], list[Action]]


class TicketReader:
    """Channels to the workers that tickets name. ``stub``, ``metadata``: of the router. ``tls``: to
    the workers; None: in the clear."""

    def __init__(self, stub: Any, metadata: Metadata, tls: Tls | None) -> None:
        self.stub = stub
        self.metadata = metadata
        self.workers = WorkerChannels(
            lambda endpoint: open_async_channel(endpoint, tls, WORKER_CHANNEL_OPTIONS)
        )

    def responses(
        self, call: Any, request: pb.GenerateRequest, timeout: float | None
    ) -> AsyncGenerator[pb.GenerateResponse]:
        """All of an answer whose ``call`` of Generate has begun; raises ``ServerError``."""
        return _Answer(self, request, timeout).responses(call)

    async def close(self) -> None:
        for channel in self.workers.all:
            await channel.close(None)


class _Answer:
    """One try at a request."""

    def __init__(
        self, owner: TicketReader, request: pb.GenerateRequest, timeout: float | None
    ) -> None:
        self._owner = owner
        self._request_id = request.request_id
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._answer = TicketAnswer(request.sampling.n or 1)
        self._events: asyncio.Queue[_Event] = asyncio.Queue()
        self._reading: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def responses(self, call: Any) -> AsyncGenerator[pb.GenerateResponse]:
        self._start(self._hear_router(call))
        try:
            while True:
                for action in (await self._events.get())():
                    match action:
                        case Give(response):
                            yield response
                        case End():
                            return
                        case Fail(error):
                            raise error
                        case _:
                            self._carry_out(action)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _carry_out(self, action: Read | StopReading | Relay) -> None:
        match action:
            case Read(ticket, position):
                self._reading = self._start(self._read(ticket, position))
            case StopReading() if self._reading is not None:
                self._reading.cancel()
            case Relay(attempt, position):
                self._start(self._relay(attempt, position))

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        return task

    def _tell(self, event: _Event) -> None:
        self._events.put_nowait(event)

    async def _hear_router(self, call: Any) -> None:
        error = await self._hear(
            call, lambda response: self._tell(lambda: self._answer.from_router(response))
        )
        self._tell(lambda: self._answer.router_ended(error))

    async def _read(self, ticket: pb.ReadTicket, position: int) -> None:
        workers, endpoint = self._owner.workers, ticket.endpoint
        channel = workers.take(endpoint, time.monotonic())
        error: ServerError | None = unreachable(endpoint)
        if channel is not None:
            reached = True
            try:
                error, reached = await self._read_from(channel, ticket, position)
            finally:
                for unused in workers.give_back(endpoint, reached, time.monotonic()):
                    await unused.close(None)
        self._tell(lambda: self._answer.worker_ended(ticket.attempt, error))

    async def _read_from(
        self, channel: grpc.aio.Channel, ticket: pb.ReadTicket, position: int
    ) -> tuple[ServerError | None, bool]:
        """Why there is no more, and whether somebody is there."""
        heard = False

        def took(response: token_stream_pb2.ReadResponse) -> None:
            nonlocal heard
            heard = True
            self._tell(lambda: self._answer.from_worker(ticket.attempt, response))

        request = token_stream_pb2.ReadRequest(ticket=ticket.ticket, position=position)
        call = TokenStreamStub(channel).Read(request, timeout=self._left())
        try:
            error = await self._hear(call, took)
        finally:
            call.cancel()
        return error, heard or not isinstance(error, Unavailable)

    async def _hear(self, call: Any, took: Callable[[Any], None]) -> ServerError | None:
        """Passes all messages on; why there are no more, None if that was all."""
        try:
            while (message := await call.read()) is not _END:
                took(message)
        except grpc.RpcError as error:
            return decode(error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # gRPC ends a call of a closed channel as if the task that reads it was cancelled.
            return Cancelled(
                grpc.StatusCode.CANCELLED, "the client was closed while the answer ran"
            )
        return None

    async def _relay(self, attempt: int, position: int) -> None:
        request = pb.RelayTokensRequest(
            request_id=self._request_id, attempt=attempt, position=position
        )
        try:
            await self._owner.stub.RelayTokens(
                request, timeout=self._left(), metadata=self._owner.metadata
            )
        except grpc.RpcError:
            # Its stream tells why: the request, or the connection, has ended.
            return

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
