"""Clients read tokens from this worker, with tickets of its routers: gRPC service `TokenStream`.

On a port of its own, because clients have no business at the others. One message carries what came
within a short interval.
Does not cover: what is kept for whom (`decode_worker.readable_answers`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import grpc.aio

from core.errors import CrossdockError, NotFound, Unavailable
from core.request import AttemptKey
from core.tls_files import ServerFiles
from crossdock.v1 import token_stream_pb2 as pb
from crossdock.v1 import token_stream_pb2_grpc
from decode_worker.read_responses import read_response
from decode_worker.readable_answers import ReadableAnswers, Reader
from wire.attempts import key_from_wire
from wire.grpc_errors import abort
from wire.tickets import check, claims_of, refusal
from wire.tls_grpc import open_port

# Of messages to one reader, but for the last. People read slower, and a write costs as much as the
# text of some twenty tokens.
_INTERVAL_S = 0.05
# A ticket may be here sooner than its attempt, which takes another way.
_OPEN_S = 5.0
# From a given port on so many are tried: several workers of a node share the setting.
_TRIED_PORTS = 64
_MAX_REQUEST_BYTES = 16 * 1024
_SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", _MAX_REQUEST_BYTES),
    # A reader whose host vanished is noticed within 50 s, and may ping as it does a router.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


@dataclass(slots=True, eq=False)
class _Waking:
    """What a reader waits for: ``news`` of its answer, and that there will be no more."""

    news: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class TokenStreams(token_stream_pb2_grpc.TokenStreamServicer):
    """Readers of one worker. ``start``, then ``stop``.

    ``worker``, ``epoch``: whose tickets are good here; ``router_key``: with which the attached
    router of an id signs; ``on_read``: a reader was given something.
    """

    def __init__(
        self,
        answers: ReadableAnswers,
        worker: str,
        epoch: int,
        router_key: Callable[[str], bytes | None],
        on_read: Callable[[AttemptKey], None],
    ) -> None:
        self.address = ""
        self._answers = answers
        self._worker = worker
        self._epoch = epoch
        self._router_key = router_key
        self._on_read = on_read
        self._server: grpc.aio.Server | None = None
        self._waking: dict[AttemptKey, _Waking] = {}
        self._opening = asyncio.Event()

    async def start(self, host: str, port: int, tls: ServerFiles | None) -> None:
        """On the first free port from ``port`` on; 0: any free one. ``tls`` None: in the clear.
        Raises ``Unavailable``, and ``InvalidField`` if the files can't be used."""
        self._server = grpc.aio.server(options=_SERVER_OPTIONS)
        token_stream_pb2_grpc.add_TokenStreamServicer_to_server(self, self._server)
        self.address = f"{host}:{_listen(self._server, host, port, tls)}"
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Also if it has not started."""
        if self._server is not None:
            await self._server.stop(grace_s)

    def opened(self) -> None:
        """An attempt has begun for which a reader may wait already."""
        self._opening.set()
        self._opening = asyncio.Event()

    def wake(self, key: AttemptKey) -> None:
        """There is more to read of this attempt."""
        waking = self._waking.get(key)
        if waking is not None:
            waking.news.set()

    def wake_last(self, key: AttemptKey) -> None:
        """Its reading ends: all is there, or there will be nothing more."""
        waking = self._waking.get(key)
        if waking is not None:
            waking.news.set()
            waking.ended.set()

    async def Read(
        self,
        request: pb.ReadRequest,
        context: grpc.aio.ServicerContext[pb.ReadRequest, pb.ReadResponse],
    ) -> AsyncIterator[pb.ReadResponse]:
        try:
            key = await self._admitted(request.ticket)
            reader = self._answers.claim(key, request.position, time.monotonic())
            self.wake_last(key)  # An earlier reader, which is to leave.
            waking = self._waking[key] = _Waking()
            try:
                async for response in self._responses(reader, waking):
                    yield response
            finally:
                self._leave(reader, waking)
        except CrossdockError as error:
            await abort(context, error)

    async def _admitted(self, ticket: bytes) -> AttemptKey:
        """Whose ticket it is, once its attempt has begun; raises Unauthenticated, NotFound."""
        claims = claims_of(ticket)
        key = key_from_wire(claims.key)
        answer = self._answers.answer(key)
        check(ticket, self._router_key(claims.router_id) if answer is None else answer.ticket_key)
        if (claims.worker, claims.epoch) != (self._worker, self._epoch):
            raise refusal()
        await self._begun(key)
        return key

    async def _begun(self, key: AttemptKey) -> None:
        try:
            async with asyncio.timeout(_OPEN_S):
                while key not in self._answers:
                    await self._opening.wait()
        except TimeoutError:
            raise NotFound(
                f"nothing of {key} is to be read here", reason="NOTHING_TO_READ"
            ) from None

    async def _responses(self, reader: Reader, waking: _Waking) -> AsyncIterator[pb.ReadResponse]:
        # At once, so that the client knows that it got through.
        yield pb.ReadResponse(position=reader.position)
        while not self._answers.has_all(reader):
            waking.news.clear()
            start, answer = reader.position, self._answers.take(reader)
            if reader.position == start:
                await waking.news.wait()
                continue
            self._on_read(reader.key)
            yield read_response(answer.outputs, start, answer.prompt_tokens, self._worker)
            await _pause(waking.ended)

    def _leave(self, reader: Reader, waking: _Waking) -> None:
        self._answers.left(reader, time.monotonic())
        if self._waking.get(reader.key) is waking:
            del self._waking[reader.key]


async def _pause(ended: asyncio.Event) -> None:
    """The last tokens are not kept back."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_INTERVAL_S):
            await ended.wait()


def _listen(server: grpc.aio.Server, host: str, first: int, tls: ServerFiles | None) -> int:
    ports = range(first, min(first + _TRIED_PORTS, 2**16)) if first else [0]
    for port in ports:
        try:
            return open_port(server, f"{host}:{port}", tls)
        except RuntimeError:
            continue
    raise Unavailable(
        f"no port for token streams is free on {host} from {first} to {ports[-1]}; set another one "
        "(0: any free one)",
        reason="PORT_TAKEN",
        metadata={"field": "token_streams.port", "value": str(first)},
    )
