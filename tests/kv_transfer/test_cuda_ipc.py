"""KV blocks through mapped GPU memory: the real classes, with a GPU that is not there."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from fake_gpu import FakeDevice
from nccl_edges import LAYOUT, NUM_BLOCKS, pool_of

from core.errors import Incompatible
from core.handoff import Piece
from core.kv_pool_layout import PoolLayout
from core.lease_events import PieceCopy
from core.shards import ParallelShape
from core.transfer_plan import make_plan
from crossdock.v1 import handoff_pb2 as pb
from kernels.pack_blocks import pack_reference
from kv_transfer.cuda_ipc import CudaIpcSource, IpcExporter
from kv_transfer.cuda_memory import ExportedMemory
from kv_transfer.device import DevicePool, DeviceTarget, block_region
from kv_transfer.selection import open_source
from kv_transfer.transport import DEVICE_TRANSPORTS, TRANSPORTS, EdgeTarget, allowed_transports

NONCE = 0x1234_5678_9ABC_DEF0


class OneProcess:
    """In the place of CUDA IPC: handles are the numbers of tensors."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []
        self.open_maps = 0

    def export(self, tensor: torch.Tensor) -> ExportedMemory:
        self.tensors.append(tensor.view(torch.uint8).reshape(-1))
        handle = (len(self.tensors) - 1).to_bytes(64, "little")
        return ExportedMemory(handle, 0, self.tensors[-1].numel())

    def open(self, exported: ExportedMemory) -> Mapped:
        self.open_maps += 1
        return Mapped(self, self.tensors[int.from_bytes(exported.handle, "little")])


class Mapped:
    def __init__(self, memory: OneProcess, tensor: torch.Tensor) -> None:
        self._memory = memory
        self.bytes = tensor

    def close(self) -> None:
        self._memory.open_maps -= 1


class Edge:
    """From one of two tensor ranks on P to one of two stages on D."""

    def __init__(self) -> None:
        self.plan = make_plan(LAYOUT, ParallelShape(2, 1), ParallelShape(1, 2))[1]
        self.memory, self.gpu = OneProcess(), FakeDevice()
        fd, generations = host_memory()
        pool = pool_of(self.plan.source_layout, 1)
        self.pool = DevicePool(pool, generations, NONCE, fd, FakeDevice())
        self.exporter = IpcExporter(self.pool, self.memory)
        self.destination = torch.zeros_like(pool_of(self.plan.destination_layout, 0))

    def open(self) -> CudaIpcSource:
        target = DeviceTarget(self.destination, self.gpu, self.plan, place=1)
        return CudaIpcSource(self.exporter.address, target, self.memory)

    def announce(self, *block_ids: int) -> list[PieceCopy]:
        sums = self.pool.describe(block_ids, [self.plan.source_region])
        return [
            PieceCopy(i, Piece(b, int(self.pool.generations[b]), (0, *sums[i])), NUM_BLOCKS - 1 - b)
            for i, b in enumerate(block_ids)
        ]

    def close(self) -> None:
        self.exporter.close()
        os.close(self.pool.fd)


def host_memory() -> tuple[int, np.ndarray]:
    layout = PoolLayout(NUM_BLOCKS, 0)
    fd = os.memfd_create("test-generations")
    os.ftruncate(fd, layout.total_bytes)
    memory = mmap.mmap(fd, layout.total_bytes)
    np.frombuffer(memory, np.uint64, 1, layout.nonce_offset)[0] = NONCE
    generations = np.frombuffer(memory, np.uint64, NUM_BLOCKS, layout.generations_offset)
    generations[:] = np.arange(NUM_BLOCKS)
    return fd, generations


@pytest.fixture
def edge() -> Iterator[Edge]:
    edge = Edge()
    yield edge
    edge.close()
    assert edge.memory.open_maps == 0


def test_a_part_arrives_and_is_verified(edge: Edge) -> None:
    source = edge.open()
    assert source.copy(edge.announce(5, 2)).good == (0, 1)
    sent = pack_reference(
        edge.pool.tensor, torch.tensor([5, 2]), block_region(edge.plan.source_region)
    )
    arrived = pack_reference(
        edge.destination, torch.tensor([2, 5]), block_region(edge.plan.destination_region)
    )
    assert torch.equal(sent, arrived)
    source.close()


def test_the_copy_waits_for_computing_and_computing_for_the_copy(edge: Edge) -> None:
    source = edge.open()
    edge.gpu.log.clear()
    source.copy(edge.announce(5))
    assert edge.gpu.log == ["transfer waits for compute", "compute waits for transfer"]
    source.close()


def test_a_block_that_moved_on_a_flipped_bit_and_an_id_outside_are_refused(edge: Edge) -> None:
    source = edge.open()
    moved, flipped, good = edge.announce(5, 2, 6)
    edge.pool.generations[5] += 1
    region = block_region(edge.plan.source_region)
    region.of(edge.pool.tensor)[2].view(torch.uint8)[0, 0, 0, 0, 0] ^= 1
    outside = PieceCopy(7, Piece(99, 0, (0, 0)), 0)
    result = source.copy([moved, flipped, good, outside])
    assert (result.good, result.bad) == ((2,), (0, 1, 7))
    source.close()


def test_other_memory_fails_the_self_test(edge: Edge) -> None:
    edge.memory.tensors[1] = edge.memory.tensors[1].clone()
    edge.memory.tensors[1][:] = 0
    with pytest.raises(Incompatible, match="self-test"):
        edge.open()


def test_memory_that_cannot_be_mapped_is_named(edge: Edge) -> None:
    del edge.memory.tensors[1]
    edge.memory.open = refuse  # type: ignore[method-assign]
    with pytest.raises(Incompatible, match="can't be mapped: cudaErrorInvalidDevice"):
        edge.open()


def refuse(exported: ExportedMemory) -> Mapped:
    raise RuntimeError("cudaErrorInvalidDevice")


def test_after_an_abort_nothing_is_copied(edge: Edge) -> None:
    source = edge.open()
    source.abort()
    assert source.copy(edge.announce(5)).bad == (0,)
    assert not edge.destination.view(torch.uint8).any()
    source.close()


def test_a_pool_in_the_wrong_memory_is_named_as_the_reason(edge: Edge) -> None:
    on_gpu = DeviceTarget(edge.destination, edge.gpu, edge.plan, place=1)
    in_host = EdgeTarget(np.zeros((1, 8), np.uint8), edge.plan, place=1)
    offered = pb.RankOffer(transports=[*TRANSPORTS, *DEVICE_TRANSPORTS])
    with pytest.raises(Incompatible, match="shm: the KV pool of this worker is on a GPU"):
        open_source(offered, TRANSPORTS, on_gpu, "P0")
    with pytest.raises(Incompatible, match="nccl: the KV pool of this worker is in host memory"):
        open_source(offered, DEVICE_TRANSPORTS, in_host, "P0")


def test_auto_means_what_fits_the_memory_of_the_pool() -> None:
    assert allowed_transports("auto") == TRANSPORTS
    assert allowed_transports("auto", on_device=True) == DEVICE_TRANSPORTS
    assert allowed_transports("nccl", on_device=True) == ("nccl",)
