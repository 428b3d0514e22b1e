"""Paged attention against a reference that walks token by token, with NaN in all unused memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.paged_attention import (
    PoolShape,
    attention_reference,
    decode_attention,
    decode_index,
    prefill_attention,
    prefill_index,
)

CPU = torch.device("cpu")
LAYERS = 2


@dataclass(frozen=True)
class Shape:
    kv_heads: int
    group: int
    head_dim: int
    block_size: int

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group


shapes = st.builds(
    Shape,
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    head_dim=st.sampled_from([2, 8, 16]),
    block_size=st.sampled_from([1, 4, 16]),
)
windows = st.none() | st.integers(1, 75)
lengths_of_sequences = st.lists(st.integers(1, 70), min_size=1, max_size=6)


def poisoned_pool(
    shape: Shape, lengths: list[int], dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, list[npt.NDArray[np.int32]]]:
    """KV of sequences in scattered blocks; every cell without a token is NaN."""
    counts = [-(-length // shape.block_size) for length in lengths]
    ids = np.random.permutation(sum(counts) + 3).astype(np.int32)
    size = (len(ids), LAYERS, 2, shape.kv_heads, shape.block_size, shape.head_dim)
    pool = torch.full(size, torch.nan, dtype=dtype)
    tables = [ids[end - count : end] for count, end in zip(counts, np.cumsum(counts), strict=True)]
    for table, length in zip(tables, lengths, strict=True):
        for position in range(length):
            block, offset = int(table[position // shape.block_size]), position % shape.block_size
            pool[block, :, :, :, offset] = torch.randn(size[1:4] + size[5:], dtype=dtype)
    return pool, tables


def poison_before(
    pool: torch.Tensor, table: npt.NDArray[np.int32], first_seen: int, block_size: int
) -> None:
    """Whole blocks that a window has passed must not be read: they may belong to others."""
    pool[table[: first_seen // block_size].astype(np.int64)] = torch.nan


@given(shapes, lengths_of_sequences, windows)
def test_decode_of_many_sequences(shape: Shape, lengths: list[int], window: int | None) -> None:
    pool, tables = poisoned_pool(shape, lengths)
    for table, length in zip(tables, lengths, strict=True):
        poison_before(pool, table, max(0, length - (window or length)), shape.block_size)
    q = torch.randn(len(lengths), shape.heads, shape.head_dim, dtype=torch.float64)
    index = decode_index(tables, np.array(lengths, np.int32), PoolShape.of(pool), CPU, window)
    for layer in range(LAYERS):
        out = decode_attention(q, pool, layer, index)
        for i, length in enumerate(lengths):
            one = q[i : i + 1]
            expected = attention_reference(one, pool, layer, tables[i], length - 1, window)
            torch.testing.assert_close(out[i : i + 1], expected)


@given(shapes, st.integers(0, 40), st.integers(1, 40), windows)
def test_prefill_of_a_chunk_after_a_prefix(
    shape: Shape, start: int, count: int, window: int | None
) -> None:
    pool, [table] = poisoned_pool(shape, [start + count])
    poison_before(pool, table, max(0, start + 1 - (window or start + 1)), shape.block_size)
    q = torch.randn(count, shape.heads, shape.head_dim, dtype=torch.float64)
    index = prefill_index(table, start, start + count, PoolShape.of(pool), CPU, window)
    for layer in range(LAYERS):
        expected = attention_reference(q, pool, layer, table, start, window)
        torch.testing.assert_close(prefill_attention(q, pool, layer, index), expected)


def test_block_tables_may_be_longer_than_the_sequence() -> None:
    shape = Shape(kv_heads=1, group=2, head_dim=8, block_size=4)
    pool, [table, other] = poisoned_pool(shape, [6, 9])
    longer = np.concatenate([table, other])
    q = torch.randn(3, shape.heads, shape.head_dim, dtype=torch.float64)
    index = prefill_index(longer, 3, 6, PoolShape.of(pool), CPU)
    expected = attention_reference(q, pool, 0, table, 3)
    torch.testing.assert_close(prefill_attention(q, pool, 0, index), expected)

    one = decode_index([longer], np.array([6], np.int32), PoolShape.of(pool), CPU)
    torch.testing.assert_close(decode_attention(q[2:], pool, 0, one), expected[2:])


def test_nan_in_one_sequence_does_not_reach_another() -> None:
    shape = Shape(kv_heads=2, group=2, head_dim=8, block_size=4)
    pool, tables = poisoned_pool(shape, [3, 30, 5])
    q = torch.randn(3, shape.heads, shape.head_dim, dtype=torch.float64)
    pool[tables[1].astype(np.int64)] = torch.nan
    index = decode_index(tables, np.array([3, 30, 5], np.int32), PoolShape.of(pool), CPU)
    out = decode_attention(q, pool, 1, index)
    assert bool(out[1].isnan().all())
    assert bool(out[[0, 2]].isfinite().all())


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)]
)
def test_lower_precisions_with_poisoned_memory(dtype: torch.dtype, tolerance: float) -> None:
    shape = Shape(kv_heads=3, group=3, head_dim=64, block_size=16)
    lengths = [1, 15, 16, 17, 40]
    pool, tables = poisoned_pool(shape, lengths, dtype)
    q = torch.randn(len(lengths), shape.heads, shape.head_dim, dtype=dtype)
    index = decode_index(tables, np.array(lengths, np.int32), PoolShape.of(pool), CPU)
    out = decode_attention(q, pool, 0, index)
    for i, length in enumerate(lengths):
        expected = attention_reference(
            q[i : i + 1].double(), pool.double(), 0, tables[i], length - 1
        )
        torch.testing.assert_close(
            out[i : i + 1].double(), expected, rtol=tolerance, atol=tolerance
        )

    chunk = torch.randn(24, shape.heads, shape.head_dim, dtype=dtype)
    one = prefill_index(tables[4], 16, 40, PoolShape.of(pool), CPU)
    torch.testing.assert_close(
        prefill_attention(chunk, pool, 1, one).double(),
        attention_reference(chunk.double(), pool.double(), 1, tables[4], 16),
        rtol=tolerance,
        atol=tolerance,
    )
