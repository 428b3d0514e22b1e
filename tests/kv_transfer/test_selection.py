"""Which transport an edge takes, and what is said when a faster one does not work."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from core.errors import Incompatible
from core.kv_layout import KVLayout
from core.kv_pool_layout import PoolLayout
from core.shards import ONE_RANK
from core.transfer_plan import make_plan
from crossdock.v1 import handoff_pb2 as pb
from kv_transfer.selection import open_source
from kv_transfer.shm import PoolExporter
from kv_transfer.tcp_server import TcpServer
from kv_transfer.transport import TRANSPORTS, EdgeTarget, allowed_transports

LAYOUT = KVLayout(num_layers=2, num_kv_heads=1, head_dim=8, block_size=4, dtype="float32")
POOL = PoolLayout(num_blocks=8, block_bytes=LAYOUT.block_bytes)
NONCE = 9


@pytest.fixture
def target() -> EdgeTarget:
    (plan,) = make_plan(LAYOUT, ONE_RANK, ONE_RANK)
    return EdgeTarget(np.zeros((4, LAYOUT.block_bytes), np.uint8), plan, place=0)


@pytest.fixture
def offered() -> Iterator[pb.RankOffer]:
    """All transports, all of them working."""
    fd = os.memfd_create("test-pool")
    os.ftruncate(fd, POOL.total_bytes)
    os.pwrite(fd, NONCE.to_bytes(8, "little"), POOL.nonce_offset)
    os.pwrite(fd, POOL.probe(NONCE), POOL.probe_offset)
    exporter = PoolExporter(fd)
    server = TcpServer(
        "127.0.0.1", np.zeros((8, LAYOUT.block_bytes), np.uint8), np.zeros(8, np.uint64)
    )
    yield pb.RankOffer(
        transports=TRANSPORTS,
        shm=pb.ShmOffer(socket_path=exporter.socket_path, nonce=NONCE, num_blocks=8),
        tcp=pb.TcpOffer(host="127.0.0.1", port=server.port, token=server.invite()),
    )
    server.close()
    exporter.close()
    os.close(fd)


def test_the_fastest_that_works_is_taken(offered: pb.RankOffer, target: EdgeTarget) -> None:
    chosen = open_source(offered, allowed_transports("auto"), target, "P0")
    assert (chosen.source.transport, chosen.detail) == ("shm", "")
    chosen.source.close()


@pytest.mark.parametrize("setting", TRANSPORTS)
def test_a_forced_transport_is_the_only_one(
    offered: pb.RankOffer, target: EdgeTarget, setting: str
) -> None:
    chosen = open_source(offered, allowed_transports(setting), target, "P0")
    assert (chosen.source.transport, chosen.detail) == (setting, "")
    chosen.source.close()


def test_tcp_is_taken_where_shared_memory_fails_and_the_reason_is_told(
    offered: pb.RankOffer, target: EdgeTarget
) -> None:
    # As it looks from another network namespace: nobody listens on that socket.
    offered.shm.socket_path = "@crossdock-nobody"
    chosen = open_source(offered, allowed_transports("auto"), target, "P0")
    assert chosen.source.transport == "tcp"
    assert chosen.detail.startswith("shm: the memory can't be reached")
    chosen.source.close()


def test_memory_with_another_nonce_fails_the_self_test_and_tcp_is_taken(
    offered: pb.RankOffer, target: EdgeTarget
) -> None:
    offered.shm.nonce += 1
    chosen = open_source(offered, allowed_transports("auto"), target, "P0")
    assert chosen.source.transport == "tcp"
    assert "self-test failed" in chosen.detail
    chosen.source.close()


def test_when_nothing_works_every_reason_is_told(offered: pb.RankOffer, target: EdgeTarget) -> None:
    offered.shm.socket_path = "@crossdock-nobody"
    offered.tcp.token = b"?" * 16
    with pytest.raises(Incompatible) as caught:
        open_source(offered, allowed_transports("auto"), target, "P0")
    assert caught.value.reason == "NO_COMMON_TRANSPORT"
    assert "shm: the memory can't be reached" in caught.value.message
    assert "tcp: self-test with 127.0.0.1" in caught.value.message


def test_a_forced_transport_that_fails_is_refused_although_another_would_work(
    offered: pb.RankOffer, target: EdgeTarget
) -> None:
    offered.shm.socket_path = "@crossdock-nobody"
    with pytest.raises(Incompatible, match="shm: the memory can't be reached"):
        open_source(offered, allowed_transports("shm"), target, "P0")


def test_memory_that_does_not_hold_the_known_block_fails_the_self_test(
    offered: pb.RankOffer, target: EdgeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PoolLayout, "probe", lambda layout, nonce: bytes(layout.block_bytes))
    with pytest.raises(Incompatible, match="shm: self-test failed"):
        open_source(offered, allowed_transports("shm"), target, "P0")


def test_two_workers_with_different_settings_are_refused_by_name(
    offered: pb.RankOffer, target: EdgeTarget
) -> None:
    del offered.transports[:]
    offered.transports.append("shm")
    with pytest.raises(Incompatible, match=r"tcp: not offered by P0 \(offered: shm\)"):
        open_source(offered, allowed_transports("tcp"), target, "P0")
