"""KV blocks over real TCP sockets: honest peers, strangers, and peers that stop half-way."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from equal_edge import announced, whole_blocks, whole_target
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_prefill import (
    BLOCK_BYTES,
    HOST,
    TWO_COPIES,
    ScriptedPrefill,
    answer_all,
    answer_and_stop,
    answer_one_request,
    close_after_request,
    close_at_once,
    introduce,
    know_no_token,
    say_garbage,
    say_nothing,
)

from amounts import examples
from core.errors import Incompatible
from core.handoff import Piece
from core.lease_events import PieceCopy
from kv_transfer import tcp_server, tcp_source, tcp_stream, token_listener
from kv_transfer import tcp_wire as wire
from kv_transfer.socket_io import prepare, receive, resolve, wait_connected
from kv_transfer.tcp_channel import Channel
from kv_transfer.tcp_server import TcpServer
from kv_transfer.tcp_source import TcpSource
from kv_transfer.tcp_stream import TcpStream
from kv_transfer.token_listener import TokenAddress
from kv_transfer.transport import CopyResult

NUM_BLOCKS = 24


@dataclass
class Prefill:
    """A prefill worker's pool behind a real server."""

    blocks: np.ndarray
    generations: np.ndarray
    server: TcpServer
    token: bytes

    @property
    def address(self) -> TokenAddress:
        return TokenAddress(HOST, self.server.port, self.token)

    def piece(self, block_id: int) -> Piece:
        (piece,) = announced(self.blocks, [block_id], [int(self.generations[block_id])])
        return piece

    def connect(self) -> socket.socket:
        """A bare connection, past the greeting; returns it after P's first words."""
        connection = socket.create_connection((HOST, self.server.port))
        assert len(receive(connection, wire.GREETING_BYTES, time.monotonic() + 60)) > 0
        return connection

    def introduced(self) -> socket.socket:
        """A bare connection of somebody who knows the token."""
        connection = socket.create_connection((HOST, self.server.port))
        greeting = receive(connection, wire.GREETING_BYTES, time.monotonic() + 60)
        both = wire.Challenges(wire.read_greeting(greeting), wire.new_challenge())
        part = wire.pack_part(whole_blocks(BLOCK_BYTES).source_runs)
        connection.sendall(both.pack_proof(self.token) + part)
        receive(connection, BLOCK_BYTES, time.monotonic() + 60)
        return connection


@pytest.fixture
def prefill() -> Iterator[Prefill]:
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 256, (NUM_BLOCKS, BLOCK_BYTES), dtype=np.uint8)
    generations = np.zeros(NUM_BLOCKS, np.uint64)
    server = TcpServer(HOST, blocks, generations)
    yield Prefill(blocks, generations, server, server.invite())
    server.close()


@pytest.fixture
def destination() -> np.ndarray:
    return np.zeros((NUM_BLOCKS, BLOCK_BYTES), np.uint8)


@pytest.fixture
def source(prefill: Prefill, destination: np.ndarray) -> Iterator[TcpSource]:
    opened = TcpSource(prefill.address, whole_target(destination))
    yield opened
    opened.close()


def rest_of(connection: socket.socket) -> bytes:
    """Everything that still comes until the peer closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            received += part
    connection.close()
    return received


# Honest peers


def test_within_a_host_no_link_is_estimated() -> None:
    with socket.create_server((HOST, 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        prepare(ours)
        chosen = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        assert chosen.rstrip(b"\0") == b"reno"
        ours.close()


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.lists(st.integers(0, NUM_BLOCKS - 1), min_size=1, max_size=NUM_BLOCKS),
    places=st.permutations(range(NUM_BLOCKS)),
)
def test_any_blocks_land_anywhere(
    prefill: Prefill,
    source: TcpSource,
    destination: np.ndarray,
    asked: list[int],
    places: list[int],
) -> None:
    destination[:] = 0
    targets = places[: len(asked)]
    copies = [
        PieceCopy(i, prefill.piece(block), target)
        for i, (block, target) in enumerate(zip(asked, targets, strict=True))
    ]
    result = source.copy(copies)
    assert (result.good, result.bad) == (tuple(range(len(asked))), ())
    assert (destination[targets] == prefill.blocks[asked]).all()
    assert not destination[places[len(asked) :]].any(), "another block was written to"


def test_more_pieces_than_one_request_or_one_system_call_may_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "MAX_PIECES", 1500)
    blocks = np.random.default_rng(1).integers(0, 256, (4000, 64), dtype=np.uint8)
    # Every second place, so that no two blocks are neighbours: one buffer for each.
    destination = np.zeros((8000, 64), np.uint8)
    generations = np.zeros(4000, np.uint64)
    server = TcpServer(HOST, blocks, generations)
    source = TcpSource(TokenAddress(HOST, server.port, server.invite()), whole_target(destination))
    order = np.random.default_rng(2).permutation(4000).tolist()
    pieces = announced(blocks, order, [0] * 4000)
    result = source.copy([PieceCopy(i, piece, 2 * i) for i, piece in enumerate(pieces)])
    assert result.good == tuple(range(4000))
    assert (destination[::2] == blocks[order]).all()
    assert not destination[1::2].any()
    source.close()
    server.close()


def test_many_decode_workers_are_served_side_by_side(prefill: Prefill) -> None:
    pools = [np.zeros((NUM_BLOCKS, BLOCK_BYTES), np.uint8) for _ in range(4)]
    addresses = [TokenAddress(HOST, prefill.server.port, prefill.server.invite()) for _ in pools]
    sources = [TcpSource(a, whole_target(pool)) for a, pool in zip(addresses, pools, strict=True)]
    copies = [PieceCopy(i, prefill.piece(i), i) for i in range(NUM_BLOCKS)]
    threads = [threading.Thread(target=source.copy, args=(copies,)) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((pool == prefill.blocks).all() for pool in pools)
    for source in sources:
        source.close()


# Blocks that are not what was announced


def test_a_block_that_moved_on_is_bad_and_its_neighbours_are_not(
    prefill: Prefill, source: TcpSource, destination: np.ndarray
) -> None:
    copies = [PieceCopy(i, prefill.piece(i), i) for i in range(5)]
    prefill.generations[2] += 1
    result = source.copy(copies)
    assert (result.good, result.bad) == ((0, 1, 3, 4), (2,))
    assert (destination[[0, 1, 3, 4]] == prefill.blocks[[0, 1, 3, 4]]).all()
    assert not destination[2].any()


def test_one_flipped_bit_is_found(prefill: Prefill, source: TcpSource) -> None:
    copies = [PieceCopy(i, prefill.piece(i), i) for i in range(3)]
    prefill.blocks[1, 4321] ^= 1
    assert source.copy(copies).bad == (1,)
    prefill.blocks[1, 4321] ^= 1
    assert source.copy(copies).good == (0, 1, 2)


def test_a_block_id_outside_the_pool_is_bad(prefill: Prefill, source: TcpSource) -> None:
    stray = Piece(NUM_BLOCKS, 0, (0,))
    result = source.copy([PieceCopy(0, stray, 0), PieceCopy(1, prefill.piece(3), 1)])
    assert (result.good, result.bad) == ((1,), (0,))


# Several connections


def test_pieces_are_dealt_out_to_all_connections(prefill: Prefill, destination: np.ndarray) -> None:
    source = TcpSource(prefill.address, whole_target(destination), streams=3)
    copies = [PieceCopy(i, prefill.piece(i), NUM_BLOCKS - 1 - i) for i in range(NUM_BLOCKS)]
    assert source.copy(copies).good == tuple(range(NUM_BLOCKS))
    assert (destination == prefill.blocks[::-1]).all()
    assert source.copy(copies[:1]).good == (0,), "fewer pieces than connections"
    assert source.copy([]) == CopyResult((), ())
    source.close()


@pytest.fixture
def meet(monkeypatch: pytest.MonkeyPatch) -> Callable[[ScriptedPrefill, ScriptedPrefill], None]:
    """The first connection of a source reaches one peer, the second another."""

    def arrange(*peers: ScriptedPrefill) -> None:
        ports = iter([peer.address.port for peer in peers])

        class Meeting(TcpStream):
            def connect(self, deadline: float) -> Channel:
                self._places = resolve(HOST, next(ports))
                return super().connect(deadline)

        monkeypatch.setattr(tcp_source, "TcpStream", Meeting)

    return arrange


def test_a_broken_connection_of_several_costs_its_own_pieces(
    destination: np.ndarray, meet: Callable[[ScriptedPrefill, ScriptedPrefill], None]
) -> None:
    peers = ScriptedPrefill([answer_one_request]), ScriptedPrefill([close_after_request])
    meet(*peers)
    source = TcpSource(peers[0].address, whole_target(destination), streams=2)
    result = source.copy(TWO_COPIES)
    assert (result.good, result.bad) == ((4,), (5,))
    source.close()
    for peer in peers:
        peer.close()


def test_if_one_of_several_connections_fails_to_open_the_others_are_closed(
    destination: np.ndarray, meet: Callable[[ScriptedPrefill, ScriptedPrefill], None]
) -> None:
    closed = threading.Event()

    def wait_for_the_end(connection: socket.socket) -> None:
        introduce(connection)
        assert connection.recv(1) == b""
        closed.set()

    peers = ScriptedPrefill([wait_for_the_end]), ScriptedPrefill([know_no_token])
    meet(*peers)
    with pytest.raises(Incompatible, match="probe differs"):
        TcpSource(peers[0].address, whole_target(destination), streams=2)
    assert closed.wait(60)
    for peer in peers:
        peer.close()


def test_one_decode_worker_cannot_have_any_number_of_connections(
    prefill: Prefill, destination: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_listener, "_MAX_CONNECTIONS", 2)
    with pytest.raises(Incompatible, match=r"closed|reset"):
        TcpSource(prefill.address, whole_target(destination), streams=3)
    token = prefill.server.invite()
    other = TokenAddress(HOST, prefill.server.port, token)
    TcpSource(other, whole_target(destination), streams=2).close()


# Strangers


def test_a_wrong_token_is_refused(prefill: Prefill, destination: np.ndarray) -> None:
    wrong = TokenAddress(HOST, prefill.server.port, b"?" * wire.TOKEN_BYTES)
    with pytest.raises(Incompatible, match=r"self-test with .* failed"):
        TcpSource(wrong, whole_target(destination))


@pytest.mark.parametrize(
    "said",
    [bytes(wire.PROOF_BYTES), b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n", b"x"],
    ids=["zeros", "http", "one byte"],
)
def test_a_stranger_gets_nothing(prefill: Prefill, said: bytes) -> None:
    connection = prefill.connect()
    connection.sendall(said)
    connection.shutdown(socket.SHUT_WR)
    assert rest_of(connection) == b""


def test_strangers_who_say_nothing_are_few(
    prefill: Prefill, destination: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_listener, "_MAX_STRANGERS", 2)
    strangers = [prefill.connect(), prefill.connect()]
    with pytest.raises(Incompatible, match=r"closed|reset"):
        TcpSource(prefill.address, whole_target(destination))
    strangers[0].shutdown(socket.SHUT_WR)
    assert rest_of(strangers[0]) == b""
    TcpSource(prefill.address, whole_target(destination)).close()
    strangers[1].close()


def test_without_threads_a_peer_is_turned_away_and_later_ones_are_served(
    prefill: Prefill, destination: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(Incompatible, match=r"closed|reset"):
            TcpSource(prefill.address, whole_target(destination))
    source = TcpSource(prefill.address, whole_target(destination))
    assert source.copy([PieceCopy(0, prefill.piece(1), 0)]).good == (0,)
    source.close()


def test_a_stranger_who_says_nothing_is_not_waited_for_for_ever(
    prefill: Prefill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_listener, "_HANDSHAKE_LIMIT_S", 0.1)
    assert rest_of(prefill.connect()) == b""


# Requests that make no sense


@pytest.mark.parametrize(
    "part",
    [
        bytes(4),
        (2**32 - 1).to_bytes(4, "little"),
        wire.pack_part(np.array([[0, BLOCK_BYTES + 1]])),
        wire.pack_part(np.array([[-8, 8]])),
        wire.pack_part(np.array([[8, 8], [0, 8]])),
    ],
    ids=["none", "too many", "too long", "before the pool", "backwards"],
)
def test_a_part_that_is_not_in_a_block_ends_the_connection_only(
    prefill: Prefill, source: TcpSource, part: bytes
) -> None:
    connection = socket.create_connection((HOST, prefill.server.port))
    greeting = receive(connection, wire.GREETING_BYTES, time.monotonic() + 60)
    both = wire.Challenges(wire.read_greeting(greeting), wire.new_challenge())
    connection.sendall(both.pack_proof(prefill.token) + part)
    connection.shutdown(socket.SHUT_WR)
    assert rest_of(connection) == b""
    assert source.copy([PieceCopy(0, prefill.piece(1), 0)]).good == (0,)


@pytest.mark.parametrize(
    "request_bytes",
    [
        (2**32 - 1).to_bytes(4, "little") + bytes(8),
        bytes(12),
        b"\x02\x00\x00\x00" + bytes(8) + bytes(wire.PIECE_BYTES),
        b"\x01",
    ],
    ids=["oversized", "empty", "truncated pieces", "truncated header"],
)
def test_a_request_that_makes_no_sense_ends_the_connection_only(
    prefill: Prefill, source: TcpSource, request_bytes: bytes
) -> None:
    connection = prefill.introduced()
    connection.sendall(request_bytes)
    connection.shutdown(socket.SHUT_WR)
    assert rest_of(connection) == b""
    assert source.copy([PieceCopy(0, prefill.piece(1), 0)]).good == (0,)


def test_a_request_that_stops_half_way_is_not_waited_for_for_ever(
    prefill: Prefill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp_server, "_ANSWER_LIMIT_S", 0.1)
    connection = prefill.introduced()
    connection.sendall(b"\x01\x00")
    assert rest_of(connection) == b""


# The end of an offer


def test_a_revoked_token_ends_its_connection_and_no_other(
    prefill: Prefill, source: TcpSource, destination: np.ndarray
) -> None:
    token = prefill.server.invite()
    other = TcpSource(TokenAddress(HOST, prefill.server.port, token), whole_target(destination))
    copies = [PieceCopy(0, prefill.piece(1), 0)]
    prefill.server.revoke(token)
    prefill.server.revoke(token)
    assert other.copy(copies).bad == (0,)
    with pytest.raises(Incompatible, match="self-test"):
        other.copy(copies)
    assert source.copy(copies).good == (0,)
    other.close()


def test_a_server_that_closed_is_named(prefill: Prefill, source: TcpSource) -> None:
    prefill.server.close()
    copies = [PieceCopy(0, prefill.piece(1), 0)]
    assert source.copy(copies).bad == (0,)
    with pytest.raises(Incompatible, match="can't be reached"):
        source.copy(copies)


# Peers that stop half-way, or are somebody else


@pytest.mark.thorough
def test_a_peer_that_stops_costs_its_request_and_bounded_time(destination: np.ndarray) -> None:
    stopped = threading.Event()
    peer = ScriptedPrefill([lambda connection: answer_and_stop(connection, stopped), answer_all])
    source = TcpSource(peer.address, whole_target(destination), limit_s=1)
    result = source.copy(TWO_COPIES)
    assert (result.good, result.bad) == ((), (4, 5))
    stopped.set()
    # The next copy has a connection of its own: the rest of the first was sent before, in vain.
    elsewhere = [replace(item, destination=item.destination + 2) for item in TWO_COPIES]
    assert source.copy(elsewhere).good == (4, 5)
    assert destination[1].sum() == 1000
    source.close()
    peer.close()


def test_requests_that_landed_before_a_peer_stops_are_kept(
    destination: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "MAX_PIECES", 1)
    peer = ScriptedPrefill([answer_one_request])
    source = TcpSource(peer.address, whole_target(destination))
    result = source.copy(TWO_COPIES)
    assert (result.good, result.bad) == ((4,), (5,))
    source.close()
    peer.close()


def test_a_copy_can_be_ended_from_outside(destination: np.ndarray) -> None:
    stopped = threading.Event()
    peer = ScriptedPrefill([lambda connection: answer_and_stop(connection, stopped)])
    source = TcpSource(peer.address, whole_target(destination), limit_s=3600)
    results = []
    copier = threading.Thread(target=lambda: results.append(source.copy(TWO_COPIES)))
    copier.start()
    while not destination[1, 999]:
        pass
    source.abort()
    copier.join()
    assert results[0].bad == (4, 5)
    assert source.copy(TWO_COPIES).bad == (4, 5)
    source.close()
    stopped.set()
    peer.close()


def test_a_connection_that_breaks_is_opened_again(destination: np.ndarray) -> None:
    peer = ScriptedPrefill([close_after_request, answer_all])
    source = TcpSource(peer.address, whole_target(destination))
    assert source.copy(TWO_COPIES).bad == (4, 5)
    assert source.copy(TWO_COPIES).good == (4, 5)
    source.close()
    peer.close()


@dataclass
class Hole:
    """Where P was: connections to it are neither taken nor refused."""

    listener: socket.socket
    waiting: list[socket.socket]

    def close(self) -> None:
        for connection in (*self.waiting, self.listener):
            connection.close()


@pytest.fixture
def hole(prefill: Prefill, source: TcpSource) -> Iterator[Hole]:
    """In place of the server that ``source`` is connected to."""
    prefill.server.close()
    # Linux drops who knocks while the queue of those to be accepted is full.
    listener = socket.create_server((HOST, prefill.server.port), backlog=0)
    opened = Hole(listener, [socket.create_connection((HOST, prefill.server.port))])
    assert source.copy([PieceCopy(0, prefill.piece(1), 0)]).bad == (0,)
    yield opened
    opened.close()


@pytest.mark.usefixtures("hole")
def test_connecting_again_counts_towards_the_time_of_a_copy(
    prefill: Prefill, source: TcpSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp_stream, "CONNECT_LIMIT_S", 3600)
    monkeypatch.setattr(source, "_limit_s", 0.1)
    with pytest.raises(Incompatible, match="nobody answered in time") as caught:
        source.copy([PieceCopy(0, prefill.piece(1), 0)])
    assert caught.value.reason == "TCP_UNREACHABLE"


@pytest.mark.thorough
def test_the_self_test_counts_towards_the_time_of_a_copy(
    destination: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp_stream, "CONNECT_LIMIT_S", 3600)
    peer = ScriptedPrefill([close_after_request, say_nothing])
    source = TcpSource(peer.address, whole_target(destination), limit_s=1)
    assert source.copy(TWO_COPIES).bad == (4, 5)
    with pytest.raises(Incompatible, match="did not end in time") as caught:
        source.copy(TWO_COPIES)
    assert caught.value.reason == "TCP_SELF_TEST_FAILED"
    source.close()
    peer.close()


@pytest.mark.usefixtures("hole")
def test_connecting_can_be_ended_from_outside(
    prefill: Prefill, source: TcpSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    connecting = threading.Event()

    def wait_and_tell(connection: socket.socket, deadline: float) -> None:
        connecting.set()
        wait_connected(connection, deadline)

    monkeypatch.setattr(tcp_stream, "CONNECT_LIMIT_S", 3600)
    monkeypatch.setattr(tcp_stream, "wait_connected", wait_and_tell)
    monkeypatch.setattr(source, "_limit_s", 3600)
    results = []
    copies = [PieceCopy(0, prefill.piece(1), 0)]
    copier = threading.Thread(target=lambda: results.append(source.copy(copies)))
    copier.start()
    connecting.wait()
    source.abort()
    copier.join()
    assert results[0].bad == (0,)


def test_a_host_name_stands_for_all_its_addresses(
    prefill: Prefill, destination: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = socket.create_server((HOST, 0))
    places = [(socket.AF_INET, nobody.getsockname()), (socket.AF_INET, (HOST, prefill.server.port))]
    nobody.close()
    monkeypatch.setattr(tcp_source, "resolve", lambda host, port: places)
    source = TcpSource(prefill.address, whole_target(destination))
    assert source.copy([PieceCopy(0, prefill.piece(1), 0)]).good == (0,)
    source.close()


def test_a_host_name_that_nobody_knows_is_named(
    destination: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_nothing(host: str, port: int) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(tcp_source, "resolve", find_nothing)
    with pytest.raises(Incompatible, match=r"p0:1 can't be reached: .*not known"):
        TcpSource(TokenAddress("p0", 1, b""), whole_target(destination))


@pytest.mark.parametrize(
    ("script", "named"),
    [
        (say_garbage, "not a prefill worker"),
        (know_no_token, "probe differs"),
        (close_at_once, "closed the connection|reset"),
    ],
    ids=["garbage", "wrong probe", "closed"],
)
def test_somebody_else_at_the_address_fails_the_self_test(
    destination: np.ndarray, script: Callable[[socket.socket], None], named: str
) -> None:
    peer = ScriptedPrefill([script])
    with pytest.raises(Incompatible, match=named) as caught:
        TcpSource(peer.address, whole_target(destination))
    assert caught.value.reason == "TCP_SELF_TEST_FAILED"
    peer.close()


def test_the_token_is_not_shown(prefill: Prefill) -> None:
    assert repr(prefill.token) not in f"{prefill.address!r} {prefill.address}"
