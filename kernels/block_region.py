"""A rectangle of layers × heads in the blocks of a paged pool, as the kernels address it: in words.

A pool is [blocks, layers, 2, heads, tokens, dim]; its bytes are read as integers (words), so that
every dtype, fp8 too, takes the same way. Inside a block the rectangle is a few runs of neighbouring
words, one for each layer and side (K or V); put together they are the staging row of the block.
Does not cover: what a row is for (``pack_blocks``, ``checksum_blocks``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


@dataclass(frozen=True, slots=True)
class BlockRegion:
    """``layers`` and ``heads``: half-open ranges (start, stop) within the pool's own axes."""

    layers: tuple[int, int]
    heads: tuple[int, int]

    def of(self, pool: torch.Tensor) -> torch.Tensor:
        """View [blocks, layers of the region, 2, heads of the region, tokens, dim] of ``pool``."""
        return pool[:, slice(*self.layers), :, slice(*self.heads)]

    def row_bytes(self, pool: torch.Tensor) -> int:
        """Bytes of one block's part."""
        view = self.of(pool)
        return view[0].numel() * pool.element_size() if len(pool) else 0


@dataclass(frozen=True, slots=True)
class WordRuns:
    """Where the region lies in a block, counted in words.

    Run r = 0 … ``count`` − 1 begins at ``first`` + r × ``stride`` and is ``length`` words long;
    ``block`` words make a whole block.
    """

    block: int
    first: int
    stride: int
    length: int
    count: int

    @property
    def row(self) -> int:
        """Words of one block's part."""
        return self.length * self.count


def word_runs(pool: torch.Tensor, region: BlockRegion, word_bytes: int) -> WordRuns:
    """Raises ``ValueError`` for a pool that is not contiguous or a region outside of it."""
    check_region(pool, region)
    layers, _, heads, tokens, dim = pool.shape[1:]
    head = tokens * dim * pool.element_size() // word_bytes
    start, stop = region.heads
    return WordRuns(
        block=layers * 2 * heads * head,
        first=(region.layers[0] * 2 * heads + start) * head,
        stride=heads * head,
        length=(stop - start) * head,
        count=2 * (region.layers[1] - region.layers[0]),
    )


def check_region(pool: torch.Tensor, region: BlockRegion) -> None:
    """The kernels compute addresses from the shape: both must be what they say."""
    if pool.dim() != 6 or pool.shape[2] != 2 or not pool.is_contiguous():
        raise ValueError(
            f"a pool is [blocks, layers, 2, heads, tokens, dim] and contiguous, not {pool.shape}"
        )
    for name, (start, stop), size in (
        ("layers", region.layers, pool.shape[1]),
        ("heads", region.heads, pool.shape[3]),
    ):
        if not 0 <= start < stop <= size:
            raise ValueError(f"{name} {start} to {stop} are not within 0 to {size}")


def widest_word(pool: torch.Tensor) -> int:
    """The most bytes (8, 4, 2 or 1) that divide the part of a head in a block, so every run."""
    head = pool.shape[4] * pool.shape[5] * pool.element_size()
    return next(size for size in _WORDS if head % size == 0)


def as_words(memory: torch.Tensor, word_bytes: int) -> torch.Tensor:
    """The same memory as one axis of integers of this size."""
    return memory.view(torch.uint8).reshape(-1).view(_WORDS[word_bytes])
