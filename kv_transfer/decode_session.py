"""D's end of the handoff streams: serves `Handoff.Session` to prefill workers.

Covers: the handshake, copies on demand on all ranks, telling the owner of messages, finished
copies and lost peers. Does not cover: the rules (``core.lease``), the ranks
(``kv_transfer.replica_receiver``), the transports (``kv_transfer.selection``).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from core.errors import CrossdockError, Incompatible
from core.handoff import ToPrefill
from core.lease_events import (
    Copied,
    CopyPieces,
    FromPrefill,
    PeerLost,
)
from crossdock.v1 import handoff_pb2 as pb
from crossdock.v1 import handoff_pb2_grpc
from kv_transfer.edge_counters import EdgeBook, EdgeCounters, StreamCounters
from kv_transfer.handoff_wire import check_checksums, from_prefill_wire, to_prefill_wire
from kv_transfer.handshake import WorkerIdentity, find_difference, hello_reply, refusal
from kv_transfer.outbox import Outbox, messages_of
from kv_transfer.rank_ports import EdgeChoice, RankReceiver
from kv_transfer.replica_receiver import ReplicaReceiver

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Stream:
    """One live stream of ``worker``."""

    worker: str
    counters: StreamCounters
    outbox: Outbox[ToPrefill, pb.DecodeMessage] = field(
        default_factory=lambda: Outbox(to_prefill_wire)
    )


class _Sessions:
    """How many calls are under way."""

    def __init__(self) -> None:
        self._number = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self._number += 1
        self._none.clear()

    def __exit__(self, *_: object) -> None:
        self._number -= 1
        if not self._number:
            self._none.set()

    async def all_ended(self) -> None:
        await self._none.wait()


class HandoffServer(handoff_pb2_grpc.HandoffServicer):
    """All handoff streams into one decode worker. ``on_event`` runs on the event loop.

    ``receivers``: of the worker's ranks, in their order.
    """

    def __init__(
        self,
        identity: WorkerIdentity,
        receivers: Sequence[RankReceiver],
        on_event: Callable[[FromPrefill | Copied | PeerLost], None],
    ) -> None:
        self._identity = identity
        self._receiver = ReplicaReceiver(receivers)
        self._on_event = on_event
        self._streams: dict[str, _Stream] = {}
        self._stream_numbers = itertools.count(1)
        self._book = EdgeBook()
        self._sessions = _Sessions()
        # Copies, and what closes edges: they outlive their streams.
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def edge_counters(self) -> list[EdgeCounters]:
        """Counters of all edges that live, and of those that were lost last."""
        return self._book.counters

    def send(self, peer: str, message: ToPrefill) -> None:
        """Queues a message; without effect if the peer's stream is gone."""
        stream = self._streams.get(peer)
        if stream is not None:
            stream.outbox.put(message)

    def copy(self, command: CopyPieces) -> None:
        """Copies in the background; the result comes as one `Copied` event, always."""
        self._begin(self._copy(command))

    async def close(self) -> None:
        """Ends running copies and their threads. Stop the gRPC server before: it ends streams."""
        await self._sessions.all_ended()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def Session(
        self,
        request_iterator: AsyncIterator[pb.PrefillMessage],
        context: grpc.aio.ServicerContext[pb.PrefillMessage, pb.DecodeMessage],
    ) -> None:
        # Not a generator: the end of one that waits to be asked for more may come much later.
        with self._sessions:
            first = await anext(request_iterator, None)
            if first is not None:
                await self._converse(first.hello, request_iterator, context)

    async def _converse(
        self,
        hello: pb.Hello,
        frames: AsyncIterator[pb.PrefillMessage],
        context: grpc.aio.ServicerContext[pb.PrefillMessage, pb.DecodeMessage],
    ) -> None:
        peer = f"{hello.worker}@{hello.epoch:x}/{next(self._stream_numbers)}"
        try:
            choices = await self._shake_hands(peer, hello)
        except Incompatible as error:
            self._book.refused(hello.worker[:256], error.message[:2000])
            await context.write(pb.DecodeMessage(hello=refusal(error.message)))
            return
        stream = _Stream(hello.worker, self._book.opened(hello.worker, choices))
        self._streams[peer] = stream
        reader = asyncio.create_task(self._read(peer, frames, len(choices)))
        reader.add_done_callback(lambda _: stream.outbox.end())
        try:
            transports = [choice.transport for choice in choices]
            await context.write(pb.DecodeMessage(hello=hello_reply(self._identity, transports)))
            while (frame := await stream.outbox.next_frame()) is not None:
                await context.write(frame)
        finally:
            reader.cancel()
            try:
                await asyncio.gather(reader, return_exceptions=True)
            finally:
                self._lose(peer, stream)

    async def _read(
        self, peer: str, frames: AsyncIterator[pb.PrefillMessage], num_edges: int
    ) -> None:
        try:
            async for frame in frames:
                for wire in messages_of(frame):
                    message = from_prefill_wire(wire)
                    check_checksums(message, num_edges)
                    self._on_event(FromPrefill(peer, message))
        except (ValueError, CrossdockError):
            _log.exception("closing the stream of %s after a message that makes no sense", peer)

    def _lose(self, peer: str, stream: _Stream) -> None:
        del self._streams[peer]
        self._book.lost(stream.worker)
        self._receiver.abort(peer)
        self._begin(self._receiver.close(peer))
        self._on_event(PeerLost(peer))

    async def _shake_hands(self, peer: str, hello: pb.Hello) -> tuple[EdgeChoice, ...]:
        difference = find_difference(self._identity, hello)
        if difference:
            raise Incompatible(difference, reason="HANDSHAKE_REFUSED")
        opening = asyncio.create_task(self._receiver.open(peer, hello))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            self._begin(self._close_unused(peer, opening))
            raise

    async def _close_unused(self, peer: str, opening: asyncio.Task[tuple[EdgeChoice, ...]]) -> None:
        """P went away while the transports were being chosen."""
        await asyncio.gather(opening, return_exceptions=True)
        await self._receiver.close(peer)

    async def _copy(self, command: CopyPieces) -> None:
        result = await self._receiver.copy(command.peer, command.copies)
        stream = self._streams.get(command.peer)
        if stream is not None:
            for traffic in result.traffic:
                stream.counters[traffic.source, traffic.destination].add(traffic)
            if result.lost:
                _log.error("ending the stream of %s: %s", command.peer, result.lost)
                stream.outbox.end()
        self._on_event(Copied(command.lease_id, result.good, result.bad))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
