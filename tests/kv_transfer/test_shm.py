"""KV blocks through shared memory between two real processes."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from equal_edge import announced, whole_target

from core.errors import Incompatible
from core.handoff import Piece
from core.kv_pool_layout import PoolLayout
from core.lease_events import PieceCopy
from kv_transfer import shm
from kv_transfer.regions import PartCopier
from kv_transfer.shm import PoolExporter, SharedMemorySource

LAYOUT = PoolLayout(num_blocks=8, block_bytes=5000)
NONCE = 0x1234_5678_9ABC_DEF0


@dataclass
class ExportedPool:
    """A prefill worker's pool, exported as the worker does it."""

    blocks: np.ndarray
    generations: np.ndarray
    exporter: PoolExporter

    def pieces(self, *block_ids: int) -> tuple[Piece, ...]:
        return announced(self.blocks, block_ids, self.generations[list(block_ids)].tolist())

    def source(self, destination: np.ndarray, nonce: int = NONCE) -> SharedMemorySource:
        return SharedMemorySource(
            self.exporter.socket_path, nonce, LAYOUT, whole_target(destination)
        )


@pytest.fixture
def exported() -> Iterator[ExportedPool]:
    fd = os.memfd_create("test-pool")
    os.ftruncate(fd, LAYOUT.total_bytes)
    memory = mmap.mmap(fd, LAYOUT.total_bytes)
    blocks = np.frombuffer(memory, np.uint8, 8 * 5000).reshape(8, 5000)
    generations = np.frombuffer(memory, np.uint64, 8, LAYOUT.generations_offset)
    np.frombuffer(memory, np.uint64, 1, LAYOUT.nonce_offset)[0] = NONCE
    memory[LAYOUT.probe_offset : LAYOUT.probe_offset + 5000] = LAYOUT.probe(NONCE)
    blocks[:] = np.random.default_rng(0).integers(0, 256, blocks.shape, dtype=np.uint8)
    exporter = PoolExporter(fd)
    yield ExportedPool(blocks, generations, exporter)
    exporter.close()
    os.close(fd)


@pytest.fixture
def destination() -> np.ndarray:
    return np.zeros((4, 5000), np.uint8)


def test_blocks_arrive_and_are_verified(exported: ExportedPool, destination: np.ndarray) -> None:
    source = exported.source(destination)
    first, second = exported.pieces(5, 2)
    result = source.copy([PieceCopy(0, first, 3), PieceCopy(1, second, 0)])
    assert result.good == (0, 1)
    assert (destination[3] == exported.blocks[5]).all()
    assert (destination[0] == exported.blocks[2]).all()
    source.close()


def test_a_block_that_was_given_to_someone_else_is_refused(
    exported: ExportedPool, destination: np.ndarray
) -> None:
    source = exported.source(destination)
    (piece,) = exported.pieces(5)
    exported.generations[5] += 1
    assert source.copy([PieceCopy(7, piece, 0)]).bad == (7,)
    source.close()


def test_one_flipped_bit_is_found(exported: ExportedPool, destination: np.ndarray) -> None:
    source = exported.source(destination)
    (piece,) = exported.pieces(5)
    exported.blocks[5, 4321] ^= 1
    assert source.copy([PieceCopy(0, piece, 0)]).bad == (0,)
    source.close()


def test_a_block_id_outside_the_pool_is_refused(
    exported: ExportedPool, destination: np.ndarray
) -> None:
    source = exported.source(destination)
    assert source.copy([PieceCopy(0, Piece(8, 0, (0,)), 0)]).bad == (0,)
    source.close()


def test_memory_that_is_not_the_offered_one_fails_the_self_test(
    exported: ExportedPool, destination: np.ndarray
) -> None:
    with pytest.raises(Incompatible, match="self-test"):
        exported.source(destination, nonce=NONCE + 1)


def test_a_pool_of_another_size_is_refused(exported: ExportedPool, destination: np.ndarray) -> None:
    with pytest.raises(Incompatible, match="bytes, expected"):
        SharedMemorySource(
            exported.exporter.socket_path, NONCE, PoolLayout(9, 5000), whole_target(destination)
        )


def test_a_gone_exporter_is_named(destination: np.ndarray) -> None:
    with pytest.raises(Incompatible, match="can't be reached"):
        SharedMemorySource("@crossdock-nobody", NONCE, LAYOUT, whole_target(destination))


def test_two_threads_share_a_copy(exported: ExportedPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shm, "_BYTES_PER_THREAD", 1)
    both = threading.Barrier(2)
    copy = PartCopier.copy

    def copy_together(copier: PartCopier, source: int, destination: int) -> None:
        both.wait(60)
        copy(copier, source, destination)

    destination = np.zeros((8, 5000), np.uint8)
    source = SharedMemorySource(
        exported.exporter.socket_path, NONCE, LAYOUT, whole_target(destination), threads=2
    )
    monkeypatch.setattr(PartCopier, "copy", copy_together)
    exported.generations[3] += 1
    pieces = announced(exported.blocks, range(8), [0] * 8)
    result = source.copy([PieceCopy(i, piece, 7 - i) for i, piece in enumerate(pieces)])
    assert (result.good, result.bad) == ((0, 1, 2, 4, 5, 6, 7), (3,))
    assert (destination == exported.blocks[::-1]).all()
    source.close()


def test_an_aborted_source_copies_nothing_any_more(
    exported: ExportedPool, destination: np.ndarray
) -> None:
    source = exported.source(destination)
    (piece,) = exported.pieces(5)
    source.abort()
    assert source.copy([PieceCopy(0, piece, 0)]).bad == (0,)
    source.close()
    source.close()
    assert source.copy([PieceCopy(0, piece, 0)]).bad == (0,)
    assert not destination.any()


READER = """
import sys, numpy as np
sys.path.append(sys.argv[4])
from equal_edge import whole_target
from core.handoff import Piece
from core.kv_pool_layout import PoolLayout
from core.lease_events import PieceCopy
from kv_transfer import shm
from kv_transfer.regions import PartCopier
from kv_transfer.shm import SharedMemorySource
path, nonce, checksum = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
destination = np.zeros((1, 5000), np.uint8)
source = SharedMemorySource(path, nonce, PoolLayout(8, 5000), whole_target(destination))
print(source.copy([PieceCopy(0, Piece(6, 0, (checksum,)), 0)]).good, int(destination.sum()))
try:
    source._map[0] = 1
except TypeError as error:
    print("read-only:", error)
"""


@pytest.mark.processes
def test_another_process_reads_the_same_bytes_and_cannot_write(exported: ExportedPool) -> None:
    (piece,) = exported.pieces(6)
    answer = subprocess.run(
        [
            sys.executable,
            "-c",
            READER,
            exported.exporter.socket_path,
            str(NONCE),
            str(piece.checksums[0]),
            str(Path(__file__).parent),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    copied, read_only = answer.stdout.splitlines()
    assert copied == f"(0,) {int(exported.blocks[6].sum())}"
    assert read_only.startswith("read-only")
