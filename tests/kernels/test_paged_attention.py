"""Paged attention against a reference that walks token by token, with NaN in all unused memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.paged_attention import attention_reference, paged_attention
from kernels.paged_sequences import PagedSequences

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


def paged(
    tables: list[npt.NDArray[np.int32]], lengths: list[int], new_tokens: list[int]
) -> PagedSequences:
    """Block tables beyond a sequence's own are ids that do not exist."""
    padded = np.full((len(tables), max(map(len, tables)) + 1), 2**30, dtype=np.int32)
    for row, table in zip(padded, tables, strict=True):
        row[: len(table)] = table
    return PagedSequences(
        block_tables=torch.from_numpy(padded),
        lengths=torch.tensor(lengths, dtype=torch.int32),
        first_rows=torch.tensor([0, *np.cumsum(new_tokens)], dtype=torch.int32),
        num_decodes=new_tokens.count(1),
        longest_query=max(new_tokens),
        longest=max(lengths),
    )


# A batch: single tokens first. Of each sequence its length and its new tokens.
batches = (
    st.tuples(
        st.lists(st.integers(1, 70).map(lambda length: (length, 1)), max_size=5),
        st.lists(
            st.tuples(st.integers(0, 40), st.integers(2, 40)).map(lambda p: (p[0] + p[1], p[1])),
            max_size=3,
        ),
    )
    .map(lambda pair: pair[0] + pair[1])
    .filter(bool)
)


@given(shapes, batches, windows)
def test_a_batch_of_decodes_and_prefills(
    shape: Shape, batch: list[tuple[int, int]], window: int | None
) -> None:
    lengths, new_tokens = [list(column) for column in zip(*batch, strict=True)]
    pool, tables = poisoned_pool(shape, lengths)
    for table, length, new in zip(tables, lengths, new_tokens, strict=True):
        first = length - new
        poison_before(pool, table, max(0, first + 1 - (window or first + 1)), shape.block_size)
    q = torch.randn(sum(new_tokens), shape.heads, shape.head_dim, dtype=torch.float64)
    sequences = paged(tables, lengths, new_tokens)
    for layer in range(LAYERS):
        out = paged_attention(q, pool, layer, sequences, window)
        rows = zip(q.split(new_tokens), out.split(new_tokens), strict=True)
        for i, (queries, attended) in enumerate(rows):
            start = lengths[i] - new_tokens[i]
            expected = attention_reference(queries, pool, layer, tables[i], start, window)
            torch.testing.assert_close(attended, expected)


def test_nan_in_one_sequence_does_not_reach_another() -> None:
    shape = Shape(kv_heads=2, group=2, head_dim=8, block_size=4)
    pool, tables = poisoned_pool(shape, [3, 30, 5])
    q = torch.randn(3, shape.heads, shape.head_dim, dtype=torch.float64)
    pool[tables[1].astype(np.int64)] = torch.nan
    out = paged_attention(q, pool, 1, paged(tables, [3, 30, 5], [1, 1, 1]))
    assert bool(out[1].isnan().all())
    assert bool(out[[0, 2]].isfinite().all())


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)]
)
def test_lower_precisions_with_poisoned_memory(dtype: torch.dtype, tolerance: float) -> None:
    shape = Shape(kv_heads=3, group=3, head_dim=64, block_size=16)
    lengths, new_tokens = [1, 15, 16, 17, 40], [1, 1, 1, 1, 24]
    pool, tables = poisoned_pool(shape, lengths, dtype)
    q = torch.randn(sum(new_tokens), shape.heads, shape.head_dim, dtype=dtype)
    out = paged_attention(q, pool, 0, paged(tables, lengths, new_tokens))
    rows = zip(q.split(new_tokens), out.split(new_tokens), strict=True)
    for i, (queries, attended) in enumerate(rows):
        start = lengths[i] - new_tokens[i]
        expected = attention_reference(queries.double(), pool.double(), 0, tables[i], start)
        torch.testing.assert_close(attended.double(), expected, rtol=tolerance, atol=tolerance)
