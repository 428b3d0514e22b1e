"""Steps and results pass to another rank and back unchanged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.request import SamplingParams
from core.step import (
    BlockCopy,
    IntArray,
    SampledToken,
    SampleSpec,
    Slice,
    StepPlan,
    StepResult,
    TokenLogprobs,
)
from crossdock.v1 import rank_pb2 as pb
from wire.rank_steps import plan_from_wire, plan_to_wire, result_from_wire, result_to_wire

token_ids = st.integers(0, 2**31 - 1)
sequence_ids = st.integers(0, 2**62)
arrays = st.lists(token_ids, max_size=6).map(lambda ids: np.array(ids, np.int32))
floats = st.floats(allow_nan=False)
params = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 100),
    temperature=st.floats(0, 2),
    top_k=st.integers(0, 50),
    seed=st.integers(0, 2**63 - 1),
    repetition_penalty=st.floats(0.5, 2),
    stop=st.lists(st.text(min_size=1, max_size=5), max_size=2).map(tuple),
    logit_bias=st.dictionaries(token_ids, st.floats(-100, 100, width=32), max_size=3).map(
        lambda biases: tuple(sorted(biases.items()))
    ),
    logprobs=st.none() | st.integers(0, 5),
)


@st.composite
def samples(draw: st.DrawFn) -> tuple[SampleSpec, ...]:
    spec = (draw(params), draw(st.integers(0, 2**40)), draw(arrays), draw(st.integers(0, 9)))
    banned = tuple(draw(st.lists(token_ids, max_size=3)))
    return tuple(
        SampleSpec(*spec, sequence_index=index, banned_token_ids=banned)
        for index in draw(st.lists(st.integers(0, 127), max_size=3))
    )


slices = st.builds(Slice, sequence_ids, st.integers(0, 2**40), arrays, arrays, samples())
copies = st.builds(BlockCopy, token_ids, token_ids)
plans = st.builds(
    StepPlan,
    st.lists(slices, min_size=1, max_size=4).map(tuple),
    st.lists(copies, max_size=3).map(tuple),
)
logprobs = st.builds(
    TokenLogprobs,
    floats,
    st.lists(token_ids, max_size=3).map(tuple),
    st.lists(floats, max_size=3).map(tuple),
)
drawn = st.builds(SampledToken, token_ids, st.none() | logprobs)
results = st.builds(
    StepResult,
    st.dictionaries(sequence_ids, st.lists(drawn, max_size=3).map(tuple), max_size=4),
    st.dictionaries(sequence_ids, st.text(max_size=20), max_size=3),
)


def over_the_wire(plan: StepPlan, *, draws_here: bool) -> StepPlan:
    raw = plan_to_wire(plan, draws_here=draws_here).SerializeToString()
    return plan_from_wire(pb.RankPlan.FromString(raw))


def plain(spec: SampleSpec, tokens: IntArray) -> tuple[object, ...]:
    banned = spec.banned_token_ids
    index = spec.sequence_index
    return spec.params, spec.position, tokens.tolist(), spec.prompt_length, index, banned


@given(plans)
def test_a_plan_arrives_as_it_was(plan: StepPlan) -> None:
    arrived = over_the_wire(plan, draws_here=True)
    assert arrived.copies == plan.copies
    for got, sent in zip(arrived.slices, plan.slices, strict=True):
        assert (got.sequence_id, got.start) == (sent.sequence_id, sent.start)
        assert got.tokens.tolist() == sent.tokens.tolist()
        assert got.block_table.tolist() == sent.block_table.tolist()
        for spec, wanted in zip(got.samples, sent.samples, strict=True):
            needed = wanted.tokens if wanted.params.penalized else wanted.tokens[:0]
            assert plain(spec, spec.tokens) == plain(wanted, needed)


@given(plans)
def test_ranks_that_do_not_draw_get_no_tokens_for_it(plan: StepPlan) -> None:
    arrived = over_the_wire(plan, draws_here=False)
    assert not any(len(spec.tokens) for part in arrived.slices for spec in part.samples)


@given(st.integers(1, 2**40), results)
def test_a_result_arrives_as_it_was(number: int, result: StepResult) -> None:
    raw = result_to_wire(number, result).SerializeToString()
    message = pb.RankStepResult.FromString(raw)
    assert message.number == number
    assert result_from_wire(message) == result


def test_arrays_of_other_lengths_than_told_are_refused() -> None:
    part = Slice(1, 0, np.array([1, 2, 3], np.int32), np.array([5], np.int32))
    message = plan_to_wire(StepPlan((part,)), draws_here=True)
    message.tokens = message.tokens[:-4]
    with pytest.raises(ValueError, match="2 numbers came where 3"):
        plan_from_wire(message)
