"""Both ends of a handoff stream over real gRPC, with the lease rules on D and a scripted P."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import itertools
import mmap
import os
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
import numpy as np
import pytest

from core.block_hash import block_hashes
from core.block_pool import BlockPool
from core.handoff import (
    Ack,
    Commit,
    Committed,
    FailureCause,
    LeaseTimes,
    Reserve,
    Ticket,
    ToPrefill,
)
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
    SendToPrefill,
    StartSequence,
)
from core.request import AttemptKey, RequestKey, SamplingParams
from core.step import SampledToken
from crossdock.v1 import handoff_pb2, handoff_pb2_grpc
from kv_transfer.decode_session import HandoffServer
from kv_transfer.handshake import WorkerIdentity, hello
from kv_transfer.offers import Offer, PoolOffers
from kv_transfer.prefill_session import Announcement, PrefillSession
from kv_transfer.transport import TRANSPORTS, HostPool, describe_pieces

pytestmark = pytest.mark.processes

LAYOUT = KVLayout(num_layers=2, num_kv_heads=1, head_dim=8, block_size=4, dtype="float32")
POOL = PoolLayout(num_blocks=8, block_bytes=LAYOUT.block_bytes)
KEY = AttemptKey(RequestKey("default", "r"), 1)
TOKENS = np.arange(1, 11, dtype=np.int32)
DECODE = WorkerIdentity("D0", epoch=11, model_hash=5, layout=LAYOUT)
PREFILL = WorkerIdentity("P0", epoch=22, model_hash=5, layout=LAYOUT)


class DecodeSide:
    """D's lease table behind a real server; grants every reserve at once."""

    def __init__(self) -> None:
        self.blocks = np.zeros((8, LAYOUT.block_bytes), np.uint8)
        self.pool = BlockPool(8, LAYOUT.block_size)
        self.leases = LeaseTable(self.pool, LeaseTimes(), itertools.count(1).__next__)
        self.started: list[StartSequence] = []
        self.lost = asyncio.Event()
        self.server = HandoffServer(DECODE, self.blocks, self.on_event)

    def on_event(self, event: FromPrefill | Copied | PeerLost) -> None:
        self.handle(event)
        if isinstance(event, PeerLost):
            self.lost.set()

    def handle(self, event: LeaseInput) -> None:
        for command in self.leases.handle(event, time.monotonic()):
            match command:
                case SendToPrefill(peer, message):
                    self.server.send(peer, message)
                case CopyPieces():
                    self.server.copy(command)
                case EnqueueReserve(key, tokens, salt, _):
                    fresh = self.pool.allocate(3)
                    assert fresh is not None
                    self.handle(Granted(key, fresh, 0, block_hashes(tokens, 4, salt)))
                case StartSequence():
                    self.started.append(command)


@dataclass
class PrefillSide:
    """A pool of known bytes, and what was heard from D."""

    blocks: np.ndarray
    generations: np.ndarray
    offers: PoolOffers
    executor: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    heard: asyncio.Queue[ToPrefill] = field(default_factory=asyncio.Queue)
    lost: asyncio.Queue[tuple[FailureCause, str]] = field(default_factory=asyncio.Queue)

    def connect(
        self, endpoint: str, identity: WorkerIdentity = PREFILL, offer: Offer | None = None
    ) -> PrefillSession:
        return PrefillSession(
            endpoint,
            hello(identity, DECODE.epoch, offer or self.offers.new_offer()),
            describe=lambda item: describe_pieces(self.blocks, item.block_ids, item.generations),
            blocks_per_announcement=2,
            executor=self.executor,
            on_message=self.heard.put_nowait,
            on_lost=lambda cause, detail: self.lost.put_nowait((cause, detail)),
        )


@pytest.fixture
async def decode() -> AsyncIterator[tuple[DecodeSide, str, grpc.aio.Server]]:
    side = DecodeSide()
    server = grpc.aio.server()
    handoff_pb2_grpc.add_HandoffServicer_to_server(side.server, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield side, f"127.0.0.1:{port}", server
    await server.stop(None)
    await side.server.close()


@pytest.fixture(params=TRANSPORTS)
async def prefill(request: pytest.FixtureRequest) -> AsyncIterator[PrefillSide]:
    """Offers one transport; each test runs with each."""
    fd = os.memfd_create("test-pool")
    os.ftruncate(fd, POOL.total_bytes)
    memory = mmap.mmap(fd, POOL.total_bytes)
    blocks = np.frombuffer(memory, np.uint8, 8 * POOL.block_bytes).reshape(8, -1)
    blocks[:] = np.random.default_rng(1).integers(0, 256, blocks.shape, dtype=np.uint8)
    np.frombuffer(memory, np.uint64, 1, POOL.nonce_offset)[0] = 9
    generations = np.frombuffer(memory, np.uint64, 8, POOL.generations_offset)
    pool = HostPool(fd, 9, blocks, generations)
    side = PrefillSide(blocks, generations, PoolOffers(pool, [request.param], "127.0.0.1"))
    yield side
    side.offers.close()
    side.executor.shutdown()
    os.close(fd)


async def test_a_prompt_is_reserved_pushed_and_committed(
    decode: tuple[DecodeSide, str, grpc.aio.Server], prefill: PrefillSide
) -> None:
    side, endpoint, _ = decode
    side.handle(Opened(KEY))
    session = prefill.connect(endpoint)
    session.send(Reserve(KEY, TOKENS, 0, SamplingParams(8)))
    ticket = await prefill.heard.get()
    assert isinstance(ticket, Ticket)
    assert [session.transport] == prefill.offers.new_offer().transports
    session.send(Announcement(KEY, ticket.lease_id, 0, (6, 2), (0, 0)))
    assert await prefill.heard.get() == Ack(KEY, ticket.lease_id, 2, ())
    session.send(Announcement(KEY, ticket.lease_id, 2, (4,), (0,)))
    session.send(Commit(KEY, ticket.lease_id, (SampledToken(42),), 0))
    assert await prefill.heard.get() == Ack(KEY, ticket.lease_id, 3, ())
    assert await prefill.heard.get() == Committed(KEY, ticket.lease_id)
    (start,) = side.started
    assert (side.blocks[start.block_ids] == prefill.blocks[[6, 2, 4]]).all()
    (edge,) = side.server.edge_counters
    assert (edge.peer, edge.blocks, edge.bytes) == ("P0", 3, 3 * LAYOUT.block_bytes)
    await session.close()


async def test_a_prefill_worker_that_goes_away_leaves_nothing_leased(
    decode: tuple[DecodeSide, str, grpc.aio.Server], prefill: PrefillSide
) -> None:
    side, endpoint, _ = decode
    session = prefill.connect(endpoint)
    session.send(Reserve(KEY, TOKENS, 0, SamplingParams(8)))
    await prefill.heard.get()
    await session.close()
    await side.lost.wait()
    side.pool.validate()
    assert side.pool.num_leased == 0


async def test_a_decode_worker_that_goes_away_is_told_of_once(
    decode: tuple[DecodeSide, str, grpc.aio.Server], prefill: PrefillSide
) -> None:
    _, endpoint, server = decode
    session = prefill.connect(endpoint)
    session.send(Reserve(KEY, TOKENS, 0, SamplingParams(8)))
    await prefill.heard.get()
    await server.stop(None)
    cause, _ = await prefill.lost.get()
    assert cause is FailureCause.DECODE_LOST
    await session.close()
    assert prefill.lost.empty()


@pytest.mark.parametrize(
    ("identity", "named"),
    [
        (dataclasses.replace(PREFILL, model_hash=6), "model"),
        (
            dataclasses.replace(PREFILL, layout=dataclasses.replace(LAYOUT, dtype="bfloat16")),
            "dtype",
        ),
        (
            dataclasses.replace(PREFILL, layout=dataclasses.replace(LAYOUT, block_size=8)),
            "block size",
        ),
        (
            dataclasses.replace(PREFILL, layout=dataclasses.replace(LAYOUT, num_layers=3)),
            "block layout",
        ),
    ],
    ids=["model", "dtype", "block size", "layout"],
)
async def test_what_differs_is_refused_by_name(
    decode: tuple[DecodeSide, str, grpc.aio.Server],
    prefill: PrefillSide,
    identity: WorkerIdentity,
    named: str,
) -> None:
    _, endpoint, _ = decode
    session = prefill.connect(endpoint, identity)
    cause, detail = await prefill.lost.get()
    assert cause is FailureCause.INCOMPATIBLE
    assert named in detail
    await session.close()


async def test_a_way_that_does_not_work_is_refused_with_the_reason(
    decode: tuple[DecodeSide, str, grpc.aio.Server], prefill: PrefillSide
) -> None:
    _, endpoint, _ = decode
    nobody = handoff_pb2.ShmOffer(socket_path="@crossdock-nobody", nonce=9, num_blocks=8)
    session = prefill.connect(endpoint, offer=Offer(shm=nobody))
    cause, detail = await prefill.lost.get()
    assert cause is FailureCause.INCOMPATIBLE
    assert "shm: the memory can't be reached" in detail
    await session.close()


async def test_blocks_that_moved_on_before_they_were_described_are_refused(
    decode: tuple[DecodeSide, str, grpc.aio.Server], prefill: PrefillSide
) -> None:
    _, endpoint, _ = decode
    session = prefill.connect(endpoint)
    session.send(Reserve(KEY, TOKENS, 0, SamplingParams(8)))
    ticket = await prefill.heard.get()
    assert isinstance(ticket, Ticket)
    prefill.generations[6] = 1
    session.send(Announcement(KEY, ticket.lease_id, 0, (6,), (0,)))
    assert await prefill.heard.get() == Ack(KEY, ticket.lease_id, 0, resend=(0,))
    await session.close()


async def test_blocks_that_can_not_be_described_end_the_stream_with_their_error(
    decode: tuple[DecodeSide, str, grpc.aio.Server], prefill: PrefillSide
) -> None:
    seen: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(dict(context)))
    _, endpoint, _ = decode
    session = prefill.connect(endpoint)
    session.send(Reserve(KEY, TOKENS, 0, SamplingParams(8)))
    ticket = await prefill.heard.get()
    assert isinstance(ticket, Ticket)
    session.send(Announcement(KEY, ticket.lease_id, 0, (99,), (0,)))
    cause, detail = await prefill.lost.get()
    assert cause is FailureCause.INTERNAL
    assert "99" in detail
    await session.close()
    gc.collect()
    await asyncio.sleep(0)
    assert seen == []
