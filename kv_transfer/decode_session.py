"""D's end of the handoff streams: serves `Handoff.Session` to prefill workers.

Covers: the handshake, choosing and testing the transport, one copy thread, telling the owner of
messages, finished copies and lost peers. Does not cover: the rules (``core.lease``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc

from core.errors import CrossdockError, Incompatible
from core.handoff import ToPrefill
from core.kv_pool_layout import PoolLayout
from core.lease_events import (
    Copied,
    CopyPieces,
    FromPrefill,
    PeerLost,
)
from crossdock.v1 import handoff_pb2 as pb
from crossdock.v1 import handoff_pb2_grpc
from kv_transfer.handoff_wire import from_prefill_wire, to_prefill_wire
from kv_transfer.handshake import WorkerIdentity, find_difference
from kv_transfer.shm import SHM, SharedMemorySource
from kv_transfer.transport import CopyResult, PieceSource, PoolBytes

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class EdgeCounters:
    """What came over one edge (from a prefill worker, all its lives, to this worker)."""

    peer: str
    transport: str
    bytes: int = 0
    blocks: int = 0
    seconds: float = 0.0
    resent_blocks: int = 0


@dataclass(slots=True)
class Edge:
    """One live stream from a prefill worker."""

    outbox: asyncio.Queue[ToPrefill]
    source: PieceSource
    counters: EdgeCounters


class HandoffServer(handoff_pb2_grpc.HandoffServicer):
    """All handoff streams into one decode worker. ``on_event`` runs on the event loop."""

    def __init__(
        self,
        identity: WorkerIdentity,
        pool: PoolBytes,
        on_event: Callable[[FromPrefill | Copied | PeerLost], None],
    ) -> None:
        self._identity = identity
        self._pool = pool
        self._on_event = on_event
        self._edges: dict[str, Edge] = {}
        self._counters: dict[tuple[str, str], EdgeCounters] = {}
        self._copier = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kv-copy")
        self._copies: set[asyncio.Task[None]] = set()

    @property
    def edge_counters(self) -> list[EdgeCounters]:
        """Counters of all edges since the start, lost ones included."""
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
        """Waits for running copies. The streams end with the gRPC server."""
        await asyncio.gather(*self._copies, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(None, self._copier.shutdown)

    async def Session(
        self,
        request_iterator: AsyncIterator[pb.PrefillMessage],
        context: grpc.aio.ServicerContext[pb.PrefillMessage, pb.DecodeMessage],
    ) -> AsyncIterator[pb.DecodeMessage]:
        hello = (await anext(request_iterator)).hello
        peer = f"{hello.worker}@{hello.epoch:x}/{id(context):x}"
        try:
            source = await self._shake_hands(hello)
        except Incompatible as error:
            _log.warning("refused prefill worker %s: %s", hello.worker, error.message)
            yield pb.DecodeMessage(hello=self._reply(refused=error.message))
            return
        edge = Edge(asyncio.Queue(), source, self._counters_of(hello.worker, source.transport))
        self._edges[peer] = edge
        reader = asyncio.create_task(self._read(peer, request_iterator))
        try:
            yield pb.DecodeMessage(hello=self._reply(transport=source.transport))
            while not reader.done():
                message = await self._next_message(edge, reader)
                if message is not None:
                    yield to_prefill_wire(message)
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            self._lose(peer, edge)

    def _counters_of(self, worker: str, transport: str) -> EdgeCounters:
        return self._counters.setdefault((worker, transport), EdgeCounters(worker, transport))

    async def _next_message(self, edge: Edge, reader: asyncio.Task[None]) -> ToPrefill | None:
        """The next message for P, or None once P has closed its side."""
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
        # Behind the copies that are queued already: the source must outlive them.
        self._copier.submit(edge.source.close)
        self._on_event(PeerLost(peer))

    async def _shake_hands(self, hello: pb.Hello) -> PieceSource:
        difference = find_difference(self._identity, hello)
        if difference:
            raise Incompatible(difference, reason="HANDSHAKE_REFUSED")
        if SHM not in hello.transports:
            raise Incompatible(
                f"no common KV transport: {hello.worker} offers {list(hello.transports)}, "
                f"{self._identity.worker} has ['{SHM}']",
                reason="NO_COMMON_TRANSPORT",
            )
        loop = asyncio.get_running_loop()
        layout = PoolLayout(hello.shm.num_blocks, self._identity.layout.block_bytes)
        # Not on the copy thread: a peer that does not answer must not stop everybody's copies.
        return await loop.run_in_executor(
            None,
            SharedMemorySource,
            hello.shm.socket_path,
            hello.shm.nonce,
            layout,
            self._pool,
        )

    def _reply(self, *, transport: str = "", refused: str = "") -> pb.HelloReply:
        return pb.HelloReply(transport=transport, refused=refused)

    async def _copy(self, command: CopyPieces) -> None:
        edge = self._edges.get(command.peer)
        if edge is None:
            result = CopyResult((), tuple(c.index for c in command.copies))
        else:
            result = await self._copy_over(edge, command)
        self._on_event(Copied(command.lease_id, result.good, result.bad))

    async def _copy_over(self, edge: Edge, command: CopyPieces) -> CopyResult:
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        try:
            result = await loop.run_in_executor(self._copier, edge.source.copy, command.copies)
        except Exception:
            _log.exception("copy from %s failed", command.peer)
            return CopyResult((), tuple(c.index for c in command.copies))
        counters = edge.counters
        counters.seconds += time.monotonic() - started
        counters.blocks += len(result.good)
        counters.bytes += len(result.good) * self._identity.layout.block_bytes
        counters.resent_blocks += len(result.bad)
        return result
