"""Blocks of any split land in any other, bit for bit, over each transport."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amounts import examples
from core.handoff import Piece
from core.kv_layout import KVLayout
from core.kv_pool_layout import PoolLayout
from core.lease_events import PieceCopy
from core.shards import ParallelShape, kv_shards
from core.transfer_plan import EdgePlan, edges_from, make_plan
from kv_transfer.fake import FakePool, FakeSource
from kv_transfer.regions import checksum_parts
from kv_transfer.shm import PoolExporter, SharedMemorySource
from kv_transfer.tcp_server import TcpServer
from kv_transfer.tcp_source import TcpSource
from kv_transfer.token_listener import TokenAddress
from kv_transfer.transport import EdgeTarget, PieceSource

MODEL = KVLayout(num_layers=6, num_kv_heads=8, head_dim=8, block_size=4, dtype="float32")
NUM_BLOCKS = 5
HOST = "127.0.0.1"
NONCE = 77
TENSOR_SHAPES = [ParallelShape(tensor) for tensor in (1, 2, 4, 8)]
MIXED_SHAPES = [ParallelShape(*shape) for shape in ((1, 1), (2, 1), (1, 2), (4, 3), (16, 1))]


def split(model: np.ndarray, shape: ParallelShape) -> list[np.ndarray]:
    """The pool of each rank, [num_blocks, block_bytes], cut out of blocks of the whole model."""
    cut = model.reshape(NUM_BLOCKS, *MODEL.block_shape[:4], -1)
    pools = []
    for shard in kv_shards(MODEL, shape):
        mine = cut[:, shard.layers.start : shard.layers.stop]
        pools.append(mine[:, :, :, shard.heads.start : shard.heads.stop].reshape(NUM_BLOCKS, -1))
    return [np.ascontiguousarray(pool) for pool in pools]


@dataclass(frozen=True)
class Rank:
    """One rank of P: its pool, and the way to it."""

    blocks: np.ndarray
    open: Callable[[EdgeTarget], PieceSource]


@contextlib.contextmanager
def shm_rank(blocks: np.ndarray) -> Iterator[Rank]:
    layout = PoolLayout(*blocks.shape)
    fd = os.memfd_create("test-pool")
    os.ftruncate(fd, layout.total_bytes)
    memory = mmap.mmap(fd, layout.total_bytes)
    shared = np.frombuffer(memory, np.uint8, blocks.size).reshape(blocks.shape)
    shared[:] = blocks
    os.pwrite(fd, NONCE.to_bytes(8, "little"), layout.nonce_offset)
    os.pwrite(fd, layout.probe(NONCE), layout.probe_offset)
    exporter = PoolExporter(fd)
    yield Rank(
        shared, lambda target: SharedMemorySource(exporter.socket_path, NONCE, layout, target)
    )
    exporter.close()
    os.close(fd)


@contextlib.contextmanager
def tcp_rank(blocks: np.ndarray) -> Iterator[Rank]:
    server = TcpServer(HOST, blocks, np.zeros(NUM_BLOCKS, np.uint64))
    address = TokenAddress(HOST, server.port, server.invite())
    yield Rank(blocks, lambda target: TcpSource(address, target))
    server.close()


@contextlib.contextmanager
def fake_rank(blocks: np.ndarray) -> Iterator[Rank]:
    pool = FakePool(f"P{id(blocks)}", blocks, np.zeros(NUM_BLOCKS, np.uint64))
    yield Rank(blocks, lambda target: FakeSource(pool.name, target))
    pool.close()


TRANSPORTS = {"shm": shm_rank, "tcp": tcp_rank, "fake": fake_rank}


def describe(plan: tuple[EdgePlan, ...], ranks: list[Rank]) -> list[Piece]:
    """What P announces: of each block, the checksums of all edges in the plan's order."""
    checksums = np.zeros((NUM_BLOCKS, len(plan)), np.uint64)
    for number, rank in enumerate(ranks):
        places = edges_from(plan, number)
        runs = [plan[place].source_runs for place in places]
        checksums[:, places] = checksum_parts(rank.blocks, range(NUM_BLOCKS), runs)
    return [Piece(block, 0, tuple(of)) for block, of in enumerate(checksums.tolist())]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [*itertools.product(TENSOR_SHAPES, repeat=2), *itertools.product(MIXED_SHAPES, repeat=2)],
    ids=str,
)
def test_each_split_becomes_each_other(
    transport: str, ours: ParallelShape, theirs: ParallelShape
) -> None:
    generator = np.random.default_rng(0)
    model = generator.integers(0, 256, (NUM_BLOCKS, MODEL.block_bytes), dtype=np.uint8)
    plan = make_plan(MODEL, ours, theirs)
    order = [3, 0, 4, 1, 2]
    wanted = split(model[order], theirs)
    landed = [np.zeros_like(pool) for pool in wanted]
    with contextlib.ExitStack() as stack:
        ranks = [stack.enter_context(TRANSPORTS[transport](pool)) for pool in split(model, ours)]
        pieces = describe(plan, ranks)
        copies = [PieceCopy(place, pieces[block], place) for place, block in enumerate(order)]
        for place, edge in enumerate(plan):
            target = EdgeTarget(landed[edge.destination], edge, place)
            source = ranks[edge.source].open(target)
            assert source.copy(copies).good == (0, 1, 2, 3, 4)
            source.close()
    assert all((a == b).all() for a, b in zip(landed, wanted, strict=True))


@pytest.fixture(params=TRANSPORTS)
def part_of_heads(request: pytest.FixtureRequest) -> Iterator[tuple[Rank, EdgeTarget, PieceSource]]:
    """An edge that carries the second half of the heads of each layer."""
    generator = np.random.default_rng(0)
    model = generator.integers(0, 256, (NUM_BLOCKS, MODEL.block_bytes), dtype=np.uint8)
    plan = make_plan(MODEL, ParallelShape(1), ParallelShape(2))
    blocks = np.zeros((NUM_BLOCKS, MODEL.block_bytes // 2), np.uint8)
    with TRANSPORTS[request.param](model) as rank:
        target = EdgeTarget(blocks, plan[1], place=1)
        source = rank.open(target)
        yield rank, target, source
        source.close()


def copies_of(rank: Rank, target: EdgeTarget) -> list[PieceCopy]:
    runs = [target.plan.source_runs]
    checksums = checksum_parts(rank.blocks, range(NUM_BLOCKS), runs)
    return [PieceCopy(i, Piece(i, 0, (0, of[0])), i) for i, of in enumerate(checksums)]


@settings(max_examples=examples(20), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damaged=st.integers(0, MODEL.block_bytes - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_matters_to_the_edges_that_carry_it(
    part_of_heads: tuple[Rank, EdgeTarget, PieceSource], damaged: int, bit: int
) -> None:
    rank, target, source = part_of_heads
    copies = copies_of(rank, target)
    rank.blocks[2, damaged] ^= 1 << bit
    carried = any(
        start <= damaged < start + length for start, length in target.plan.source_runs.tolist()
    )
    assert source.copy(copies).bad == ((2,) if carried else ())
    rank.blocks[2, damaged] ^= 1 << bit


def test_a_piece_without_a_checksum_for_this_edge_is_bad(
    part_of_heads: tuple[Rank, EdgeTarget, PieceSource],
) -> None:
    rank, target, source = part_of_heads
    item = copies_of(rank, target)[0]
    lying = PieceCopy(0, Piece(0, 0, item.piece.checksums[1:]), 0)
    assert source.copy([lying]).bad == (0,)
