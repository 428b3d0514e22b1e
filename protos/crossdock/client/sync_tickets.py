"""Reads an answer from the router and, by its tickets, from decode workers: the blocking client.

A thread for each of the two ways. Does not cover: what is done with what comes
(``crossdock.client.ticket_answer``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from queue import SimpleQueue
from typing import Any

import grpc

from crossdock.client.connection import WORKER_CHANNEL_OPTIONS, Metadata, WorkerChannels
from crossdock.client.errors import ServerError, Unavailable, decode
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
from crossdock.client.tls import Tls, open_channel
from crossdock.v1 import inference_pb2 as pb
from crossdock.v1 import token_stream_pb2
from crossdock.v1.token_stream_pb2_grpc import TokenStreamStub

_Event = Callable[[], list[Action]]


class TicketReader:
    """Channels to the workers that tickets name. ``stub``, ``metadata``: of the router. ``tls``: to
    the workers; None: in the clear."""

    def __init__(self, stub: Any, metadata: Metadata, tls: Tls | None) -> None:
        self.stub = stub
        self.metadata = metadata
        self.workers = WorkerChannels(
            lambda endpoint: open_channel(endpoint, tls, WORKER_CHANNEL_OPTIONS)
        )

    def responses(
        self, call: Any, request: pb.GenerateRequest, timeout: float | None
    ) -> Generator[pb.GenerateResponse]:
        """All of an answer whose ``call`` of Generate has begun; raises ``ServerError``."""
        return _Answer(self, request, timeout).responses(call)

    def close(self) -> None:
        for channel in self.workers.all:
            channel.close()


class _Answer:
    """One try at a request."""

    def __init__(
        self, owner: TicketReader, request: pb.GenerateRequest, timeout: float | None
    ) -> None:
        self._owner = owner
        self._request_id = request.request_id
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._answer = TicketAnswer(request.sampling.n or 1)
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._reading: Any = None
        self._relaying: Any = None

    def responses(self, call: Any) -> Generator[pb.GenerateResponse]:
        self._start(self._hear_router, call)
        try:
            while True:
                for action in self._events.get()():
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
            call.cancel()
            self._stop_reading()

    def _carry_out(self, action: Read | StopReading | Relay) -> None:
        match action:
            case Read(ticket, position):
                self._read(ticket, position)
            case StopReading():
                self._stop_reading()
            case Relay(attempt, position):
                request = pb.RelayTokensRequest(
                    request_id=self._request_id, attempt=attempt, position=position
                )
                # If that fails, the router's stream tells why: request or connection has ended. It
                # is kept, since gRPC cancels a call that nobody holds.
                self._relaying = self._owner.stub.RelayTokens.future(
                    request, timeout=self._left(), metadata=self._owner.metadata
                )

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()

    @staticmethod
    def _start(work: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=work, args=arguments, name="answer", daemon=True).start()

    def _hear_router(self, call: Any) -> None:
        error = _hear(
            call, lambda response: self._events.put(lambda: self._answer.from_router(response))
        )
        self._events.put(lambda: self._answer.router_ended(error))

    def _read(self, ticket: pb.ReadTicket, position: int) -> None:
        channel = self._owner.workers.take(ticket.endpoint, time.monotonic())
        if channel is None:
            error = unreachable(ticket.endpoint)
            self._events.put(lambda: self._answer.worker_ended(ticket.attempt, error))
            return
        request = token_stream_pb2.ReadRequest(ticket=ticket.ticket, position=position)
        self._reading = TokenStreamStub(channel).Read(request, timeout=self._left())
        self._start(self._hear_worker, self._reading, ticket)

    def _hear_worker(self, call: Any, ticket: pb.ReadTicket) -> None:
        heard = False

        def took(response: token_stream_pb2.ReadResponse) -> None:
            nonlocal heard
            heard = True
            self._events.put(lambda: self._answer.from_worker(ticket.attempt, response))

        error = _hear(call, took)
        reached = heard or not isinstance(error, Unavailable)
        for unused in self._owner.workers.give_back(ticket.endpoint, reached, time.monotonic()):
            unused.close()
        self._events.put(lambda: self._answer.worker_ended(ticket.attempt, error))

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())


def _hear(call: Any, took: Callable[[Any], None]) -> ServerError | None:
    """Passes all messages on; why there are no more, None if that was all."""
    try:
        for message in call:
            took(message)
    except grpc.RpcError as error:
        return decode(error)
    return None
