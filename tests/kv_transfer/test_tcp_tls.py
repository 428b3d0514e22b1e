"""KV blocks over TCP with mutual TLS: who is let in, and that parts arrive as in the clear."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from certificates import make_authority, make_worker
from equal_edge import announced, whole_target
from scripted_prefill import HOST

from core.errors import Incompatible, InvalidField
from core.handoff import Piece
from core.kv_layout import KVLayout
from core.lease_events import PieceCopy
from core.shards import ONE_RANK, ParallelShape
from core.tls_files import TlsFiles
from core.transfer_plan import make_plan
from kv_transfer import tcp_server, tcp_stream
from kv_transfer.regions import checksum_parts
from kv_transfer.tcp_server import TcpServer
from kv_transfer.tcp_source import TcpSource
from kv_transfer.token_listener import TokenAddress
from kv_transfer.transport import EdgeTarget
from wire.tls_contexts import server_context

# Larger than what is encrypted by one call.
LAYOUT = KVLayout(num_layers=5, num_kv_heads=4, head_dim=64, block_size=32, dtype="float32")
assert LAYOUT.block_bytes > 256 << 10
NUM_BLOCKS = 4


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    folder = tmp_path_factory.mktemp("ours")
    make_authority(folder)
    return make_worker(folder, "worker", folder)


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """Of another authority."""
    folder = tmp_path_factory.mktemp("strangers")
    make_authority(folder)
    return make_worker(folder, "stranger", folder)


@pytest.fixture
def blocks() -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (NUM_BLOCKS, LAYOUT.block_bytes), dtype=np.uint8)


@pytest.fixture
def server(ours: TlsFiles, blocks: np.ndarray) -> Iterator[TcpServer]:
    opened = TcpServer(HOST, blocks, np.zeros(NUM_BLOCKS, np.uint64), ours)
    yield opened
    opened.close()


@pytest.fixture
def address(server: TcpServer) -> TokenAddress:
    return TokenAddress(HOST, server.port, server.invite())


@pytest.fixture
def target() -> EdgeTarget:
    return whole_target(np.zeros((NUM_BLOCKS, LAYOUT.block_bytes), np.uint8))


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("shape", [ONE_RANK, ParallelShape(2), ParallelShape(1, 5)], ids=str)
def test_parts_arrive(
    address: TokenAddress, ours: TlsFiles, blocks: np.ndarray, shape: ParallelShape, streams: int
) -> None:
    plan = make_plan(LAYOUT, ONE_RANK, shape)[-1]
    landed = np.zeros((NUM_BLOCKS, plan.destination_layout.block_bytes), np.uint8)
    source = TcpSource(address, EdgeTarget(landed, plan, place=0), streams=streams, tls=ours)
    checksums = checksum_parts(blocks, range(NUM_BLOCKS), [plan.source_runs])
    copies = [PieceCopy(i, Piece(i, 0, tuple(of)), 3 - i) for i, of in enumerate(checksums)]
    assert source.copy(copies).good == (0, 1, 2, 3)
    arrived = checksum_parts(landed, range(NUM_BLOCKS), [plan.destination_runs])
    assert arrived == checksums[::-1]
    source.close()


def test_a_flipped_bit_is_found(
    address: TokenAddress, ours: TlsFiles, blocks: np.ndarray, target: EdgeTarget
) -> None:
    source = TcpSource(address, target, tls=ours)
    pieces = announced(blocks, range(NUM_BLOCKS), [0] * NUM_BLOCKS)
    blocks[1, 12345] ^= 1
    copies = [PieceCopy(i, piece, i) for i, piece in enumerate(pieces)]
    assert source.copy(copies).bad == (1,)
    source.close()


def test_a_stranger_is_not_let_in(
    address: TokenAddress, strangers: TlsFiles, target: EdgeTarget
) -> None:
    with pytest.raises(Incompatible, match=r"self-test with .* failed: .*certificate verify"):
        TcpSource(address, target, tls=strangers)


def test_a_stranger_who_trusts_us_is_not_let_in(
    address: TokenAddress, ours: TlsFiles, strangers: TlsFiles, target: EdgeTarget
) -> None:
    trusting = TlsFiles(ours.ca, strangers.cert, strangers.key)
    with pytest.raises(Incompatible, match=r"self-test with .* failed"):
        TcpSource(address, target, tls=trusting)


def test_nobody_is_served_in_the_clear(
    address: TokenAddress, target: EdgeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both wait for the other's first word.
    monkeypatch.setattr(tcp_stream, "CONNECT_LIMIT_S", 0.1)
    with pytest.raises(Incompatible, match="self-test"):
        TcpSource(address, target)


def test_a_server_in_the_clear_is_not_used(
    blocks: np.ndarray, ours: TlsFiles, target: EdgeTarget
) -> None:
    server = TcpServer(HOST, blocks, np.zeros(NUM_BLOCKS, np.uint64))
    with pytest.raises(Incompatible, match="self-test"):
        TcpSource(TokenAddress(HOST, server.port, server.invite()), target, tls=ours)
    server.close()


def test_a_wrong_token_is_refused(server: TcpServer, ours: TlsFiles, target: EdgeTarget) -> None:
    with pytest.raises(Incompatible, match="closed"):
        TcpSource(TokenAddress(HOST, server.port, b"?" * 16), target, tls=ours)


def test_a_copy_can_be_ended_from_outside(
    address: TokenAddress,
    ours: TlsFiles,
    blocks: np.ndarray,
    target: EdgeTarget,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, ended = threading.Event(), threading.Event()

    def never_answer(server: TcpServer, channel: object, runs: object) -> None:
        asked.set()
        ended.wait()
        raise ConnectionError("the test is over")

    monkeypatch.setattr(tcp_server.TcpServer, "_answer", never_answer)
    source = TcpSource(address, target, limit_s=3600, tls=ours)
    (piece,) = announced(blocks, [0], [0])
    results = []
    copier = threading.Thread(target=lambda: results.append(source.copy([PieceCopy(0, piece, 0)])))
    copier.start()
    asked.wait()
    source.abort()
    copier.join()
    assert results[0].bad == (0,)
    ended.set()
    source.close()


def test_a_copy_that_gets_no_answer_ends_in_time(
    address: TokenAddress,
    ours: TlsFiles,
    blocks: np.ndarray,
    target: EdgeTarget,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(tcp_server.TcpServer, "_answer", lambda server, channel, runs: ended.wait())
    source = TcpSource(address, target, limit_s=0.1, tls=ours)
    (piece,) = announced(blocks, [0], [0])
    assert source.copy([PieceCopy(0, piece, 0)]).bad == (0,)
    monkeypatch.undo()
    ended.set()
    source.close()


def test_peers_of_the_authority_that_are_no_members_are_refused(
    server: TcpServer, ours: TlsFiles, target: EdgeTarget
) -> None:
    """Such as an operator: the name in the certificate counts, on both sides."""
    folder = Path(ours.ca).parent
    operator = make_worker(folder, "operator", folder, "crossdock-operator")
    address = TokenAddress(HOST, server.port, server.invite())
    with pytest.raises(Incompatible, match="self-test"):
        TcpSource(address, target, tls=operator)
    with pytest.raises(Incompatible, match="Hostname mismatch"):
        TcpSource(address, target, tls=replace(ours, name="others"))


def test_files_that_cannot_be_used_are_named(ours: TlsFiles) -> None:
    wrong = {
        "tls.ca": TlsFiles(ours.key, ours.cert, ours.key),
        "tls.cert": TlsFiles(ours.ca, ours.cert, "nowhere"),
    }
    for field, files in wrong.items():
        with pytest.raises(InvalidField, match=f"{field} = .* can't be used") as refused:
            server_context(files.as_server)
        assert refused.value.field == field
