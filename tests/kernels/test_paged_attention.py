"""Paged attention against a reference that walks token by token, with NaN in all unused memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_variants import cpu_path as cpu_path
from native_variants import poisoned_memory as poisoned_memory

from amounts import examples
from kernels.paged_attention import attention_reference, paged_attention
from kernels.paged_sequences import PagedSequences

LAYERS = 2
TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
pytestmark = pytest.mark.usefixtures("poisoned_memory")
shared_path = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    max_examples=examples(50),
    deadline=None,
)


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
    head_dim=st.sampled_from([2, 8, 16, 40, 64]),
    block_size=st.sampled_from([1, 4, 16]),
)
windows = st.none() | st.integers(1, 150)


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


@shared_path
@given(shapes, batches, windows, st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_a_batch_of_decodes_and_prefills(
    cpu_path: str,
    shape: Shape,
    batch: list[tuple[int, int]],
    window: int | None,
    dtype: torch.dtype,
) -> None:
    lengths, new_tokens = [list(column) for column in zip(*batch, strict=True)]
    pool, tables = poisoned_pool(shape, lengths, dtype)
    for table, length, new in zip(tables, lengths, new_tokens, strict=True):
        first = length - new
        poison_before(pool, table, max(0, first + 1 - (window or first + 1)), shape.block_size)
    q = torch.randn(sum(new_tokens), shape.heads, shape.head_dim).to(dtype)
    sequences = paged(tables, lengths, new_tokens)
    for layer in range(LAYERS):
        out = paged_attention(q, pool, layer, sequences, window)
        rows = zip(q.split(new_tokens), out.split(new_tokens), strict=True)
        for i, (queries, attended) in enumerate(rows):
            expected = vectorized_reference(
                queries, pool, layer, tables[i], lengths[i] - new_tokens[i], window
            )
            torch.testing.assert_close(
                attended.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
            )


def vectorized_reference(
    q: torch.Tensor,
    pool: torch.Tensor,
    layer: int,
    table: npt.NDArray[np.int32],
    start: int,
    window: int | None,
) -> torch.Tensor:
    """`attention_reference` in float64, a whole head at a time (the other takes a minute)."""
    end, group = start + len(q), q.shape[1] // pool.shape[3]
    cells = pool[table.astype(np.int64), layer].double().permute(1, 2, 0, 3, 4).flatten(2, 3)
    keys, values = cells[:, :, :end].repeat_interleave(group, dim=1)
    age = torch.arange(start, end)[:, None] - torch.arange(end)[None]
    seen = (age >= 0) & (age < (window or end))
    scores = torch.einsum("qhd,hkd->hqk", q.double(), keys) / q.shape[2] ** 0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
    # A weight of 0 takes part in no sum: what it would weigh may be NaN.
    unseen = ~seen.any(dim=0)
    return torch.einsum("hqk,hkd->qhd", weights, values.masked_fill(unseen[None, :, None], 0))


@given(shapes, st.integers(0, 20), st.integers(1, 10), windows)
def test_both_references_agree(shape: Shape, start: int, count: int, window: int | None) -> None:
    pool, [table] = poisoned_pool(shape, [start + count])
    q = torch.randn(count, shape.heads, shape.head_dim, dtype=torch.float64)
    torch.testing.assert_close(
        vectorized_reference(q, pool, 1, table, start, window),
        attention_reference(q, pool, 1, table, start, window),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("group", "head_dim"), [(3, 64), (1, 96), (4, 128), (5, 80)])
def test_a_chunk_a_whole_prompt_and_a_decode_give_the_same_bits(
    cpu_path: str, group: int, head_dim: int, dtype: torch.dtype
) -> None:
    if cpu_path == "torch":
        pytest.skip("torch chooses an order of summation by the shape")
    shape = Shape(kv_heads=3, group=group, head_dim=head_dim, block_size=16)
    pool, [table, _] = poisoned_pool(shape, [300, 9], dtype)
    q = torch.randn(300, shape.heads, shape.head_dim).to(dtype)
    for window in (None, 100):
        whole = paged_attention(q, pool, 1, paged([table], [300], [300]), window)
        for start, end in ((0, 7), (7, 64), (64, 256), (250, 299)):
            chunk = paged([table], [end], [end - start])
            assert torch.equal(
                paged_attention(q[start:end], pool, 1, chunk, window), whole[start:end]
            )
        for at in (0, 1, 63, 64, 255, 299):
            one = paged([table, table], [at + 1, at + 1], [1, 1])
            twice = paged_attention(q[[at, at]], pool, 1, one, window)
            assert torch.equal(twice, whole[[at, at]])


def test_nan_in_one_sequence_does_not_reach_another(cpu_path: str) -> None:
    shape = Shape(kv_heads=2, group=2, head_dim=8, block_size=4)
    pool, tables = poisoned_pool(shape, [3, 30, 5], torch.float32)
    q = torch.randn(3, shape.heads, shape.head_dim)
    pool[tables[1].astype(np.int64)] = torch.nan
    out = paged_attention(q, pool, 1, paged(tables, [3, 30, 5], [1, 1, 1]))
    assert bool(out[1].isnan().all())
    assert bool(out[[0, 2]].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [16, 64])
def test_nan_in_a_query_or_a_key_or_a_value_is_not_lost(
    cpu_path: str, head_dim: int, dtype: torch.dtype
) -> None:
    shape = Shape(kv_heads=1, group=2, head_dim=head_dim, block_size=4)
    pool, [table] = poisoned_pool(shape, [70], dtype)
    q = torch.randn(1, shape.heads, shape.head_dim).to(dtype)
    sequences = paged([table], [70], [1])
    assert bool(paged_attention(q, pool, 0, sequences).isfinite().all())
    assert bool(paged_attention(torch.full_like(q, torch.nan), pool, 0, sequences).isnan().all())
    for side in (0, 1):
        block, kept = int(table[5]), pool[int(table[5])].clone()
        pool[block, 0, side, 0, 1] = torch.nan
        assert bool(paged_attention(q, pool, 0, sequences).isnan().all())
        pool[block] = kept


@pytest.mark.parametrize("head_dim", [64, 80, 96, 112, 128, 192, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_head_sizes_of_real_models(cpu_path: str, head_dim: int, dtype: torch.dtype) -> None:
    shape = Shape(kv_heads=2, group=7, head_dim=head_dim, block_size=16)
    lengths, new_tokens = [1, 16, 17, 140], [1, 1, 1, 75]
    pool, tables = poisoned_pool(shape, lengths, dtype)
    q = torch.randn(sum(new_tokens), shape.heads, shape.head_dim).to(dtype)
    out = paged_attention(q, pool, 0, paged(tables, lengths, new_tokens))
    for i, (queries, attended) in enumerate(
        zip(q.split(new_tokens), out.split(new_tokens), strict=True)
    ):
        start = lengths[i] - new_tokens[i]
        expected = vectorized_reference(queries, pool, 0, tables[i], start, None)
        torch.testing.assert_close(
            attended.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )
