"""P and D of one edge in two processes, with the production offers and openers, on real GPUs."""

from __future__ import annotations

import base64
import json
import mmap
import os
import sys
from collections.abc import Callable

import numpy as np
import torch

from core.handoff import Piece
from core.kv_layout import KVLayout
from core.kv_pool_layout import PoolLayout
from core.lease_events import PieceCopy
from core.shards import ParallelShape
from core.transfer_plan import make_plan
from crossdock.v1 import handoff_pb2 as pb
from kernels.pack_blocks import pack_reference
from kv_transfer.cuda_device import CudaDevice
from kv_transfer.device import DevicePool, DeviceTarget, block_region
from kv_transfer.device_offers import DeviceOffers
from kv_transfer.selection import open_source

LAYOUT = KVLayout(num_layers=8, num_kv_heads=4, head_dim=64, block_size=16, dtype="bfloat16")
# Of P's second tensor rank to D's first stage: neither side's blocks are whole.
PLAN = make_plan(LAYOUT, ParallelShape(2, 1), ParallelShape(1, 2))[1]
NUM_BLOCKS = 64
NONCE = 0x1234_5678_9ABC_DEF0


def source_pool() -> torch.Tensor:
    """The same in both processes."""
    size = NUM_BLOCKS * PLAN.source_layout.block_bytes
    noise = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)
    shape = (NUM_BLOCKS, *PLAN.source_layout.block_shape)
    return torch.from_numpy(noise).view(torch.bfloat16).view(shape)


def serve(transport: str, gpu: int) -> None:
    """P: answers ``offer``, ``describe 5 2``, ``moved 5`` (a block given to somebody else) and
    ``flip 2`` (a bit) on standard output, until its input ends."""
    parts = PoolLayout(NUM_BLOCKS, 0)
    fd = os.memfd_create("test-generations")
    os.ftruncate(fd, parts.total_bytes)
    memory = mmap.mmap(fd, parts.total_bytes)
    np.frombuffer(memory, np.uint64, 1, parts.nonce_offset)[0] = NONCE
    generations = np.frombuffer(memory, np.uint64, NUM_BLOCKS, parts.generations_offset)
    device = CudaDevice(gpu)
    device.use()
    pool = DevicePool(source_pool().to(f"cuda:{gpu}"), generations, NONCE, fd, device)
    offers = DeviceOffers(pool, [transport], "127.0.0.1")
    for line in sys.stdin:
        what, *ids = line.split()
        print(json.dumps(_answer(what, [int(i) for i in ids], pool, offers)), flush=True)
    offers.close()


def _answer(what: str, ids: list[int], pool: DevicePool, offers: DeviceOffers) -> object:
    if what == "offer":
        return base64.b64encode(offers.new_offer("stream").SerializeToString()).decode()
    if what == "moved":
        pool.generations[ids] += np.uint64(1)
    elif what == "flip":
        pool.tensor.view(torch.uint8)[ids[0], 0, 0, 1, 0, 0] ^= 1
        torch.cuda.synchronize()
    return pool.describe(ids, [PLAN.source_region])


def check_copies(ask: Callable[[str], str], transport: str, gpu: int) -> None:
    """D: blocks land bit for bit; one that moved on and one with a flipped bit do not."""
    offer = pb.RankOffer.FromString(base64.b64decode(json.loads(ask("offer"))))
    device = CudaDevice(gpu)
    device.use()
    shape = (NUM_BLOCKS, *PLAN.destination_layout.block_shape)
    pool = torch.zeros(shape, dtype=torch.bfloat16, device=f"cuda:{gpu}")
    target = DeviceTarget(pool, device, PLAN, place=0)
    source = open_source(offer, [transport], target, "P").source
    try:
        assert source.transport == transport
        ids = list(range(0, NUM_BLOCKS, 3))
        copies = _announced(ask, ids)
        assert source.copy(copies).good == tuple(range(len(ids)))
        assert torch.equal(_arrived(pool, ids), _sent(ids))
        ask(f"moved {ids[0]}")
        ask(f"flip {ids[1]}")
        assert source.copy(copies[:3]).bad == (0, 1)
    finally:
        source.close()


def _announced(ask: Callable[[str], str], ids: list[int]) -> list[PieceCopy]:
    sums = json.loads(ask("describe " + " ".join(map(str, ids))))
    return [
        PieceCopy(i, Piece(block_id, 0, tuple(sums[i])), NUM_BLOCKS - 1 - block_id)
        for i, block_id in enumerate(ids)
    ]


def _sent(ids: list[int]) -> torch.Tensor:
    return pack_reference(source_pool(), torch.tensor(ids), block_region(PLAN.source_region))


def _arrived(pool: torch.Tensor, ids: list[int]) -> torch.Tensor:
    places = torch.tensor([NUM_BLOCKS - 1 - block_id for block_id in ids])
    return pack_reference(pool.cpu(), places, block_region(PLAN.destination_region))
