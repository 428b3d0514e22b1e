"""What a rank makes of its KV pool: who holds which block, the blocks as bytes, its end of the
handoff."""

from __future__ import annotations

from core.block_pool import BlockPool
from core.kv_layout import KVLayout
from core.tcp_options import TcpOptions
from core.worker_settings import WorkerSettings
from engine.kv_pool import KVPool
from engine.runner import LoadedModel
from kv_transfer.cuda_device import CudaDevice
from kv_transfer.device import DeviceBlocks, DevicePool
from kv_transfer.rank_receiver import LocalRankReceiver
from kv_transfer.rank_sender import LocalRankSender
from kv_transfer.regions import PoolBytes
from kv_transfer.transport import HostPool, allowed_transports


def new_block_pool(model: LoadedModel) -> BlockPool:
    """The bookkeeping of the model's pool; it writes generations where peers can read them."""
    pool = model.pool
    return BlockPool(pool.num_blocks, pool.layout.block_size, pool.generations)


def sending_pool(pool: KVPool) -> HostPool | DevicePool:
    """The pool of an open model, as P's transports export it."""
    fd = -1 if pool.fd is None else pool.fd
    if pool.block_bytes_view is not None:
        return HostPool(fd, pool.nonce, pool.block_bytes_view, pool.generations)
    return DevicePool(pool.tensor, pool.generations, pool.nonce, fd, _device_of(pool))


def receiving_blocks(pool: KVPool) -> PoolBytes | DeviceBlocks:
    """The pool of an open model, as D's transports write it."""
    if pool.block_bytes_view is not None:
        return pool.block_bytes_view
    return DeviceBlocks(pool.tensor, _device_of(pool))


def local_sender(
    settings: WorkerSettings, model: LoadedModel, rank: int, host: str
) -> LocalRankSender:
    """For rank ``rank`` of a prefill worker; close it before the model's pool is closed.

    ``host``: where it listens for decode workers.
    """
    return LocalRankSender(
        sending_pool(model.pool),
        whole_layout(settings, model),
        settings.shape,
        rank,
        allowed_transports(settings.transport, model.pool.block_bytes_view is None),
        host,
        settings.tls,
    )


def local_receiver(settings: WorkerSettings, model: LoadedModel, rank: int) -> LocalRankReceiver:
    """For rank ``rank`` of a decode worker."""
    return LocalRankReceiver(
        receiving_blocks(model.pool),
        whole_layout(settings, model),
        settings.shape,
        rank,
        allowed_transports(settings.transport, model.pool.block_bytes_view is None),
        TcpOptions(settings.tcp_streams, settings.tls),
    )


def whole_layout(settings: WorkerSettings, model: LoadedModel) -> KVLayout:
    """Blocks of the whole model, however it is split."""
    return model.config.kv_layout(settings.block_size, settings.dtype)


def _device_of(pool: KVPool) -> CudaDevice:
    return CudaDevice(pool.tensor.device.index)
