"""FLOPs and bytes of a step against sums that count every pair."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from core.request import SamplingParams
from core.step import SampleSpec, Slice, StepPlan
from core.step_cost import CostModel, StepCost, read_context, seen_pairs

DRAW = (SampleSpec(SamplingParams(1), 0),)


def piece(start: int, count: int, draws: bool) -> Slice:
    tokens = np.zeros(count, dtype=np.int32)
    return Slice(start, start, tokens, np.zeros(1, dtype=np.int32), DRAW if draws else ())


@given(st.integers(0, 60), st.integers(1, 60), st.integers(1, 40))
def test_each_token_sees_what_is_before_it_within_the_window(
    start: int, count: int, window: int
) -> None:
    seen = [min(i + 1, window) for i in range(start, start + count)]
    assert seen_pairs(start, count, window) == sum(seen)
    first_seen = max(0, start + 1 - window)
    assert read_context(start, window) == start - min(first_seen, start)


@given(st.integers(0, 60), st.integers(1, 60), st.integers(200, 300))
def test_a_window_that_is_never_full_changes_nothing(start: int, count: int, window: int) -> None:
    plan = StepPlan((piece(start, count, draws=True),))
    whole = CostModel(1000, 100, 8, 4, 2, ((None, 3),))
    windowed = CostModel(1000, 100, 8, 4, 2, ((None, 1), (window, 2)))
    assert whole.of(plan) == windowed.of(plan)


def test_a_step_of_a_chunk_and_a_decoding_sequence() -> None:
    model = CostModel(
        layer_weights=1000,
        head_weights=100,
        head_size=8,
        kv_size=4,
        itemsize=2,
        layers_of_window=((None, 3),),
    )
    plan = StepPlan((piece(0, 5, draws=False), piece(9, 1, draws=True)))
    pairs = 3 * (5 * 6 // 2 + 10)
    assert model.of(plan) == StepCost(
        flops=2 * (6 * 1000 + 100) + 4 * pairs * 8,
        bytes=2 * (1000 + 100 + 4 * 3 * (9 + 6)),
    )


def test_a_chunk_in_the_middle_of_a_prompt_does_not_read_the_head() -> None:
    model = CostModel(1000, 100, 8, 4, 2, ((None, 1),))
    assert model.of(StepPlan((piece(0, 1, draws=False),))).bytes == 2 * (1000 + 4)
