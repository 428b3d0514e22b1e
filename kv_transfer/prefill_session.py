"""P's end of the handoff stream to one decode worker.

Covers: connecting, the handshake, sending in order (announcements wait for their checksums),
telling the owner of every message and of the stream's end. One stream per decode worker.
Does not cover: what to send when (``core.push``), how D copies (``kv_transfer.decode_session``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

import grpc

from core.errors import Incompatible
from core.handoff import Announce, FailureCause, Piece, ToDecode, ToPrefill
from core.request import AttemptKey
from crossdock.v1 import handoff_pb2 as pb
from crossdock.v1 import handoff_pb2_grpc
from kv_transfer.handoff_wire import from_decode_wire, to_decode_wire
from wire.grpc_streams import read, written_by

_log = logging.getLogger(__name__)

# Prompts travel inside Reserve: 4 bytes a token.
MAX_MESSAGE_BYTES = 64 << 20
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A stopped or unreachable peer breaks no connection by itself: only a ping notices it.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass(frozen=True, slots=True)
class Announcement:
    """Finished blocks whose checksums are still to be computed."""

    key: AttemptKey
    lease_id: int
    first: int
    block_ids: tuple[int, ...]
    generations: tuple[int, ...]

    def parts(self, size: int) -> list[Announcement]:
        """The same in announcements of at most ``size`` blocks, in order."""
        return [
            Announcement(
                self.key,
                self.lease_id,
                self.first + i,
                self.block_ids[i : i + size],
                self.generations[i : i + size],
            )
            for i in range(0, len(self.block_ids), size)
        ]


class PrefillSession:
    """One stream to one decode worker in one life. Ends once, by `on_lost`; never reconnects."""

    def __init__(
        self,
        endpoint: str,
        hello: pb.Hello,
        *,
        describe: Callable[[Announcement], tuple[Piece, ...]],
        blocks_per_announcement: int,
        executor: Executor,
        on_message: Callable[[ToPrefill], None],
        on_lost: Callable[[FailureCause, str], None],
    ) -> None:
        """``describe`` computes pieces of blocks; it runs on ``executor``.

        Long announcements are split, so that D copies one part while P describes the next.
        """
        self._endpoint = endpoint
        self._hello = hello
        self._describe = describe
        self._blocks_per_announcement = blocks_per_announcement
        self._executor = executor
        self._on_message = on_message
        self._on_lost = on_lost
        self._outbox: asyncio.Queue[ToDecode | Announcement] = asyncio.Queue()
        self._closing = False
        self._task = asyncio.create_task(self._run())
        self.transport = ""

    def send(self, message: ToDecode | Announcement) -> None:
        """Queues a message; order is kept."""
        self._outbox.put_nowait(message)

    async def close(self) -> None:
        """Ends the stream without telling of a loss."""
        self._closing = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            async with grpc.aio.insecure_channel(self._endpoint, CHANNEL_OPTIONS) as channel:
                await self._converse(channel)
            cause, detail = FailureCause.DECODE_LOST, "the decode worker closed the stream"
        except Incompatible as error:
            cause, detail = FailureCause.INCOMPATIBLE, error.message
        except grpc.aio.AioRpcError as error:
            cause, detail = FailureCause.DECODE_LOST, f"{error.code().name}: {error.details()}"
        except (Exception, asyncio.CancelledError) as error:
            # A call that gRPC cancels by itself ends in a cancellation, too: not only `close`.
            if self._closing:
                return
            _log.exception("handoff stream to %s failed", self._endpoint)
            cause, detail = FailureCause.INTERNAL, repr(error)
        self._on_lost(cause, detail)

    async def _converse(self, channel: grpc.aio.Channel) -> None:
        call = handoff_pb2_grpc.HandoffStub(channel).Session()
        async with written_by(call, lambda: self._write(call)):
            first = await read(call)
            if first is None:
                return
            if first.hello.refused:
                raise Incompatible(first.hello.refused, reason="HANDSHAKE_REFUSED")
            self.transport = first.hello.transport
            while (reply := await read(call)) is not None:
                self._on_message(from_decode_wire(reply))

    async def _write(self, call: grpc.aio.StreamStreamCall) -> None:  # type: ignore[type-arg]
        await call.write(pb.PrefillMessage(hello=self._hello))
        while True:
            message = await self._outbox.get()
            if not isinstance(message, Announcement):
                await call.write(to_decode_wire(message))
                continue
            for part in message.parts(self._blocks_per_announcement):
                await call.write(to_decode_wire(await self._with_pieces(part)))

    async def _with_pieces(self, item: Announcement) -> Announce:
        loop = asyncio.get_running_loop()
        pieces = await loop.run_in_executor(self._executor, self._describe, item)
        return Announce(item.key, item.lease_id, item.first, pieces)
