"""Both ends of NCCL edges in one process, over real sockets and a GPU that is not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from fake_gpu import FakeDevice, FakeNccl, Wire

from core.handoff import Piece
from core.kv_layout import KVLayout
from core.lease_events import PieceCopy
from core.shards import ONE_RANK, ParallelShape
from core.transfer_plan import EdgePlan, make_plan
from kernels.block_region import BlockRegion
from kernels.pack_blocks import pack_reference
from kv_transfer.communicator_room import CommunicatorRoom
from kv_transfer.device import DevicePool, DeviceTarget, block_region
from kv_transfer.nccl_receiver_rules import Limits
from kv_transfer.nccl_server import NcclServer
from kv_transfer.nccl_source import NcclSource
from kv_transfer.token_listener import TokenAddress

LAYOUT = KVLayout(num_layers=4, num_kv_heads=2, head_dim=4, block_size=2, dtype="bfloat16")
NUM_BLOCKS = 8


def pool_of(layout: KVLayout, seed: int) -> torch.Tensor:
    size = NUM_BLOCKS * layout.block_bytes
    noise = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    return torch.from_numpy(noise).view(torch.bfloat16).view(NUM_BLOCKS, *layout.block_shape)


@dataclass
class Edges:
    """P with one rank's pool and a server; sources on D are made by `open`."""

    source_shape: ParallelShape = ONE_RANK
    destination_shape: ParallelShape = ONE_RANK
    place: int = 0
    limits: Limits = field(default_factory=Limits)
    prefill_cap: int = 64
    decode_cap: int = 64

    def __post_init__(self) -> None:
        self.plan: EdgePlan = make_plan(LAYOUT, self.source_shape, self.destination_shape)[
            self.place
        ]
        self.wires: dict[bytes, Wire] = {}
        self.prefill_gpu, self.decode_gpu = FakeDevice(), FakeDevice()
        self.prefill_nccl = FakeNccl(self.prefill_gpu, self.wires)
        self.decode_nccl = FakeNccl(self.decode_gpu, self.wires)
        self.generations = np.arange(NUM_BLOCKS, dtype=np.uint64)
        source = pool_of(self.plan.source_layout, 1)
        self.pool = DevicePool(source, self.generations, 7, -1, self.prefill_gpu)
        self.decode_room = CommunicatorRoom(self.decode_cap)
        self.server = NcclServer(
            "127.0.0.1",
            self.pool,
            self.prefill_nccl,
            CommunicatorRoom(self.prefill_cap),
            self.limits,
        )
        self.token = self.server.invite()
        self.sources: list[NcclSource] = []
        self.destination = torch.zeros_like(pool_of(self.plan.destination_layout, 0))

    def open(self, token: bytes | None = None) -> NcclSource:
        address = TokenAddress("127.0.0.1", self.server.port, token or self.token)
        target = DeviceTarget(self.destination, self.decode_gpu, self.plan, self.place)
        source = NcclSource(address, target, self.decode_nccl, self.decode_room, self.limits)
        self.sources.append(source)
        return source

    def announce(self, *block_ids: int) -> list[PieceCopy]:
        """Copies of these blocks to those of D that stand at the other end of its pool."""
        columns = self.pool.describe(block_ids, [self.plan.source_region])
        return [
            PieceCopy(
                index,
                Piece(block_id, int(self.generations[block_id]), (0,) * self.place + tuple(sums)),
                NUM_BLOCKS - 1 - block_id,
            )
            for index, (block_id, sums) in enumerate(zip(block_ids, columns, strict=True))
        ]

    def sent(self, block_ids: Sequence[int]) -> torch.Tensor:
        return _rows(self.pool.tensor, block_ids, block_region(self.plan.source_region))

    def arrived(self, block_ids: Sequence[int]) -> torch.Tensor:
        places = [NUM_BLOCKS - 1 - block_id for block_id in block_ids]
        return _rows(self.destination, places, block_region(self.plan.destination_region))

    def close(self) -> None:
        for source in self.sources:
            source.close()
        self.server.close()


def _rows(pool: torch.Tensor, block_ids: Sequence[int], region: BlockRegion) -> torch.Tensor:
    return pack_reference(pool, torch.tensor(list(block_ids)), region)
