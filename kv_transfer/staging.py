"""Memory on a GPU through which batches pass between two paged pools.

Does not cover: what is moved into it or out of it, and when.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from kernels.block_region import BlockRegion
from kernels.checksum_blocks import checksum_blocks
from kernels.pack_blocks import pack_blocks, unpack_blocks
from kv_transfer.device import Device, Stream

# Of one batch.
BATCH_BYTES = 64 << 20
# Of one batch: as many blocks as a kernel's grid takes.
MAX_ROWS = 65_535
# What a call into NCCL (cupy: RuntimeError), CUDA (torch: RuntimeError), a socket or a kernel that
# refuses its arguments (ValueError) may raise.
FAILURES = (OSError, RuntimeError, ValueError)


class Staging:
    """Memory for one batch, and the ids of its blocks. Made before anything is under way: with a
    receive pending, an allocation on the GPU or loading a kernel can wait for it.

    ``rows``: uint8 [most rows of a batch, row bytes].
    """

    def __init__(self, device: Device, stream: Stream, pool: torch.Tensor, region: BlockRegion):
        row_bytes, count = region.row_bytes(pool), self.rows_for(pool, region)
        with device.on(stream):
            self.rows = device.empty(count, row_bytes, dtype=torch.uint8)
            self.ids = device.empty(count, dtype=torch.int64)
            self._load_kernels(device.empty(1, *pool.shape[1:], dtype=pool.dtype), region)
        device.synchronize(stream)

    @staticmethod
    def rows_for(pool: torch.Tensor, region: BlockRegion) -> int:
        """The most rows of a batch."""
        return max(1, min(BATCH_BYTES // region.row_bytes(pool), len(pool), MAX_ROWS))

    def _load_kernels(self, block: torch.Tensor, region: BlockRegion) -> None:
        """Runs each once on a block that is nobody's."""
        only, row = torch.zeros_like(self.ids[:1]), self.rows[:1]
        pack_blocks(block, only, region, row)
        unpack_blocks(row, block, only, region)
        checksum_blocks(block, only, region)

    def fill_first(self, row: npt.NDArray[np.uint8]) -> None:
        self.rows[0].copy_(torch.from_numpy(row.copy()))

    def take_ids(self, ids: list[int]) -> torch.Tensor:
        """int64 [len(ids)] on the GPU."""
        here = self.ids[: len(ids)]
        here.copy_(torch.tensor(ids, dtype=torch.int64))
        return here
