"""The Triton attention kernels on a GPU: every configuration, sizes of serving, CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_cases import (
    HEAD_DIMS,
    MIXED,
    TOLERANCES,
    Batch,
    Case,
    check_case,
    gathered_attention,
    make_batch,
)
from hypothesis import given, settings

from kernels.autotune import fitting_decode, fitting_prefill
from kernels.paged_attention import paged_attention
from kernels.paged_sequences import PagedSequences

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs 1 GPU, this machine has 0"),
]

LONG = Case(
    dtype=torch.bfloat16,
    head_dim=128,
    kv_heads=2,
    group=4,
    block_size=16,
    window=None,
    decodes=(1, 100, 4096, 2047, 8000, 0, 33),
    prefills=((0, 1000), (3000, 517), (4096, 1)),
)


@contextmanager
def configured(kernel: Any, config: Any) -> Iterator[None]:
    """One configuration instead of the measured best."""
    before, kernel.configs = kernel.configs, [config]
    try:
        yield
    finally:
        kernel.configs = before


def configs(kernel: Any, fitting: Callable[..., list[Any]], case: Case) -> list[Any]:
    import triton

    arguments = {"pool": torch.empty(0, dtype=case.dtype)}
    padded = triton.next_power_of_2(case.head_dim)
    return fitting(kernel.configs, arguments, PADDED_DIM=padded)


@settings(max_examples=40)
@given(MIXED)
def test_batches_of_every_shape(case: Case) -> None:
    from kernels import decode_attention_triton as decode
    from kernels import prefill_attention_triton as prefill

    rows = len(case.decodes)
    with configured(decode.decode_kernel, configs(decode.decode_kernel, fitting_decode, case)[0]):
        check_case(case, decode.launch_decode_attention, slice(rows), "cuda")
    kernel = prefill.prefill_kernel
    with configured(kernel, configs(kernel, fitting_prefill, case)[0]):
        check_case(case, prefill.launch_prefill_attention, slice(rows, None), "cuda")


@pytest.mark.parametrize("window", [None, 1000])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_long_contexts_with_every_configuration(
    dtype: torch.dtype, head_dim: int, window: int | None
) -> None:
    from kernels import decode_attention_triton as decode
    from kernels import prefill_attention_triton as prefill

    case = replace(LONG, dtype=dtype, head_dim=head_dim, window=window)
    batch = make_batch(case, "cuda")
    expected = gathered_attention(case, batch, 1)
    rows = len(case.decodes)
    for kernel, fitting, launch, part in (
        (decode.decode_kernel, fitting_decode, decode.launch_decode_attention, slice(rows)),
        (
            prefill.prefill_kernel,
            fitting_prefill,
            prefill.launch_prefill_attention,
            slice(rows, None),
        ),
    ):
        for config in configs(kernel, fitting, case):
            out = torch.full_like(batch.q, torch.nan)
            with configured(kernel, config):
                launch(batch.q, batch.pool, 1, batch.sequences, window, out)
            assert_near(out[part], expected[part], str(config))
            out[part] = torch.nan
            assert bool(out.isnan().all()), str(config)


def assert_near(out: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    tolerance = TOLERANCES[out.dtype]
    torch.testing.assert_close(
        out.double(), expected, rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}: {text}"
    )


def test_a_pool_larger_than_32_bits_of_elements() -> None:
    """4.7 G elements, used at both ends: offsets in the kernels are 64 bits wide."""
    case = replace(LONG, decodes=(100,), prefills=((20, 60),))
    small = make_batch(case, "cuda")
    blocks, tail = 36_000, len(small.pool) // 2
    pool = torch.zeros(blocks, 16, *small.pool.shape[2:], dtype=case.dtype, device="cuda")
    pool[:tail, 1], pool[tail - len(small.pool) :, 1] = (
        small.pool[:tail, 1],
        small.pool[tail:, 1],
    )
    tables = small.sequences.block_tables
    moved = torch.where(tables >= tail, tables + blocks - len(small.pool), tables)
    sequences = replace(small.sequences, block_tables=moved)
    out = paged_attention(small.q, pool, 1, sequences, None)
    assert_near(out, gathered_attention(case, small, 1), "ends of the pool")


def test_a_captured_decode_follows_its_inputs() -> None:
    """One graph for a bucket: other lengths, block tables and queries, the same launches."""
    from kernels.decode_attention_triton import launch_decode_attention
    from kernels.tune_attention import tune_attention

    cases = [
        replace(LONG, decodes=decodes, prefills=(), seed=7)
        for decodes in ((4000, 1, 17, 300), (5, 2500, 0, 64))
    ]
    batches = [make_batch(case, "cuda") for case in cases]
    tune_attention(batches[0].pool, 8, None, batch=4, context=512)
    static = bucket(batches[0], longest=4096)
    out = torch.full_like(static.q, torch.nan)
    launch_decode_attention(static.q, static.pool, 0, static.sequences, None, out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch_decode_attention(static.q, static.pool, 0, static.sequences, None, out)
    for case, batch in zip(cases, batches, strict=True):
        static.q.copy_(batch.q)
        static.pool.fill_(torch.nan)
        static.pool[: len(batch.pool)] = batch.pool
        width = batch.sequences.block_tables.shape[1]
        static.sequences.block_tables[:, :width] = batch.sequences.block_tables
        static.sequences.lengths.copy_(batch.sequences.lengths)
        out.fill_(torch.nan)
        graph.replay()
        assert_near(out, gathered_attention(case, batch, 0), str(case.decodes))


def bucket(batch: Batch, longest: int) -> Batch:
    """Memory for any batch of as many decodes of up to ``longest`` tokens."""
    count = len(batch.q)
    tables = torch.zeros(count, longest // LONG.block_size + 8, dtype=torch.int32, device="cuda")
    pool = torch.full((2000, *batch.pool.shape[1:]), torch.nan, device="cuda").to(LONG.dtype)
    sequences = PagedSequences(
        block_tables=tables,
        lengths=torch.zeros(count, dtype=torch.int32, device="cuda"),
        first_rows=torch.arange(count + 1, dtype=torch.int32, device="cuda"),
        num_decodes=count,
        longest_query=1,
        longest=longest,
    )
    return Batch(torch.zeros_like(batch.q), pool, sequences)


def test_tuning_is_remembered() -> None:
    from kernels.decode_attention_triton import decode_kernel
    from kernels.prefill_attention_triton import prefill_kernel
    from kernels.tune_attention import tune_attention

    pool = torch.zeros(64, 1, 2, 2, 16, 64, dtype=torch.bfloat16, device="cuda")
    decode_kernel.cache.clear()
    prefill_kernel.cache.clear()
    tune_attention(pool, 8, None, batch=4, context=512)
    assert len(decode_kernel.cache) == len(prefill_kernel.cache) == 1
    # From the disk this time: what was measured then is what is known now.
    timings = decode_kernel.configs_timings
    decode_kernel.cache.clear()
    tune_attention(pool, 8, None, batch=4, context=512)
    assert {str(c): t for c, t in decode_kernel.configs_timings.items()} == {
        str(c): t for c, t in timings.items()
    }
