"""Drawing tokens: every path of this machine gives the tokens of the plain definition.

Does not cover: what a request does to its logits before, and failures (test_sampler, test_logits).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from cubin import CAPABILITIES, run_python
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_variants import cpu_path as cpu_path
from native_variants import poisoned_memory as poisoned_memory
from sampling_cases import Case, cases, large_cases, sample_by_maxima

from amounts import examples
from core.random import uniform
from kernels.philox import uniforms
from kernels.sampling import NO_TOKEN, sample_reference, sample_tokens
from kernels.sampling_arrays import DrawSpec, SamplingArrays

pytestmark = pytest.mark.usefixtures("poisoned_memory")

shared_path = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    max_examples=examples(60),
    deadline=None,
)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1))
def test_the_draws_are_those_of_core(seed: int, sequence_index: int, position: int) -> None:
    arrays = (np.array([value]) for value in (seed, sequence_index, position))
    assert uniforms(*arrays).tolist() == [uniform(seed, sequence_index, position)]


@shared_path
@given(cases(largest_vocabulary=1500))
def test_every_token_is_the_one_of_the_definition(cpu_path: str, case: Case) -> None:
    case.check()
    case.check(sample_by_maxima)


@pytest.mark.thorough
def test_large_vocabularies(cpu_path: str) -> None:
    for case in large_cases(vocab=100_003, draws=3):
        case.check()
        case.check(sample_by_maxima)


def test_a_long_tail_of_unlikely_tokens_is_drawn_from(cpu_path: str) -> None:
    """100,000 tokens of e⁻¹⁸ together are drawn once in 700 times."""
    logits = np.full((1, 100_000), -18, np.float32)
    logits[0, 50_000] = 0
    seeds = np.arange(5000)
    lucky = seeds[uniforms(seeds, np.zeros(5000, np.int64), np.zeros(5000, np.int64)) > 0.9985]
    case = Case(logits, tuple(DrawSpec(0, 1.0, seed=int(seed)) for seed in lucky))
    assert (sample_reference(logits, case.draws) != 50_000).sum() >= 4
    case.check()
    case.check(sample_by_maxima)


def test_what_is_cut_off_is_less_than_a_draw_can_tell() -> None:
    """Draws are multiples of 2⁻⁵³; vocabularies have up to 2¹⁸ tokens."""
    draws = [DrawSpec(0, temperature) for temperature in (0.05, 1.0, 2.0)]
    arrays = SamplingArrays.of(draws)
    assert (np.exp(arrays.cutoffs / arrays.temperatures) * 2**18 < 2**-53).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_without_a_token_are_told_apart(cpu_path: str, temperature: float) -> None:
    logits = torch.zeros(5, 700)
    logits[1, 650] = torch.nan
    logits[2, 3] = torch.inf
    logits[3, :] = -torch.inf
    logits[4, 1:] = -torch.inf
    arrays = SamplingArrays.of([DrawSpec(row, temperature) for row in range(5)])
    for tokens in (sample_tokens(logits, arrays), sample_by_maxima(logits, arrays)):
        assert tokens[0] >= 0
        assert tokens[1:].tolist() == [NO_TOKEN, NO_TOKEN, NO_TOKEN, 0]


@pytest.mark.parametrize("setting", [{}, {"top_p": 0.9}, {"top_k": 30}])
def test_a_draw_does_not_depend_on_its_company(cpu_path: str, setting: dict[str, float]) -> None:
    """Also not in the last bits that decide near an edge: every draw of many is the same alone."""
    logits = torch.randn(4, 3000, generator=torch.Generator().manual_seed(1))
    draws = [
        DrawSpec(row, temperature=1.3, sequence_index=index, **setting)  # type: ignore[arg-type]
        for row in range(4)
        for index in range(20)
    ]
    together = sample_tokens(logits, SamplingArrays.of(draws))
    alone = [
        int(sample_tokens(logits[d.row :][:1], SamplingArrays.of([replace(d, row=0)])))
        for d in draws
    ]
    assert together.tolist() == alone


def test_half_of_equals_is_found_exactly(cpu_path: str) -> None:
    """The mass wanted lies on an edge: where a sum in float could not decide."""
    arrays = SamplingArrays.of([DrawSpec(0, 1.0, top_p=0.5, seed=seed) for seed in range(400)])
    tokens = sample_tokens(torch.full((1, 64), 2.5), arrays)
    assert set(tokens.tolist()) == set(range(32))


def test_rows_may_be_apart_in_memory(cpu_path: str) -> None:
    logits = torch.randn(6, 1000)
    arrays = SamplingArrays.of([DrawSpec(row, 1.0, top_k=9) for row in range(3)])
    apart = sample_tokens(logits[::2, :900], arrays)
    assert torch.equal(apart, sample_tokens(logits[::2, :900].contiguous(), arrays))


def test_what_cannot_be_read_is_refused() -> None:
    arrays = SamplingArrays.of([DrawSpec(2)])
    with pytest.raises(ValueError, match="float32"):
        sample_tokens(torch.zeros(3, 5, dtype=torch.float64), arrays)
    with pytest.raises(ValueError, match="of which there are 2"):
        sample_tokens(torch.zeros(2, 5), arrays)


@pytest.mark.triton
def test_the_triton_kernels_draw_the_same_tokens_in_the_interpreter() -> None:
    run_python("import sampling_cases as cases; cases.check_interpreted_kernels()", interpret=True)


@pytest.mark.triton
def test_on_a_gpu_the_triton_kernels_are_what_runs() -> None:
    run_python("import sampling_cases as cases; cases.check_interpreted_dispatch()", interpret=True)


@pytest.mark.triton
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_triton_kernels_compile_for_gpus(capability: int) -> None:
    program = f"import sampling_cases as cases; cases.compile_kernels({capability})"
    assert run_python(program, interpret=False).count("cubin") == 6
