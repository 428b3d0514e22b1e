"""Which transport an edge takes, and what is said when a faster one does not work."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from core.errors import Incompatible
from core.kv_layout import KVLayout
from core.kv_pool_layout import PoolLayout
from crossdock.v1 import handoff_pb2 as pb
from kv_transfer.handshake import WorkerIdentity, hello
from kv_transfer.offers import PoolOffers
from kv_transfer.selection import open_source
from kv_transfer.transport import TRANSPORTS, HostPool, allowed_transports

LAYOUT = KVLayout(num_layers=2, num_kv_heads=1, head_dim=8, block_size=4, dtype="float32")
POOL = PoolLayout(num_blocks=8, block_bytes=LAYOUT.block_bytes)
PREFILL = WorkerIdentity("P0", epoch=22, model_hash=5, layout=LAYOUT)


@pytest.fixture
def destination() -> np.ndarray:
    return np.zeros((4, LAYOUT.block_bytes), np.uint8)


@pytest.fixture
def pool() -> Iterator[HostPool]:
    fd = os.memfd_create("test-pool")
    os.ftruncate(fd, POOL.total_bytes)
    os.pwrite(fd, (9).to_bytes(8, "little"), POOL.nonce_offset)
    blocks = np.zeros((8, LAYOUT.block_bytes), np.uint8)
    yield HostPool(fd, 9, blocks, np.zeros(8, np.uint64))
    os.close(fd)


@pytest.fixture
def offered(pool: HostPool) -> Iterator[pb.Hello]:
    """P's first message with all transports, all of them working."""
    offers = PoolOffers(pool, TRANSPORTS, "127.0.0.1")
    yield hello(PREFILL, 11, offers.new_offer())
    offers.close()


def test_the_fastest_that_works_is_taken(offered: pb.Hello, destination: np.ndarray) -> None:
    chosen = open_source(offered, allowed_transports("auto"), destination)
    assert (chosen.source.transport, chosen.detail) == ("shm", "")
    chosen.source.close()


@pytest.mark.parametrize("setting", TRANSPORTS)
def test_a_forced_transport_is_the_only_one(
    offered: pb.Hello, destination: np.ndarray, setting: str
) -> None:
    chosen = open_source(offered, allowed_transports(setting), destination)
    assert (chosen.source.transport, chosen.detail) == (setting, "")
    chosen.source.close()


def test_tcp_is_taken_where_shared_memory_fails_and_the_reason_is_told(
    offered: pb.Hello, destination: np.ndarray
) -> None:
    # As it looks from another network namespace: nobody listens on that socket.
    offered.shm.socket_path = "@crossdock-nobody"
    chosen = open_source(offered, allowed_transports("auto"), destination)
    assert chosen.source.transport == "tcp"
    assert chosen.detail.startswith("shm: the memory can't be reached")
    chosen.source.close()


def test_memory_with_another_nonce_fails_the_self_test_and_tcp_is_taken(
    offered: pb.Hello, destination: np.ndarray
) -> None:
    offered.shm.nonce += 1
    chosen = open_source(offered, allowed_transports("auto"), destination)
    assert chosen.source.transport == "tcp"
    assert "self-test failed" in chosen.detail
    chosen.source.close()


def test_when_nothing_works_every_reason_is_told(
    offered: pb.Hello, destination: np.ndarray
) -> None:
    offered.shm.socket_path = "@crossdock-nobody"
    offered.tcp.token = b"?" * 16
    with pytest.raises(Incompatible) as caught:
        open_source(offered, allowed_transports("auto"), destination)
    assert caught.value.reason == "NO_COMMON_TRANSPORT"
    assert "shm: the memory can't be reached" in caught.value.message
    assert "tcp: self-test with 127.0.0.1" in caught.value.message


def test_a_forced_transport_that_fails_is_refused_although_another_would_work(
    offered: pb.Hello, destination: np.ndarray
) -> None:
    offered.shm.socket_path = "@crossdock-nobody"
    with pytest.raises(Incompatible, match="shm: the memory can't be reached"):
        open_source(offered, allowed_transports("shm"), destination)


def test_two_workers_with_different_settings_are_refused_by_name(
    pool: HostPool, destination: np.ndarray
) -> None:
    offers = PoolOffers(pool, allowed_transports("shm"), "127.0.0.1")
    only_shm = hello(PREFILL, 11, offers.new_offer())
    with pytest.raises(Incompatible, match=r"tcp: not offered by P0 \(offered: shm\)"):
        open_source(only_shm, allowed_transports("tcp"), destination)
    offers.close()
