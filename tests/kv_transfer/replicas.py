"""Both ends of a handoff in one process, each of any number of ranks: P scripted, D with its rules.

Each rank has a pool of its own. P's pools hold their parts of known blocks of the whole model.
"""

from __future__ import annotations

import asyncio
import itertools
import mmap
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np

from core.block_hash import block_hashes
from core.block_pool import BlockPool
from core.handoff import FailureCause, LeaseTimes, Reserve, Ticket, ToPrefill
from core.kv_layout import KVLayout
from core.kv_pool_layout import PoolLayout
from core.lease import LeaseTable
from core.lease_events import (
    Copied,
    CopyPieces,
    EnqueueReserve,
    FromPrefill,
    Granted,
    LeaseInput,
    Opened,
    PeerLost,
    PieceCopy,
    SendToPrefill,
    StartSequence,
)
from core.request import AttemptKey, RequestKey, SamplingParams
from core.shards import ParallelShape, kv_shards, shard_layout
from core.tcp_options import TcpOptions
from core.tls_files import TlsFiles
from crossdock.v1 import handoff_pb2 as pb
from crossdock.v1 import handoff_pb2_grpc
from kv_transfer.decode_session import HandoffServer
from kv_transfer.handshake import WorkerIdentity
from kv_transfer.prefill_session import PrefillSession
from kv_transfer.rank_ports import EdgeChoice, RankCopied, RankReceiver, RankSender
from kv_transfer.rank_receiver import LocalRankReceiver
from kv_transfer.rank_sender import LocalRankSender
from kv_transfer.transport import TRANSPORTS, HostPool

NUM_BLOCKS = 8
KEY = AttemptKey(RequestKey("default", "r"), 1)
# Three blocks of four tokens, the last one in part.
TOKENS = np.arange(1, 11, dtype=np.int32)
_NONCE = 9
_DECODE_EPOCH = 11


def decode_identity(layout: KVLayout, shape: ParallelShape) -> WorkerIdentity:
    return WorkerIdentity("D0", _DECODE_EPOCH, model_hash=5, layout=layout, shape=shape)


def prefill_identity(layout: KVLayout, shape: ParallelShape) -> WorkerIdentity:
    return WorkerIdentity("P0", epoch=22, model_hash=5, layout=layout, shape=shape)


def split(model: np.ndarray, layout: KVLayout, shape: ParallelShape) -> list[np.ndarray]:
    """Each rank's part of blocks of the whole model: uint8 [num_blocks, block bytes] of both."""
    cut = model.reshape(len(model), *layout.block_shape[:4], -1)
    return [
        cut[:, layers.start : layers.stop, :, heads.start : heads.stop].reshape(len(model), -1)
        for layers, heads in ((shard.layers, shard.heads) for shard in kv_shards(layout, shape))
    ]


@dataclass
class SharedPool:
    """One rank's pool in memory that others can map."""

    fd: int
    blocks: np.ndarray
    generations: np.ndarray

    @classmethod
    def holding(cls, blocks: np.ndarray) -> SharedPool:
        parts = PoolLayout(len(blocks), blocks.shape[1])
        fd = os.memfd_create("test-pool")
        os.ftruncate(fd, parts.total_bytes)
        os.pwrite(fd, _NONCE.to_bytes(8, "little"), parts.nonce_offset)
        os.pwrite(fd, parts.probe(_NONCE), parts.probe_offset)
        memory = mmap.mmap(fd, parts.total_bytes)
        mine = np.frombuffer(memory, np.uint8, blocks.size).reshape(blocks.shape)
        mine[:] = blocks
        generations = np.frombuffer(memory, np.uint64, len(blocks), parts.generations_offset)
        return cls(fd, mine, generations)

    @property
    def exported(self) -> HostPool:
        return HostPool(self.fd, _NONCE, self.blocks, self.generations)


@dataclass
class OtherSender:
    """A rank of P like ``rank``, until a test makes it something else."""

    rank: RankSender

    async def offer(self, stream: str) -> pb.RankOffer:
        return await self.rank.offer(stream)

    async def describe(
        self, stream: str, destination: ParallelShape, block_ids: Sequence[int]
    ) -> list[list[int]]:
        return await self.rank.describe(stream, destination, block_ids)

    def withdraw(self, stream: str) -> None:
        self.rank.withdraw(stream)


class UnreachableSender(OtherSender):
    """Offers memory behind a socket on which nobody listens."""

    async def offer(self, stream: str) -> pb.RankOffer:
        offer = await super().offer(stream)
        offer.shm.socket_path = "@crossdock-nobody"
        return offer


@dataclass
class OtherReceiver:
    """A rank of D like ``rank``, until a test makes it something else."""

    rank: RankReceiver

    async def open(self, stream: str, hello: pb.Hello) -> tuple[EdgeChoice, ...]:
        return await self.rank.open(stream, hello)

    async def copy(self, stream: str, copies: Sequence[PieceCopy]) -> RankCopied:
        return await self.rank.copy(stream, copies)

    def abort(self, stream: str) -> None:
        self.rank.abort(stream)

    async def close(self, stream: str) -> None:
        await self.rank.close(stream)


class PrefillReplica:
    """P's ranks, each with its part of ``model`` (uint8 [num_blocks, block bytes], random), and
    what was heard from D."""

    def __init__(
        self,
        layout: KVLayout,
        shape: ParallelShape,
        transports: Sequence[str] = TRANSPORTS,
        tls: TlsFiles | None = None,
    ) -> None:
        self.identity = prefill_identity(layout, shape)
        generator = np.random.default_rng(1)
        size = (NUM_BLOCKS, layout.block_bytes)
        self.model = generator.integers(0, 256, size, dtype=np.uint8)
        self.pools = [SharedPool.holding(part) for part in split(self.model, layout, shape)]
        self.local = [
            LocalRankSender(pool.exported, layout, shape, rank, transports, "127.0.0.1", tls)
            for rank, pool in enumerate(self.pools)
        ]
        self.senders: list[RankSender] = list(self.local)
        self.heard: asyncio.Queue[ToPrefill] = asyncio.Queue()
        self.lost: asyncio.Queue[tuple[FailureCause, str]] = asyncio.Queue()

    def connect(self, endpoint: str, identity: WorkerIdentity | None = None) -> PrefillSession:
        return PrefillSession(
            endpoint,
            _DECODE_EPOCH,
            identity or self.identity,
            self.senders,
            stream="to D0",
            blocks_per_announcement=2,
            on_message=self.heard.put_nowait,
            on_lost=lambda cause, detail: self.lost.put_nowait((cause, detail)),
        )

    async def reserve(self, session: PrefillSession) -> int:
        """The lease that D grants for the prompt."""
        session.send(Reserve(KEY, TOKENS, 0, SamplingParams(8)))
        ticket = await self.heard.get()
        assert isinstance(ticket, Ticket)
        return ticket.lease_id

    def close(self) -> None:
        for sender, pool in zip(self.local, self.pools, strict=True):
            sender.close()
            os.close(pool.fd)


@dataclass
class DecodeReplica:
    """D's ranks, its lease table and a real server; grants every reserve at once."""

    layout: KVLayout
    shape: ParallelShape
    receivers: list[RankReceiver] = field(default_factory=list)
    tls: TlsFiles | None = None
    started: list[StartSequence] = field(default_factory=list)
    copied: list[Copied] = field(default_factory=list)
    endpoint: str = ""

    def __post_init__(self) -> None:
        self.blocks = [
            np.zeros((NUM_BLOCKS, shard_layout(self.layout, shard).block_bytes), np.uint8)
            for shard in kv_shards(self.layout, self.shape)
        ]
        self.pool = BlockPool(NUM_BLOCKS, self.layout.block_size)
        self.leases = LeaseTable(self.pool, LeaseTimes(), itertools.count(1).__next__)
        self.lost = asyncio.Event()
        self.receivers = self.receivers or [
            LocalRankReceiver(
                blocks, self.layout, self.shape, rank, TRANSPORTS, TcpOptions(tls=self.tls)
            )
            for rank, blocks in enumerate(self.blocks)
        ]
        identity = decode_identity(self.layout, self.shape)
        self.handoffs = HandoffServer(identity, self.receivers, self.on_event)
        self.server = grpc.aio.server()

    def on_event(self, event: FromPrefill | Copied | PeerLost) -> None:
        self.handle(event)
        if isinstance(event, Copied):
            self.copied.append(event)
        if isinstance(event, PeerLost):
            self.lost.set()

    def handle(self, event: LeaseInput) -> None:
        for command in self.leases.handle(event, time.monotonic()):
            match command:
                case SendToPrefill(peer, message):
                    self.handoffs.send(peer, message)
                case CopyPieces():
                    self.handoffs.copy(command)
                case EnqueueReserve(key, tokens, salt, _):
                    fresh = self.pool.allocate(3)
                    assert fresh is not None
                    self.handle(Granted(key, fresh, 0, block_hashes(tokens, 4, salt)))
                case StartSequence():
                    self.started.append(command)

    async def serve(self) -> None:
        handoff_pb2_grpc.add_HandoffServicer_to_server(self.handoffs, self.server)
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        self.endpoint = f"127.0.0.1:{port}"
        self.handle(Opened(KEY))


@asynccontextmanager
async def prefilling(
    layout: KVLayout, shape: ParallelShape, transport: str = "shm", tls: TlsFiles | None = None
) -> AsyncIterator[PrefillReplica]:
    replica = PrefillReplica(layout, shape, [transport], tls)
    yield replica
    replica.close()


@asynccontextmanager
async def serving(decode: DecodeReplica) -> AsyncIterator[DecodeReplica]:
    await decode.serve()
    yield decode
    await decode.server.stop(None)
    await decode.handoffs.close()
