"""The Triton attention kernels: interpreted against the reference, and compiled for GPUs."""

from __future__ import annotations

import attention_cubins as cubins
import pytest
from attention_cases import MIXED, Case, expected_attention, gathered_attention, make_batch
from cubin import CAPABILITIES, POINTERS, run_python
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from kernels.decode_attention_triton import num_splits


@pytest.mark.triton
def test_interpreted_kernels_attend_as_the_reference_does() -> None:
    run_python("import attention_cases as cases; cases.check_interpreted_kernels()", interpret=True)


@pytest.mark.triton
def test_tuning_reads_a_pool_of_any_content_and_leaves_it_alone() -> None:
    program = (
        "import torch\n"
        "from kernels.tune_attention import tune_attention\n"
        "pool = torch.full((3, 2, 2, 1, 4, 16), torch.nan)\n"
        "tune_attention(pool, 2, None, batch=2, context=20)\n"
        "print(pool.isnan().all().item())"
    )
    assert run_python(program, interpret=True).strip() == "True"


@pytest.mark.triton
def test_kernels_compile_for_gpus() -> None:
    """Some of each; `test_every_variant_compiles_for_gpus` has them all."""
    lines = compile_variants("few_variants()", CAPABILITIES)
    assert len(lines) == len(CAPABILITIES) * len(cubins.few_variants())


@pytest.mark.cubins
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dtype", POINTERS)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_variant_compiles_for_gpus(capability: int, dtype: str) -> None:
    lines = compile_variants(f"variants_of('{dtype}')", (capability,))
    assert len(lines) == len(cubins.variants_of(dtype))


def compile_variants(which: str, capabilities: tuple[int, ...]) -> list[str]:
    """A line for each variant that was compiled and fits."""
    program = f"import attention_cubins as c; c.compile_variants(c.{which}, {capabilities})"
    text = run_python(program, interpret=False)
    return [line for line in text.splitlines() if "registers" in line]


def test_every_head_size_and_dtype_has_configurations_of_both_kernels() -> None:
    every = {(v.kernel, v.dtype, v.head_dim) for v in cubins.all_variants()}
    assert len(every) == 3 * 3 * len(cubins.HEAD_DIMS)


@settings(max_examples=20)
@given(MIXED)
def test_the_reference_for_large_batches_is_the_reference(case: Case) -> None:
    batch = make_batch(case)
    assert_close(gathered_attention(case, batch, 0), expected_attention(case, batch, 0))


pairs, tokens = st.integers(1, 5000), st.integers(1, 10**6)


@given(pairs, tokens, st.integers(1, 200))
def test_splits_fill_the_gpu_and_bound_the_longest(pairs: int, tokens: int, gpu: int) -> None:
    splits = num_splits(pairs, tokens, gpu)
    assert splits in {2**i for i in range(8)}
    assert splits == 128 or tokens / splits <= 2048
    assert splits == 1 or tokens / splits >= 64
    filled = pairs * splits >= 4 * gpu
    assert filled or splits == 128 or tokens / splits <= 128
