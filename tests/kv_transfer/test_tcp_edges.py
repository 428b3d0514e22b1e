"""D's edges over TCP behind real handoff streams: what becomes of them when the way breaks."""

from __future__ import annotations

import asyncio
import functools
import socket
import threading
from collections.abc import AsyncIterator, Sequence

import grpc
import numpy as np
import pytest
from equal_edge import announced, layout_of
from scripted_prefill import (
    BLOCK_BYTES,
    HOST,
    TWO_COPIES,
    ScriptedPrefill,
    answer_and_stop,
    introduce,
)

from core.handoff import Ack, Beat, FailureCause, ToPrefill
from core.lease_events import Copied, CopyPieces, FromPrefill, PeerLost, PieceCopy
from core.request import AttemptKey, RequestKey
from core.shards import ONE_RANK, ParallelShape
from crossdock.v1 import handoff_pb2, handoff_pb2_grpc
from kv_transfer.decode_session import HandoffServer
from kv_transfer.handshake import WorkerIdentity
from kv_transfer.prefill_session import PrefillSession
from kv_transfer.rank_receiver import LocalRankReceiver
from kv_transfer.tcp_server import TcpServer
from kv_transfer.tcp_source import TcpSource
from kv_transfer.token_listener import TokenAddress
from kv_transfer.transport import TRANSPORTS

pytestmark = pytest.mark.processes

# One block is as large as those of the scripted peer.
LAYOUT = layout_of(BLOCK_BYTES)
DECODE = WorkerIdentity("D0", epoch=11, model_hash=5, layout=LAYOUT)
KEY = AttemptKey(RequestKey("default", "r"), 1)
NOBODY = handoff_pb2.ShmOffer(socket_path="@crossdock-nobody", nonce=9, num_blocks=8)


class Decode:
    """D's handoff server, its pool, and everything that it told its owner."""

    def __init__(self) -> None:
        self.blocks = np.zeros((8, BLOCK_BYTES), np.uint8)
        self.events: asyncio.Queue[FromPrefill | Copied | PeerLost] = asyncio.Queue()
        receiver = LocalRankReceiver(self.blocks, LAYOUT, ONE_RANK, 0, TRANSPORTS)
        self.handoff = HandoffServer(DECODE, [receiver], self.events.put_nowait)
        self.endpoint = ""

    async def peer(self) -> str:
        """The name of the prefill worker that says its first word now."""
        event = await self.events.get()
        assert isinstance(event, FromPrefill)
        return event.peer

    def copy(self, peer: str, copies: list[PieceCopy], lease_id: int = 1) -> None:
        self.handoff.copy(CopyPieces(KEY, lease_id, peer, tuple(copies)))


@pytest.fixture
async def decode() -> AsyncIterator[Decode]:
    side = Decode()
    server = grpc.aio.server()
    handoff_pb2_grpc.add_HandoffServicer_to_server(side.handoff, server)
    side.endpoint = f"{HOST}:{server.add_insecure_port(f'{HOST}:0')}"
    await server.start()
    yield side
    await server.stop(None)
    await side.handoff.close()


class Offering:
    """A rank of P that offers memory that nobody can reach, and TCP at an address of our choice."""

    def __init__(self, address: TokenAddress) -> None:
        self.address = address

    async def offer(self, stream: str) -> handoff_pb2.RankOffer:
        there = self.address
        tcp = handoff_pb2.TcpOffer(host=there.host, port=there.port, token=there.token)
        return handoff_pb2.RankOffer(transports=TRANSPORTS, shm=NOBODY, tcp=tcp)

    async def describe(
        self, stream: str, destination: ParallelShape, block_ids: Sequence[int]
    ) -> list[list[int]]:
        raise AssertionError("nothing is announced here")

    def withdraw(self, stream: str) -> None:
        pass


class Stream:
    """P's end of a handoff stream, with an offer of our choice."""

    def __init__(self, decode: Decode, address: TokenAddress, worker: str = "P0") -> None:
        self.heard: asyncio.Queue[ToPrefill] = asyncio.Queue()
        self.lost: asyncio.Queue[tuple[FailureCause, str]] = asyncio.Queue()
        self.session = PrefillSession(
            decode.endpoint,
            DECODE.epoch,
            WorkerIdentity(worker, epoch=22, model_hash=5, layout=LAYOUT),
            [Offering(address)],
            stream="to D0",
            blocks_per_announcement=1,
            on_message=self.heard.put_nowait,
            on_lost=lambda cause, detail: self.lost.put_nowait((cause, detail)),
        )
        self.session.send(Beat((), 0.0))

    async def close(self) -> None:
        await self.session.close()


@pytest.fixture
async def server() -> AsyncIterator[TcpServer]:
    opened = TcpServer(HOST, np.ones((8, BLOCK_BYTES), np.uint8), np.zeros(8, np.uint64))
    yield opened
    opened.close()


def invited(server: TcpServer) -> TokenAddress:
    return TokenAddress(HOST, server.port, server.invite())


def one_copy(destination: int) -> list[PieceCopy]:
    (piece,) = announced(np.ones((1, BLOCK_BYTES), np.uint8), [0], [0])
    return [PieceCopy(0, piece, destination)]


async def test_why_no_faster_way_was_taken_is_told_to_both_sides(
    decode: Decode, server: TcpServer
) -> None:
    stream = Stream(decode, invited(server))
    peer = await decode.peer()
    decode.copy(peer, one_copy(3))
    assert await decode.events.get() == Copied(1, (0,), ())
    acknowledged = Ack(KEY, lease_id=1, verified=1, resend=())
    decode.handoff.send(peer, acknowledged)
    # Behind D's hello on the same stream: P has read that one, too.
    assert await stream.heard.get() == acknowledged
    (edge,) = decode.handoff.edge_counters
    assert (stream.session.transports, edge.transport) == (("tcp",), "tcp")
    assert (edge.blocks, edge.bytes) == (1, BLOCK_BYTES)
    assert edge.detail.startswith("shm: the memory can't be reached")
    assert decode.blocks[3].all()
    await stream.close()


async def test_counters_are_kept_of_edges_that_live_and_of_the_last_that_were_lost(
    decode: Decode, server: TcpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kv_transfer.edge_counters._MAX_GONE", 2)
    streams = {}
    peers = {}
    for worker in ("P0", "P1", "P2", "P3"):
        streams[worker] = Stream(decode, invited(server), worker)
        peers[worker] = await decode.peer()
    for worker in ("P3", "P2", "P1"):
        await streams[worker].close()
        assert await decode.events.get() == PeerLost(peers[worker])
    assert {edge.peer for edge in decode.handoff.edge_counters} == {"P0", "P1", "P2"}
    await streams["P0"].close()


async def test_a_way_that_is_lost_for_good_ends_the_stream(
    decode: Decode, server: TcpServer
) -> None:
    address = invited(server)
    stream = Stream(decode, address)
    peer = await decode.peer()
    server.revoke(address.token)
    decode.copy(peer, one_copy(0), lease_id=1)
    assert await decode.events.get() == Copied(1, (), (0,))
    # The first copy found the connection broken; the second finds no way to open another.
    decode.copy(peer, one_copy(0), lease_id=2)
    assert await decode.events.get() == Copied(2, (), (0,))
    assert await decode.events.get() == PeerLost(peer)
    cause, _ = await stream.lost.get()
    assert cause is FailureCause.DECODE_LOST
    await stream.close()


@pytest.fixture
def patient_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies that would wait for an hour: what ends them is not their time limit."""
    patient = functools.partial(TcpSource, limit_s=3600.0)
    monkeypatch.setattr("kv_transfer.selection.TcpSource", patient)


@pytest.mark.usefixtures("patient_copies")
async def test_a_copy_ends_when_the_stream_of_its_peer_ends(decode: Decode) -> None:
    stopped = threading.Event()
    stalling = ScriptedPrefill([lambda connection: answer_and_stop(connection, stopped)])
    stream = Stream(decode, stalling.address)
    peer = await decode.peer()
    decode.copy(peer, TWO_COPIES)
    await wait_for_bytes(decode.blocks[1])
    await stream.close()
    assert await decode.events.get() == PeerLost(peer)
    copied = await decode.events.get()
    assert isinstance(copied, Copied)
    assert 5 in copied.bad
    stopped.set()
    stalling.close()


@pytest.mark.usefixtures("patient_copies")
async def test_a_peer_that_stalls_holds_up_nobody_else(decode: Decode, server: TcpServer) -> None:
    stopped = threading.Event()
    stalling = ScriptedPrefill([lambda connection: answer_and_stop(connection, stopped)])
    slow = Stream(decode, stalling.address, "P0")
    decode.copy(await decode.peer(), TWO_COPIES, lease_id=1)
    await wait_for_bytes(decode.blocks[1])
    quick = Stream(decode, invited(server), "P1")
    decode.copy(await decode.peer(), one_copy(7), lease_id=2)
    assert await decode.events.get() == Copied(2, (0,), ())
    stopped.set()
    assert await decode.events.get() == Copied(1, (4, 5), ())
    await slow.close()
    await quick.close()
    stalling.close()


async def test_a_peer_that_goes_away_during_the_self_test_leaves_no_connection(
    decode: Decode,
) -> None:
    connected, gone, closed = threading.Event(), threading.Event(), threading.Event()

    def introduce_late(connection: socket.socket) -> None:
        connected.set()
        gone.wait()
        introduce(connection)
        if connection.recv(1) == b"":
            closed.set()

    peer = ScriptedPrefill([introduce_late])
    stream = Stream(decode, peer.address)
    await asyncio.to_thread(connected.wait)
    await stream.close()
    gone.set()
    await asyncio.to_thread(closed.wait)
    peer.close()


async def wait_for_bytes(block: np.ndarray) -> None:
    def watch() -> None:
        while not block.any():
            pass

    await asyncio.to_thread(watch)
