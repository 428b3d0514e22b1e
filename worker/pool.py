"""What a rank makes of its KV pool: who holds which block, the blocks as bytes, its end of the
handoff."""

from __future__ import annotations

from core.block_pool import BlockPool
from core.errors import Incompatible
from core.kv_layout import KVLayout
from core.worker_settings import WorkerSettings
from engine.kv_pool import KVPool
from engine.runner import LoadedModel
from kv_transfer.rank_receiver import LocalRankReceiver
from kv_transfer.rank_sender import LocalRankSender
from kv_transfer.regions import PoolBytes
from kv_transfer.transport import HostPool, allowed_transports


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


def local_sender(
    settings: WorkerSettings, model: LoadedModel, rank: int, host: str
) -> LocalRankSender:
    """For rank ``rank`` of a prefill worker; close it before the model's pool is closed.

    ``host``: where it listens for decode workers. Raises `Incompatible` as `pool_bytes` does.
    """
    return LocalRankSender(
        host_pool(model.pool),
        whole_layout(settings, model),
        settings.shape,
        rank,
        allowed_transports(settings.transport),
        host,
    )


def local_receiver(settings: WorkerSettings, model: LoadedModel, rank: int) -> LocalRankReceiver:
    """For rank ``rank`` of a decode worker. Raises `Incompatible` as `pool_bytes` does."""
    return LocalRankReceiver(
        pool_bytes(model.pool),
        whole_layout(settings, model),
        settings.shape,
        rank,
        allowed_transports(settings.transport),
    )


def whole_layout(settings: WorkerSettings, model: LoadedModel) -> KVLayout:
    """Blocks of the whole model, however it is split."""
    return model.config.kv_layout(settings.block_size, settings.dtype)


def _not_in_host_memory() -> Incompatible:
    return Incompatible(
        "this KV pool is in device memory; handing blocks over needs a transport for it, "
        "and this version has only those for host memory: use --prefill 0",
        reason="NO_DEVICE_TRANSPORT",
    )
