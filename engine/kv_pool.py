"""The memory of all KV blocks of a worker, touched once at start so that no step pays for it.

On CPU it is an anonymous shared file: another process that gets its descriptor maps it read-only
and finds the parts by ``core.kv_pool_layout``. On other devices it is a tensor there.
Does not cover: which block belongs to whom (``core.block_pool``), passing the descriptor on.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import secrets
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch

from core.errors import InvalidField
from core.kv_layout import KVLayout
from core.kv_pool_layout import PoolLayout
from core.step import BlockCopy
from engine.dtypes import torch_dtype
from engine.memory import available_memory

# Linux values that Python 3.11 does not name: fault all pages in at once, for writing; and let no
# mapping made from now on write. The pool's own mapping is made before.
_MADV_POPULATE_WRITE = 23
_F_SEAL_FUTURE_WRITE = 0x10


class KVPool:
    """``num_blocks`` blocks of one layout.

    ``tensor``: (num_blocks, *layout.block_shape) in the layout's dtype. ``generations``: uint64
    [num_blocks], written by ``core.block_pool.BlockPool``. ``nonce``: 64 random bits, never 0.
    ``fd`` and ``size`` (bytes): the shared memory that holds ``generations`` and ``nonce``, and on
    CPU the blocks. ``block_bytes_view``: uint8 [num_blocks, block_bytes], writable, the same memory
    as ``tensor``; None on other devices.
    """

    def __init__(
        self,
        layout: KVLayout,
        tensor: torch.Tensor,
        generations: npt.NDArray[np.uint64],
        nonce: int,
        fd: int | None = None,
        size: int = 0,
        block_bytes_view: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        self.layout = layout
        self.num_blocks = len(tensor)
        self.tensor = tensor
        self.generations = generations
        self.nonce = nonce
        self.fd = fd
        self.size = size
        self.block_bytes_view = block_bytes_view

    @classmethod
    def create(cls, layout: KVLayout, num_blocks: int, device: str) -> KVPool:
        """Raises InvalidField, naming blocks and bytes, when the memory is not there."""
        if num_blocks < 1:
            raise InvalidField("num_blocks", num_blocks, "must be at least 1")
        nonce = secrets.randbits(64) or 1
        if torch.device(device).type == "cpu":
            return cls._shared(layout, num_blocks, nonce)
        return cls._on_device(layout, num_blocks, nonce, device)

    @classmethod
    def _on_device(cls, layout: KVLayout, num_blocks: int, nonce: int, device: str) -> KVPool:
        """Generations and nonce lie in host memory that peers map, as if blocks had no bytes."""
        tensor = _device_tensor(layout, num_blocks, device)
        parts = PoolLayout(num_blocks, 0)
        fd, memory = _shared_memory(parts)
        raw = np.frombuffer(memory, dtype=np.uint8)
        generations = raw[parts.generations_offset :][: num_blocks * 8].view(np.uint64)
        raw[parts.nonce_offset :][:8].view(np.uint64)[0] = nonce
        return cls(layout, tensor, generations, nonce, fd, parts.total_bytes)

    @classmethod
    def _shared(cls, layout: KVLayout, num_blocks: int, nonce: int) -> KVPool:
        parts = PoolLayout(num_blocks, layout.block_bytes)
        fd, memory = _shared_memory(parts)
        raw = np.frombuffer(memory, dtype=np.uint8)
        blocks = raw[parts.blocks_offset :][: num_blocks * layout.block_bytes]
        generations = raw[parts.generations_offset :][: num_blocks * 8].view(np.uint64)
        raw[parts.nonce_offset :][:8].view(np.uint64)[0] = nonce
        probe = np.frombuffer(parts.probe(nonce), np.uint8)
        raw[parts.probe_offset :][: layout.block_bytes] = probe
        tensor = torch.from_numpy(blocks).view(torch_dtype(layout.dtype))
        return cls(
            layout,
            tensor.view(num_blocks, *layout.block_shape),
            generations,
            nonce,
            fd,
            parts.total_bytes,
            blocks.reshape(num_blocks, layout.block_bytes),
        )

    def copy_blocks(self, copies: Iterable[BlockCopy]) -> None:
        """Whole blocks, each in one piece. No destination may be the source of another copy."""
        for copy in copies:
            self.tensor[copy.destination].copy_(self.tensor[copy.source])

    def close(self) -> None:
        """Closes the descriptor and lets go of the memory; may be called twice.

        The mapping itself ends with the last array that looks into it.
        """
        if self.fd is not None:
            os.close(self.fd)
        self.fd = None
        self.tensor = torch.empty(0)
        self.generations = np.empty(0, dtype=np.uint64)
        self.block_bytes_view = None


def _shared_memory(parts: PoolLayout) -> tuple[int, mmap.mmap]:
    """A sealed anonymous file, all of it in memory, and our writable mapping of it."""
    available = available_memory()
    if available is not None and parts.total_bytes > available:
        raise _no_memory(parts.num_blocks, parts.total_bytes, available)
    fd = os.memfd_create("crossdock-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, parts.total_bytes)
        memory = mmap.mmap(fd, parts.total_bytes)
        _touch(memory)
        # Nobody can shrink it under a reader (SIGBUS), and readers can't write.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _F_SEAL_FUTURE_WRITE
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.ENOMEM, errno.ENOSPC, errno.EFBIG):
            raise _no_memory(parts.num_blocks, parts.total_bytes, available) from None
        raise
    return fd, memory


def _touch(memory: mmap.mmap) -> None:
    """Maps every page now. Huge pages were tried: where shmem has them off they change nothing."""
    try:
        memory.madvise(_MADV_POPULATE_WRITE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        np.frombuffer(memory, dtype=np.uint8)[:: mmap.PAGESIZE] = 0  # Linux before 5.14


def _device_tensor(layout: KVLayout, num_blocks: int, device: str) -> torch.Tensor:
    try:
        return torch.zeros(
            (num_blocks, *layout.block_shape), dtype=torch_dtype(layout.dtype), device=device
        )
    except torch.OutOfMemoryError:
        raise _no_memory(num_blocks, num_blocks * layout.block_bytes, None) from None


def _no_memory(num_blocks: int, size: int, available: int | None) -> InvalidField:
    have = "" if available is None else f", {available:,} are available"
    return InvalidField(
        "num_blocks",
        num_blocks,
        f"needs {size:,} bytes{have}: choose fewer blocks",
        reason="KV_POOL_TOO_LARGE",
    )
