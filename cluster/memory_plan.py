"""How much KV memory the ranks of each pool get, and what follows from it. Pure.

Covers: blocks of each pool, the longest sequence, host memory of a replica. Does not cover: how
much memory is free (``engine.memory``), everything else that a worker is told (``cluster.plan``).
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.model_folder import ModelFolder
from cluster.plan import POOLS, list_slots, resolve_dtype
from core.config import ClusterSpec
from core.errors import InvalidField
from core.kv_config import DEFAULT_KV_BYTES
from core.kv_layout import DTYPE_BYTES
from core.shards import kv_shards, shard_layout

# What KV pools may take together of the free memory if nobody says otherwise.
KV_SHARE_OF_FREE_MEMORY = 0.5
# Python, torch and Ray in a rank's process, in bytes, beside weights and KV.
PROCESS_BYTES = 400 * 2**20


@dataclass(frozen=True, slots=True)
class PoolBlocks:
    """KV blocks of each rank, by pool: all ranks of a replica have the same number."""

    prefill: int
    decode: int

    def of(self, pool: str) -> int:
        return self.prefill if pool == "prefill" else self.decode


def plan_blocks(spec: ClusterSpec, model: ModelFolder, free_memory: int | None) -> PoolBlocks:
    """``free_memory``: bytes of the machine that all ranks share, if known. Raises
    ``InvalidField`` if ``kv.memory`` does not suit it, or holds no block."""
    if spec.kv.num_blocks is not None:
        return PoolBlocks(spec.kv.num_blocks, spec.kv.num_blocks)
    num_ranks = sum(spec.pools.of(slot.pool).shape.num_ranks for slot in list_slots(spec))
    memory = spec.kv.memory
    if memory is None:
        memory = _default_kv_bytes(free_memory, num_ranks)
        return PoolBlocks(*(max(1, memory // _largest_block(spec, model, p)) for p in POOLS))
    if free_memory is not None and memory * num_ranks > free_memory:
        free = f"{free_memory / 2**30:.1f} GiB"
        fix = f"{num_ranks} ranks need that much each, but only {free} of memory is free"
        raise InvalidField("kv.memory", memory, fix)
    return PoolBlocks(*(_blocks_in(memory, spec, model, pool) for pool in POOLS))


def plan_max_model_len(spec: ClusterSpec, model: ModelFolder, blocks: PoolBlocks) -> int:
    """The longest sequence in tokens: what the model can do, and a worker of either pool hold."""
    pool = min(POOLS, key=blocks.of)
    room = blocks.of(pool) * spec.kv.block_size
    if spec.max_model_len is None:
        return min(model.max_positions, room)
    if spec.max_model_len > model.max_positions:
        fix = f"this model ends at {model.max_positions} tokens"
        raise InvalidField("max_model_len", spec.max_model_len, fix)
    if spec.max_model_len > room:
        fix = (
            f"the KV pool of a {pool} worker, {blocks.of(pool)} blocks, holds {room} tokens; "
            "raise kv.memory"
        )
        raise InvalidField("max_model_len", spec.max_model_len, fix)
    return spec.max_model_len


def replica_memory(spec: ClusterSpec, model: ModelFolder, pool: str, num_blocks: int) -> int:
    """Bytes of host memory that all ranks of one replica take together, roughly: each weight is
    on one of them, and each has a table of rotations."""
    num_ranks = spec.pools.of(pool).shape.num_ranks
    processes = num_ranks * PROCESS_BYTES
    if spec.engine.device != "cpu":
        return processes
    stored = sum(file.stat().st_size for file in model.path.glob("*.safetensors"))
    itemsize = DTYPE_BYTES[resolve_dtype(spec, model)]
    weights = stored * itemsize // DTYPE_BYTES[model.dtype]
    # Cosine and sine of every position, head_dim / 2 of each.
    rotations = num_ranks * model.max_positions * model.head_dim * itemsize
    return processes + weights + rotations + num_blocks * sum(_block_bytes(spec, model, pool))


def _default_kv_bytes(free_memory: int | None, num_ranks: int) -> int:
    if free_memory is None:
        return DEFAULT_KV_BYTES
    return min(DEFAULT_KV_BYTES, int(free_memory * KV_SHARE_OF_FREE_MEMORY) // num_ranks)


def _blocks_in(memory: int, spec: ClusterSpec, model: ModelFolder, pool: str) -> int:
    block_bytes = _largest_block(spec, model, pool)
    if memory < block_bytes:
        fix = f"one block takes {block_bytes} bytes of a rank of the {pool} pool"
        raise InvalidField("kv.memory", memory, fix)
    return memory // block_bytes


def _largest_block(spec: ClusterSpec, model: ModelFolder, pool: str) -> int:
    """A stage may hold a layer more than another one."""
    return max(_block_bytes(spec, model, pool))


def _block_bytes(spec: ClusterSpec, model: ModelFolder, pool: str) -> list[int]:
    """Bytes of a block on each rank of a replica."""
    layout = model.kv_layout(spec.kv.block_size, resolve_dtype(spec, model))
    shards = kv_shards(layout, spec.pools.of(pool).shape)
    return [shard_layout(layout, shard).block_bytes for shard in shards]
