"""D's end of the handoff streams: serves `Handoff.Session` to prefill workers.

Covers: the handshake, copies on demand, telling the owner of messages, finished copies and lost
peers. Does not cover: the rules (``core.lease``), the transports (``kv_transfer.selection``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence

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
from kv_transfer.edge import Edge, EdgeCounters
from kv_transfer.handoff_wire import from_prefill_wire, to_prefill_wire
from kv_transfer.handshake import WorkerIdentity, find_difference
from kv_transfer.selection import Chosen, open_source
from kv_transfer.transport import TRANSPORTS, CopyResult, PoolBytes

_log = logging.getLogger(__name__)
# Names of workers are never used again: without a limit, counters of those gone would pile up.
_MAX_GONE = 64


class HandoffServer(handoff_pb2_grpc.HandoffServicer):
    """All handoff streams into one decode worker. ``on_event`` runs on the event loop.

    ``transports``: those that this worker accepts, the fastest first.
    """

    def __init__(
        self,
        identity: WorkerIdentity,
        pool: PoolBytes,
        on_event: Callable[[FromPrefill | Copied | PeerLost], None],
        transports: Sequence[str] = TRANSPORTS,
    ) -> None:
        self._identity = identity
        self._pool = pool
        self._on_event = on_event
        self._transports = transports
        self._edges: dict[str, Edge] = {}
        self._counters: dict[tuple[str, str], EdgeCounters] = {}
        self._copies: set[asyncio.Task[None]] = set()
        self._closing_edges: set[asyncio.Future[None]] = set()

    @property
    def edge_counters(self) -> list[EdgeCounters]:
        """Counters of all edges that live, and of those that were lost last."""
        return list(self._counters.values())

    def send(self, peer: str, message: ToPrefill) -> None:
        """Queues a message; without effect if the peer's stream is gone."""
        edge = self._edges.get(peer)
        if edge is not None:
            edge.outbox.put_nowait(message)

    def copy(self, command: CopyPieces) -> None:
        """Copies in the background; the result comes as a `Copied` event, always."""
        task = asyncio.create_task(self._copy(command))
        self._copies.add(task)
        task.add_done_callback(self._copies.discard)

    async def close(self) -> None:
        """Ends running copies and their threads. The streams have ended with the gRPC server."""
        await asyncio.gather(*self._copies, *self._closing_edges, return_exceptions=True)

    async def Session(
        self,
        request_iterator: AsyncIterator[pb.PrefillMessage],
        context: grpc.aio.ServicerContext[pb.PrefillMessage, pb.DecodeMessage],
    ) -> AsyncIterator[pb.DecodeMessage]:
        hello = (await anext(request_iterator)).hello
        peer = f"{hello.worker}@{hello.epoch:x}/{id(context):x}"
        try:
            chosen = await self._shake_hands(hello)
        except Incompatible as error:
            _log.warning("refused prefill worker %s: %s", hello.worker, error.message)
            yield pb.DecodeMessage(hello=self._reply(refused=error.message))
            return
        edge = self._new_edge(hello.worker, chosen)
        self._edges[peer] = edge
        reader = asyncio.create_task(self._read(peer, request_iterator))
        try:
            yield pb.DecodeMessage(hello=self._reply(chosen=chosen))
            while (message := await self._next_message(edge, reader)) is not None:
                yield to_prefill_wire(message)
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            self._lose(peer, edge)

    def _new_edge(self, worker: str, chosen: Chosen) -> Edge:
        transport, detail = chosen.source.transport, chosen.detail
        counters = self._counters.setdefault((worker, transport), EdgeCounters(worker, transport))
        if detail and detail != counters.detail:
            _log.warning("KV blocks of %s come over %s: %s", worker, transport, detail)
        counters.detail = detail
        return Edge(chosen.source, counters, self._identity.layout.block_bytes)

    async def _next_message(self, edge: Edge, reader: asyncio.Task[None]) -> ToPrefill | None:
        """The next message for P, or None once either side wants no more."""
        waiting = asyncio.ensure_future(edge.outbox.get())
        await asyncio.wait((waiting, reader), return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        waiting.cancel()
        return None

    async def _read(self, peer: str, messages: AsyncIterator[pb.PrefillMessage]) -> None:
        try:
            async for message in messages:
                self._on_event(FromPrefill(peer, from_prefill_wire(message)))
        except (ValueError, CrossdockError):
            _log.exception("closing the stream of %s after a message that makes no sense", peer)

    def _lose(self, peer: str, edge: Edge) -> None:
        del self._edges[peer]
        self._keep_lost(edge.counters)
        edge.abort()
        closing = asyncio.get_running_loop().run_in_executor(None, edge.close)
        self._closing_edges.add(closing)
        closing.add_done_callback(self._closing_edges.discard)
        self._on_event(PeerLost(peer))

    def _keep_lost(self, counters: EdgeCounters) -> None:
        """Keeps the counters of the edges that were lost last, in the order of their loss."""
        key = (counters.peer, counters.transport)
        self._counters[key] = self._counters.pop(key)
        live = {(edge.counters.peer, edge.counters.transport) for edge in self._edges.values()}
        gone = [key for key in self._counters if key not in live]
        for key in gone[:-_MAX_GONE]:
            del self._counters[key]

    async def _shake_hands(self, hello: pb.Hello) -> Chosen:
        difference = find_difference(self._identity, hello)
        if difference:
            raise Incompatible(difference, reason="HANDSHAKE_REFUSED")
        opening = asyncio.get_running_loop().run_in_executor(
            None, open_source, hello, self._transports, self._pool
        )
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unused)
            raise

    def _reply(self, *, chosen: Chosen | None = None, refused: str = "") -> pb.HelloReply:
        if chosen is None:
            return pb.HelloReply(refused=refused)
        return pb.HelloReply(transport=chosen.source.transport, detail=chosen.detail)

    async def _copy(self, command: CopyPieces) -> None:
        edge = self._edges.get(command.peer)
        if edge is None:
            result = CopyResult((), tuple(c.index for c in command.copies))
        else:
            result = await edge.copy(command.copies)
        self._on_event(Copied(command.lease_id, result.good, result.bad))


def _close_unused(opening: asyncio.Future[Chosen]) -> None:
    """P went away while the transport was being chosen."""
    if opening.exception() is None:
        opening.result().source.close()
