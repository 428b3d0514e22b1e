"""The one multiplexed stream between this router and one worker.

Covers: connecting, the opening exchange, writing through a queue (a slow worker makes nobody
wait, and what waits for it goes in one message), telling at once that the stream broke, connecting
again while the worker is listed.
Does not cover: what the messages mean (``router.workers.worker_news``).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

import grpc.aio

from core.errors import Incompatible, Unavailable
from core.tls_files import TlsFiles
from crossdock.v1 import worker_pb2 as pb
from crossdock.v1.metrics_pb2 import GetMetricsRequest
from crossdock.v1.worker_pb2_grpc import WorkerStub
from router.placement import WorkerId
from router.workers.backoff import Backoff
from wire.grpc_streams import read, written_by
from wire.tls_grpc import open_channel

log = logging.getLogger(__name__)

# The list of a big worker's cached blocks comes as one message (8 bytes a block).
MAX_MESSAGE_BYTES = 256 * 1024 * 1024
# What waits goes together up to so much; a prompt of a million tokens has four times as much.
_MOST_TOGETHER_BYTES = 1024 * 1024
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Without its own pool a channel inherits the back-off of an earlier one to the same address.
    ("grpc.use_local_subchannel_pool", 1),
    # A stopped or unreachable worker breaks no connection by itself: only a ping notices it.
    # Workers allow pings this often.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)


class LinkListener(Protocol):
    """Who is told what a link hears; always called on the event loop."""

    def cache_sequence(self, worker: WorkerId) -> int:
        """The last cache event of this life of the worker that is known; 0: none."""
        ...

    def on_attached(self, worker: WorkerId, welcome: pb.Welcome) -> None: ...

    def on_message(self, worker: WorkerId, message: pb.WorkerMessage) -> None: ...

    def on_lost(self, worker: WorkerId) -> None: ...


class WorkerLink:
    """Keeps the stream to ``worker`` at ``endpoint`` up until ``close`` or ``delist``.

    ``listed``: whether to connect again when the stream breaks. ``tls`` None: in the clear.
    ``ticket_key``: with which this router signs tickets.
    """

    def __init__(
        self,
        worker: WorkerId,
        endpoint: str,
        router_id: str,
        listener: LinkListener,
        tls: TlsFiles | None = None,
        ticket_key: bytes = b"",
    ) -> None:
        self._tls = tls
        self.worker = worker
        self.endpoint = endpoint
        self._router_id = router_id
        self._ticket_key = ticket_key
        self._listener = listener
        self._outbox: asyncio.Queue[pb.RouterMessage] = asyncio.Queue()
        self._attached = False
        self._stub: WorkerStub | None = None
        self.listed = True
        self._task = asyncio.create_task(self._keep_up(), name=f"link to {worker}")

    def send(self, message: pb.RouterMessage) -> None:
        """Queue a message. Without a stream it is dropped: the listener knows of the loss."""
        if self._attached:
            self._outbox.put_nowait(message)

    async def metrics(self, timeout_s: float) -> bytes:
        """What the worker's ``/metrics`` shows. Raises ``grpc.aio.AioRpcError``, or ``Unavailable``
        without a stream."""
        if self._stub is None:
            raise Unavailable(f"{self.worker} is not attached", reason="NOT_ATTACHED")
        told = await self._stub.GetMetrics(GetMetricsRequest(), timeout=timeout_s)
        return bytes(told.text)

    def delist(self) -> None:
        """The registry no longer has this worker: use the stream to its end, but no longer."""
        self.listed = False
        if not self._attached:
            self._task.cancel()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_up(self) -> None:
        backoff = Backoff()
        while self.listed:
            try:
                await self._session(backoff)
            except (grpc.aio.AioRpcError, Incompatible) as error:
                log.info("link to %s: %s", self.worker, _describe(error))
            except Exception:
                # A defect, or a message that makes no sense: start afresh with this worker.
                log.exception("link to %s failed", self.worker)
            finally:
                self._lost()
            await asyncio.sleep(backoff.next_pause())

    async def _session(self, backoff: Backoff) -> None:
        self._outbox = asyncio.Queue()
        async with open_channel(self.endpoint, self._tls, _CHANNEL_OPTIONS) as channel:
            self._stub = WorkerStub(channel)
            call = self._stub.Attach()
            async with written_by(call, lambda: self._write(call)):
                while (message := await read(call)) is not None:
                    if self._attached:
                        self._listener.on_message(self.worker, message)
                    else:
                        self._welcome(message.welcome)
                        backoff.reset()

    def _welcome(self, welcome: pb.Welcome) -> None:
        if (welcome.worker, welcome.epoch) != (self.worker.name, self.worker.epoch):
            raise Incompatible(
                f"{self.endpoint} answers as {welcome.worker!r} of epoch {welcome.epoch}, "
                f"not as {self.worker.name!r} of epoch {self.worker.epoch}",
                reason="OTHER_WORKER",
            )
        self._attached = True
        self._listener.on_attached(self.worker, welcome)

    async def _write(self, call: grpc.aio.StreamStreamCall) -> None:  # type: ignore[type-arg]
        attach = pb.Attach(
            router_id=self._router_id,
            cache_epoch=self.worker.epoch,
            cache_sequence=self._listener.cache_sequence(self.worker),
            ticket_key=self._ticket_key,
        )
        await call.write(pb.RouterMessage(attach=attach))
        while True:
            await call.write(await self._waiting())

    async def _waiting(self) -> pb.RouterMessage:
        """All that waits, in one message: what several requests have to say in one turn of the
        event loop, and what came while the last message was written."""
        first = await self._outbox.get()
        if self._outbox.empty():
            return first
        together = pb.RouterMessage()
        messages, size = together.several.messages, first.ByteSize()
        messages.append(first)
        while not self._outbox.empty() and size < _MOST_TOGETHER_BYTES:
            message = self._outbox.get_nowait()
            messages.append(message)
            size += message.ByteSize()
        return together

    def _lost(self) -> None:
        self._stub = None
        if self._attached:
            self._attached = False
            self._listener.on_lost(self.worker)


def _describe(error: grpc.aio.AioRpcError | Incompatible) -> str:
    if isinstance(error, Incompatible):
        return error.message
    return f"{error.code().name} {error.details()}"
