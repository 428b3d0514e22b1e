"""The two views of a worker's KV pool: who holds which block, and the blocks as bytes."""

from __future__ import annotations

from core.block_pool import BlockPool
from core.errors import Incompatible
from engine.kv_pool import KVPool
from engine.runner import LoadedModel
from kv_transfer.transport import HostPool, PoolBytes


def new_block_pool(model: LoadedModel) -> BlockPool:
    """The bookkeeping of the model's pool; it writes generations where peers can read them."""
    pool = model.pool
    return BlockPool(pool.num_blocks, pool.layout.block_size, pool.generations)


def pool_bytes(pool: KVPool) -> PoolBytes:
    """uint8 [num_blocks, block_bytes]. Raises `Incompatible` for a pool in device memory."""
    if pool.block_bytes_view is None:
        raise _not_in_host_memory()
    return pool.block_bytes_view


def host_pool(pool: KVPool) -> HostPool:
    """What transports export. Raises `Incompatible` as `pool_bytes` does."""
    if pool.fd is None:
        raise _not_in_host_memory()
    return HostPool(pool.fd, pool.nonce, pool_bytes(pool), pool.generations)


def _not_in_host_memory() -> Incompatible:
    return Incompatible(
        "this KV pool is in device memory; handing blocks over needs a transport for it, "
        "and this version has only those for host memory: use --prefill 0",
        reason="NO_DEVICE_TRANSPORT",
    )
