"""Attention of new tokens over keys and values that lie in a paged pool.

Covers: decode (one new token) and prefill (a chunk of tokens after a cached prefix) of many
sequences at once, grouped-query heads without repeating K and V, sliding windows. The new tokens'
own K and V must be in the pool already.
Does not cover: ALiBi, soft capping.

Shapes: ``pool`` [blocks, layers, 2, kv_heads, block_size, head_dim], contiguous, of the dtype of
``q``. A window is the number of most recent positions that a query sees, its own included; None is
all of them.

Cells of the pool that no token has written may hold anything, NaN too, and 0 * NaN is NaN: such
cells never enter a sum, not even with weight 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from kernels.compiled import by_dtype
from kernels.dispatch import implementation
from kernels.paged_attention_torch import paged_attention_torch
from kernels.paged_sequences import PagedSequences

IntArray = npt.NDArray[np.int32]

_MAX_NATIVE_DIM = 256


def paged_attention(
    q: torch.Tensor,
    pool: torch.Tensor,
    layer: int,
    sequences: PagedSequences,
    window: int | None = None,
) -> torch.Tensor:
    """q [T, heads, head_dim], the rows of all ``sequences``, to the same shape; causal."""
    choice = implementation(q)
    if choice == "native" and q.shape[2] % 2 == 0 and q.shape[2] <= _MAX_NATIVE_DIM:
        return _native(q.contiguous(), pool, layer, sequences, window)
    if choice == "triton":
        # Here, so that a machine without a GPU never loads Triton.
        from kernels.paged_attention_triton import launch_paged_attention

        return launch_paged_attention(q, pool, layer, sequences, window)
    return paged_attention_torch(q, pool, layer, sequences, window)


def _native(
    q: torch.Tensor,
    pool: torch.Tensor,
    layer: int,
    sequences: PagedSequences,
    window: int | None,
) -> torch.Tensor:
    out = torch.empty_like(q)
    _, layers, _, kv_heads, block_size, head_dim = pool.shape
    by_dtype("paged_attention", q.dtype)(
        q.data_ptr(),
        pool.data_ptr(),
        out.data_ptr(),
        sequences.block_tables.data_ptr(),
        sequences.lengths.data_ptr(),
        sequences.first_rows.data_ptr(),
        *sequences.block_tables.shape,
        layers,
        layer,
        q.shape[1],
        kv_heads,
        block_size,
        head_dim,
        window or 0,
    )
    return out


def attention_reference(
    q: torch.Tensor,
    pool: torch.Tensor,
    layer: int,
    block_table: IntArray,
    start: int,
    window: int | None = None,
) -> torch.Tensor:
    """One sequence, token by token and head by head: q [n, heads, head_dim] from ``start`` on."""
    kv_heads, block_size = pool.shape[3], pool.shape[4]
    group = q.shape[1] // kv_heads
    out = torch.empty_like(q)
    for i in range(len(q)):
        first = 0 if window is None else max(0, start + i + 1 - window)
        seen = range(first, start + i + 1)
        blocks = [(int(block_table[p // block_size]), p % block_size) for p in seen]
        cells = torch.stack([pool[block, layer, :, :, offset] for block, offset in blocks])
        for head in range(q.shape[1]):
            keys, values = cells[:, 0, head // group], cells[:, 1, head // group]
            weights = torch.softmax(keys @ q[i, head] / q.shape[-1] ** 0.5, dim=0)
            out[i, head] = weights @ values
    return out
