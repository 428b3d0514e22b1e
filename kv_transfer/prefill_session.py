"""P's end of the handoff stream to one decode worker.

Covers: offers of all ranks, connecting, the handshake, sending (announcements wait for their
checksums, what is said of other prompts does not), telling the owner of every message and of the
stream's end. One stream per decode worker. Does not cover: what to send when (``core.push``), the
ranks (``kv_transfer.replica_sender``), how D copies (``kv_transfer.decode_session``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc

from core.errors import Incompatible
from core.handoff import Announce, Commit, FailureCause, ToDecode, ToPrefill
from core.request import AttemptKey
from core.shards import ParallelShape
from core.tls_files import TlsFiles
from core.transfer_plan import EdgePlan
from crossdock.v1 import handoff_pb2 as pb
from crossdock.v1 import handoff_pb2_grpc
from kv_transfer.handoff_wire import from_decode_wire, to_decode_wire
from kv_transfer.handshake import WorkerIdentity, accepted_plan, hello, stated_shape
from kv_transfer.outbox import Outbox, messages_of
from kv_transfer.rank_ports import RankSender
from kv_transfer.replica_sender import ReplicaSender
from wire.grpc_streams import read, written_by
from wire.tls_grpc import open_channel

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
        decode_epoch: int,
        identity: WorkerIdentity,
        senders: Sequence[RankSender],
        *,
        stream: str,
        blocks_per_announcement: int,
        on_message: Callable[[ToPrefill], None],
        on_lost: Callable[[FailureCause, str], None],
        tls: TlsFiles | None = None,
    ) -> None:
        """``senders``: of P's ranks, in their order; ``stream``: what they call this one; ``tls``
        None: in the clear.

        Long announcements are split, so that D copies one part while P describes the next.
        """
        self._endpoint = endpoint
        self._tls = tls
        self._decode_epoch = decode_epoch
        self._identity = identity
        self._sender = ReplicaSender(senders)
        self._stream = stream
        self._blocks_per_announcement = blocks_per_announcement
        self._on_message = on_message
        self._on_lost = on_lost
        self._outbox: Outbox[ToDecode, pb.PrefillMessage] = Outbox(to_decode_wire)
        self._to_describe: asyncio.Queue[Announcement | Commit] = asyncio.Queue()
        self._closing = False
        self._task = asyncio.create_task(self._run())
        # Of each edge, in the plan's order; empty before the handshake.
        self.transports: tuple[str, ...] = ()

    def send(self, message: ToDecode | Announcement) -> None:
        """Queues a message. Announcements and commits keep their order, and all others theirs:
        these never wait for a checksum."""
        if isinstance(message, (Announcement, Commit)):
            self._to_describe.put_nowait(message)
        else:
            self._outbox.put(message)

    async def close(self) -> None:
        """Ends the stream without telling of a loss."""
        self._closing = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            async with open_channel(self._endpoint, self._tls, CHANNEL_OPTIONS) as channel:
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
        finally:
            self._sender.withdraw(self._stream)
        self._on_lost(cause, detail)

    async def _converse(self, channel: grpc.aio.Channel) -> None:
        offers = await self._sender.offer(self._stream)
        greeting = hello(self._identity, self._decode_epoch, offers)
        call = handoff_pb2_grpc.HandoffStub(channel).Session()
        async with written_by(call, lambda: self._write(call, greeting)):
            first = await read(call)
            if first is None:
                return
            plan = accepted_plan(self._identity, first.hello)
            self.transports = tuple(first.hello.transports)
            shape = stated_shape(first.hello)
            async with written_by(call, lambda: self._announce_all(shape, plan)):
                while (frame := await read(call)) is not None:
                    for message in messages_of(frame):
                        self._on_message(from_decode_wire(message))

    async def _write(self, call: grpc.aio.StreamStreamCall, greeting: pb.Hello) -> None:  # type: ignore[type-arg]
        await call.write(pb.PrefillMessage(hello=greeting))
        while (frame := await self._outbox.next_frame()) is not None:
            await call.write(frame)

    async def _announce_all(self, destination: ParallelShape, plan: Sequence[EdgePlan]) -> None:
        while True:
            item = await self._to_describe.get()
            if isinstance(item, Commit):
                # In one frame with the announcement before it: nothing runs in between.
                self._outbox.put(item)
                continue
            for part in item.parts(self._blocks_per_announcement):
                pieces = await self._sender.describe(
                    self._stream, destination, plan, part.block_ids, part.generations
                )
                self._outbox.put(Announce(part.key, part.lease_id, part.first, pieces))
