"""KV blocks between two processes on one machine's GPUs, or on one GPU: D maps P's pool and copies.

Covers: what P exports (its pool, a known block, the host memory with the generations), the
self-test, copying on a stream of D's own, generations and checksums. A part goes through a little
staging on D's GPU, so that both sides may hold different layers and heads. P does nothing while D
copies. Does not cover: mapping GPU memory (``kv_transfer.cuda_memory``), when to copy what.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from core.errors import Incompatible
from core.kv_pool_layout import PoolLayout
from core.lease_events import PieceCopy
from kernels.checksum_blocks import checksum_blocks
from kernels.pack_blocks import pack_blocks, unpack_blocks
from kv_transfer.cuda_memory import ExportedMemory, IpcMemory, MappedMemory, open_all
from kv_transfer.device import DevicePool, DeviceTarget, block_region, unsigned
from kv_transfer.shm import PoolExporter, map_read_only, receive_descriptor
from kv_transfer.staging import FAILURES, Staging
from kv_transfer.transport import CUDA_IPC, CopyResult


@dataclass(frozen=True, slots=True)
class IpcAddress:
    """What P offers. ``socket_path`` leads to the host memory with generations and ``nonce``;
    ``probe`` is one block of known bytes (`PoolLayout.probe`)."""

    socket_path: str
    nonce: int
    num_blocks: int
    pool: ExportedMemory
    probe: ExportedMemory


class IpcExporter:
    """P's side. Close it after all that read the pool, before the pool is given up."""

    def __init__(self, pool: DevicePool, memory: IpcMemory) -> None:
        """Raises ``RuntimeError`` if this GPU's memory can't be exported."""
        self._nonce = pool.nonce
        self._num_blocks = len(pool.tensor)
        pool.device.use()
        block_bytes = pool.tensor[0].numel() * pool.tensor.element_size()
        self._probe = pool.device.empty(block_bytes, dtype=torch.uint8)
        known = bytearray(PoolLayout(self._num_blocks, block_bytes).probe(pool.nonce))
        self._probe.copy_(torch.frombuffer(known, dtype=torch.uint8))
        self._exported = memory.export(pool.tensor), memory.export(self._probe)
        self._generations = PoolExporter(pool.fd)

    @property
    def address(self) -> IpcAddress:
        path = self._generations.socket_path
        return IpcAddress(path, self._nonce, self._num_blocks, *self._exported)

    def close(self) -> None:
        self._generations.close()


class CudaIpcSource:
    """D's side: the pool of one rank of P, mapped."""

    transport = CUDA_IPC

    def __init__(self, address: IpcAddress, target: DeviceTarget, memory: IpcMemory) -> None:
        """Maps the pool and tests the way. Raises `Incompatible` if it does not work."""
        self._target = target
        self._num_blocks = address.num_blocks
        self._aborted = False
        self._mapped: list[MappedMemory] = []
        self._copying = threading.Lock()
        self._map = _map_generations(address)
        try:
            self._open(address, memory)
        except FAILURES as error:
            self._map.close()
            raise Incompatible(
                f"the memory of the prefill worker's GPU can't be mapped: {error}",
                reason="CUDA_IPC_UNREACHABLE",
            ) from error
        if not self._passes_test(address):
            self.close()
            raise Incompatible(
                "self-test failed: this memory is not the prefill worker's pool",
                reason="CUDA_IPC_SELF_TEST_FAILED",
            )

    def copy(self, copies: Sequence[PieceCopy]) -> CopyResult:
        """As in `PieceSource`. What the GPU refuses costs its batch."""
        inside = [item for item in copies if 0 <= item.piece.block_id < self._num_blocks]
        rows, good = len(self._staging.ids), set()
        for first in range(0, len(inside), rows):
            with self._copying:
                if self._aborted:
                    break
                good.update(self._copy_batch(inside[first : first + rows]))
        return CopyResult(
            tuple(item.index for item in copies if item.index in good),
            tuple(item.index for item in copies if item.index not in good),
        )

    def abort(self) -> None:
        self._aborted = True

    def close(self) -> None:
        self._aborted = True
        with self._copying:
            if self._mapped:
                self._target.device.use()
                self._target.device.synchronize(self._stream)
            self._source = torch.empty(0)
            for mapped in self._mapped:
                mapped.close()
            self._mapped = []
            self._generations = np.empty(0, np.uint64)
            self._map.close()

    def _open(self, address: IpcAddress, memory: IpcMemory) -> None:
        target, layout = self._target, self._target.plan.source_layout
        target.device.use()
        self._stream = target.device.new_stream()
        self._staging = Staging(target.device, self._stream, target.tensor, target.region)
        self._mapped = open_all(memory, (address.pool, address.probe))
        shape = (-1, *layout.block_shape)
        pool, probe = (mapped.bytes.view(target.tensor.dtype) for mapped in self._mapped)
        self._source, self._probe = pool.view(shape), probe.view(shape)
        self._generations = np.frombuffer(self._map, np.uint64, address.num_blocks)

    def _passes_test(self, address: IpcAddress) -> bool:
        """The nonce is there, and a known block arrives over this edge as blocks will."""
        plan = self._target.plan
        layout = PoolLayout(address.num_blocks, 0)
        seen = int(np.frombuffer(self._map, np.uint64, 1, layout.nonce_offset)[0])
        whole = PoolLayout(address.num_blocks, plan.source_layout.block_bytes)
        known = np.frombuffer(whole.probe(address.nonce), np.uint8)
        runs = [known[start : start + length] for start, length in plan.source_runs.tolist()]
        with self._target.device.on(self._stream):
            self._pack(self._probe, [0])
            arrived = self._staging.rows[0].cpu().numpy()
        del self._probe
        return seen == address.nonce and np.array_equal(arrived, np.concatenate(runs))

    def _copy_batch(self, copies: Sequence[PieceCopy]) -> list[int]:
        """Prompt block indices of those that landed and are intact; the GPU is done with them."""
        target, device = self._target, self._target.device
        device.use()
        # Steps that are under way may still read what these blocks held before.
        device.wait(self._stream, device.record_compute())
        with device.on(self._stream):
            self._pack(self._source, [item.piece.block_id for item in copies])
            ids = self._staging.take_ids([item.destination for item in copies])
            unpack_blocks(self._staging.rows[: len(copies)], target.tensor, ids, target.region)
            sums = checksum_blocks(target.tensor, ids, target.region)
            device.compute_waits(device.record(self._stream))
            checksums = unsigned(sums)
        # Read after the copy: generations only grow, so this covers the time before it, too.
        return [
            item.index
            for item, checksum in zip(copies, checksums, strict=True)
            if int(self._generations[item.piece.block_id]) == item.piece.generation
            and target.matches(item.piece, checksum)
        ]

    def _pack(self, source: torch.Tensor, block_ids: Sequence[int]) -> None:
        region = block_region(self._target.plan.source_region)
        ids = self._staging.take_ids(list(block_ids))
        pack_blocks(source, ids, region, self._staging.rows[: len(block_ids)])


def _map_generations(address: IpcAddress) -> mmap.mmap:
    fd = receive_descriptor(address.socket_path)
    try:
        return map_read_only(fd, PoolLayout(address.num_blocks, 0).total_bytes)
    finally:
        os.close(fd)
