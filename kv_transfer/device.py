"""What KV transfers need of a GPU, as a protocol, so that their order can be tested without one.

Covers: streams and events, staging memory, a pool in GPU memory. The real thing is
``kv_transfer.cuda_device``. Does not cover: the kernels (``kernels``), moving the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from core.handoff import Piece
from core.shards import Region
from core.transfer_plan import EdgePlan
from kernels.block_region import BlockRegion
from kernels.checksum_blocks import checksum_blocks
from kv_transfer.transport import Generations

# A device's own kinds of these; nobody else looks into them.
Stream = Any
Event = Any


class Device(Protocol):
    """One GPU. All of it may be called from any thread that has called `use`."""

    def use(self) -> None:
        """Makes this GPU the calling thread's own."""

    def new_stream(self) -> Stream:
        """A stream that nothing waits for unless it is told to."""

    def handle(self, stream: Stream) -> int:
        """The stream as libraries take it."""

    def on(self, stream: Stream) -> AbstractContextManager[object]:
        """Kernels launched within go to this stream."""

    def record(self, stream: Stream) -> Event:
        """An event that is over when all that is enqueued on ``stream`` so far is over."""

    def record_compute(self) -> Event:
        """The same for the stream on which the engine computes."""

    def wait(self, stream: Stream, event: Event) -> None:
        """What is enqueued on ``stream`` from now on begins after ``event``. Returns at once."""

    def compute_waits(self, event: Event) -> None:
        """The same for the stream on which the engine computes."""

    def is_over(self, event: Event) -> bool:
        """Returns at once. Raises what went wrong on the GPU."""

    def synchronize(self, stream: Stream) -> None:
        """Returns when all that is enqueued on ``stream`` is over."""

    def empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Memory on this GPU, aligned to at least 16 bytes."""


@dataclass(slots=True, eq=False)
class DevicePool:
    """The pool of one rank in GPU memory, and how peers reach it.

    ``tensor``: [blocks, layers, 2, heads, tokens, dim], contiguous. ``generations``: uint64
    [blocks] in host memory. ``fd``: descriptor of the host memory that holds ``generations`` and
    ``nonce``, laid out by ``core.kv_pool_layout`` for blocks of 0 bytes.
    """

    tensor: torch.Tensor
    generations: Generations
    nonce: int
    fd: int
    device: Device
    # What was last described is over when this is: packing waits for it, not for what the engine
    # has started since.
    described: Event = None
    _stream: Stream = field(default=None)

    def describe(self, block_ids: Sequence[int], regions: Sequence[Region]) -> list[list[int]]:
        """Checksums [block][region] of what these finished blocks hold. Waits for the GPU.

        Called by one thread at a time.
        """
        self.device.use()
        if self._stream is None:
            self._stream = self.device.new_stream()
        finished = self.device.record_compute()
        self.device.wait(self._stream, finished)
        with self.device.on(self._stream):
            ids = torch.tensor(block_ids, dtype=torch.int64, device=self.tensor.device)
            sums = [checksum_blocks(self.tensor, ids, block_region(r)) for r in regions]
        self.device.synchronize(self._stream)
        self.described = finished
        columns = [unsigned(column) for column in sums]
        return [list(row) for row in zip(*columns, strict=True)] if columns else [[]] * len(ids)


@dataclass(frozen=True, slots=True, eq=False)
class DeviceBlocks:
    """The pool of a rank of D in GPU memory; ``tensor`` as in `DevicePool`."""

    tensor: torch.Tensor
    device: Device


@dataclass(frozen=True, slots=True, eq=False)
class DeviceTarget:
    """D's end of one edge, in GPU memory.

    ``tensor``: the pool of D's rank, as in `DevicePool`. ``place``: which of a piece's checksums is
    this edge's.
    """

    tensor: torch.Tensor
    device: Device
    plan: EdgePlan
    place: int

    @property
    def region(self) -> BlockRegion:
        return block_region(self.plan.destination_region)

    def matches(self, piece: Piece, checksum: int) -> bool:
        """Whether P announced this checksum for this edge's part."""
        return self.place < len(piece.checksums) and piece.checksums[self.place] == checksum


def block_region(region: Region) -> BlockRegion:
    """The same part, as the kernels take it."""
    return BlockRegion(
        (region.layers.start, region.layers.stop), (region.heads.start, region.heads.stop)
    )


def unsigned(checksums: torch.Tensor) -> list[int]:
    """Checksums as 64-bit numbers; waits for them."""
    values: list[int] = checksums.cpu().numpy().view(np.uint64).tolist()
    return values
