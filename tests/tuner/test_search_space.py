"""Which clusters a budget allows, and what each can serve at most."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_worlds import LIMITS, SLO, bounded, budget_of, chat_trace, profile_of

from core.config import ClusterSpec
from core.errors import InvalidField
from core.latency_profile import FEMTOSECONDS, StepWork, chunk_pairs
from core.shards import ONE_RANK, ParallelShape
from tuner.load.metrics import Slo
from tuner.search.bounds import Resource, Traffic, bound_rate
from tuner.search.least_work import LeastWork, known_tokens
from tuner.search.outputs import cluster_yaml, values_yaml
from tuner.search.space import Accelerators, Budget, Candidate, PoolChoice, all_candidates
from tuner.search.specs import model_candidate, spec_of
from tuner.simulate.requests import RequestTrace

L40S = profile_of("l40s")


@given(st.integers(1, 20))
def test_candidates_spend_the_budget_and_no_more(count: int) -> None:
    budget = budget_of("h100", count)
    for candidate in all_candidates(budget, 4000, LIMITS):
        assert candidate.accelerators <= count
        left = count - candidate.accelerators
        assert all(left < pool.shape.num_ranks for pool in candidate.pools)


@given(st.integers(1, 12))
def test_without_spending_all_every_smaller_cluster_is_there(count: int) -> None:
    every = set(all_candidates(budget_of("h100", count), 4000, LIMITS, spend_all=False))
    if count > 1:
        smaller = all_candidates(budget_of("h100", count - 1), 4000, LIMITS, spend_all=False)
        assert {str(c) for c in smaller} <= {str(c) for c in every}
    assert {str(c) for c in all_candidates(budget_of("h100", count), 4000, LIMITS)} <= {
        str(c) for c in every
    }


def test_colocated_is_among_them_in_every_shape() -> None:
    budget = budget_of("h100", 8)
    colocated = [c for c in all_candidates(budget, 4000, LIMITS) if c.is_colocated]
    assert {c.decode[0].shape for c in colocated} == {
        engine.shape for engine in budget.decode.profile.engines if engine.shape.num_ranks <= 8
    }


def test_two_kinds_have_a_pool_each_or_serve_colocated_alone_or_together() -> None:
    prefill, decode = Accelerators(profile_of("h100"), 4), Accelerators(L40S, 8)
    colocated, one_to_one = set(), set()
    for candidate in all_candidates(Budget(prefill, decode), 4000, LIMITS):
        if candidate.prefill is None:
            colocated.add(tuple(pool.on.profile.hardware for pool in candidate.decode))
            continue
        assert candidate.prefill.on is prefill
        if candidate.is_one_to_one:
            one_to_one.add(str(candidate))
        else:
            assert candidate.prefill.accelerators == 4
            assert candidate.decode[0].accelerators == 8
    assert {"4P:4D, tp 1/tp 1", "4P:4D, tp 1/tp 2", "2P:2D, tp 2/tp 4"} <= one_to_one
    assert colocated == {("h100",), ("l40s",), ("h100", "l40s")}


def test_for_a_rate_two_kinds_serve_with_all_of_one_and_some_of_the_other() -> None:
    budget = Budget(Accelerators(profile_of("h100"), 2), Accelerators(L40S, 3))
    found = all_candidates(budget, 4000, LIMITS, spend_all=False)
    one_rank = [
        tuple(pool.replicas for pool in c.decode)
        for c in found
        if c.is_colocated and all(pool.shape == ONE_RANK for pool in c.decode)
    ]
    assert sorted(one_rank) == sorted(
        [(1,), (2,), (1,), (2,), (3,), (2, 1), (2, 2), (1, 3), (2, 3)]
    )


def test_a_shape_that_was_profiled_twice_makes_one_candidate() -> None:
    profile = profile_of("h100")
    beside = tuple(replace(engine, company=1) for engine in profile.engines)
    twice = Accelerators(replace(profile, engines=profile.engines + beside), 4)
    found = all_candidates(Budget(twice, twice), 4000, LIMITS)
    assert len(found) == len({str(candidate) for candidate in found})


def test_pools_between_which_no_transfer_was_profiled_are_no_candidate() -> None:
    profile = profile_of("h100")
    alone = Accelerators(replace(profile, transfers=()), 4)
    found = all_candidates(Budget(alone, alone), 4000, LIMITS)
    assert found
    assert all(candidate.is_colocated for candidate in found)


def test_a_request_that_no_worker_holds() -> None:
    with pytest.raises(InvalidField, match="100000000 tokens: take larger ones"):
        all_candidates(budget_of("h100", 8), 100_000_000, LIMITS)


def one_and_one(kind: str = "h100") -> Candidate:
    on = budget_of(kind, 2).decode
    pool = PoolChoice(on, 1, ONE_RANK, LIMITS)
    return Candidate(pool, (pool,))


def equal(prompt: int, answer: int, count: int = 10) -> RequestTrace:
    """Requests with so many tokens each."""
    ones = np.ones(count, dtype=np.int32)
    return RequestTrace("equal", np.arange(count, dtype=float), prompt * ones, answer * ones)


def test_long_prompts_are_bound_by_prefill_long_answers_by_decode() -> None:
    candidate = one_and_one()
    prompts, answers = Traffic.of(equal(8000, 10)), Traffic.of(equal(100, 2000))
    assert bound_rate(candidate, prompts, SLO).limited_by is Resource.PREFILL_COMPUTE
    assert bound_rate(candidate, answers, SLO).limited_by is Resource.DECODE_BANDWIDTH


def prompt_seconds(pool: PoolChoice, prompt_tokens: int) -> float:
    """Time to the first token of one prompt on an idle worker, without any cache."""
    chunk, step = pool.limits.max_num_batched_tokens, pool.engine.step
    time = 0
    for start in range(0, prompt_tokens, chunk):
        count = min(chunk, prompt_tokens - start)
        last = int(start + count == prompt_tokens)
        time += step.time(StepWork(count, last, chunk_pairs(start, count), 0, 0))
    return time / FEMTOSECONDS


def test_the_prefill_bound_is_the_time_of_one_prompt_after_the_other() -> None:
    candidate = one_and_one()
    assert candidate.prefill is not None
    rate = bound_rate(candidate, Traffic.of(equal(8192, 1)), SLO).rates[Resource.PREFILL_COMPUTE]
    assert rate == pytest.approx(1 / prompt_seconds(candidate.prefill, 8192), rel=0.01)


def test_a_tpot_that_no_step_keeps_leaves_nothing() -> None:
    bound = bound_rate(one_and_one(), Traffic.of(equal(1000, 100)), Slo(1.0, 1e-4))
    assert (bound.rate, bound.limited_by) == (0.0, Resource.DECODE_BANDWIDTH)


@given(st.integers(2, 10))
def test_more_of_everything_never_serves_less(count: int) -> None:
    trace = chat_trace()
    smaller = max(b.rate for _, b in bounded(candidates_of(count), trace))
    larger = max(b.rate for _, b in bounded(candidates_of(count + 1), trace))
    assert larger >= smaller * 0.999


def candidates_of(count: int) -> list[Candidate]:
    return all_candidates(budget_of("h100", count), 4000, LIMITS)


def test_a_tpot_that_enough_requests_keep_is_no_reason_to_serve_none() -> None:
    """Nine of ten prompts are short, and reading the long one's context takes too long."""
    trace = equal(100, 100)
    trace.prompt_tokens[0] = 100_000
    step = one_and_one().decode[0].engine.step
    slo = Slo(1.0, 1.1 * step.time(StepWork(1, 1, 0, 1, 150)) / FEMTOSECONDS)
    assert bound_rate(one_and_one(), Traffic.of(trace), slo).rate == 0.0
    assert bound_rate(one_and_one(), Traffic.of(trace, 0.9), slo).rate > 0.0


def test_answers_of_one_token_are_prefill_alone() -> None:
    bound = bound_rate(one_and_one(), Traffic.of(equal(1000, 1)), Slo(1.0, 1e-9))
    assert bound.limited_by is Resource.PREFILL_COMPUTE
    assert bound.rates[Resource.DECODE_BANDWIDTH] == bound.rates[Resource.KV_MEMORY] == inf
    assert Resource.LINK not in bound.rates


def test_every_pair_of_replicas_has_a_link() -> None:
    def link(prefills: int, decodes: int) -> float:
        pool = one_and_one().decode[0]
        candidate = Candidate(replace(pool, replicas=prefills), (replace(pool, replicas=decodes),))
        return bound_rate(candidate, Traffic.of(equal(1000, 10)), SLO).rates[Resource.LINK]

    assert link(2, 3) == pytest.approx(6 * link(1, 1))


def sharing(*of_prompts: list[int]) -> RequestTrace:
    """Prompts of 1,024 tokens and one of 512, with these parts of 512."""
    count = len(of_prompts)
    return RequestTrace(
        "t",
        np.arange(count, dtype=float),
        np.array([1024] * (count - 1) + [512], dtype=np.int32),
        np.ones(count, dtype=np.int32),
        [np.array(ids, dtype=np.int32) for ids in of_prompts],
    )


def test_an_endless_cache_knows_whole_shared_parts() -> None:
    # The third prompt is all known, but its last token is always computed.
    assert known_tokens(sharing([0, 1], [0, 2], [0])).tolist() == [0, 512, 511]
    assert known_tokens(sharing([], [], [])).tolist() == [0, 0, 0]


def test_new_tokens_attend_to_those_that_a_cache_holds() -> None:
    least = LeastWork.of(sharing([0, 1], [0, 2], [0]), 1.0)
    assert least.new_tokens * 3 == 1024 + 512 + 1
    assert least.pairs * 3 == 1024 * 1025 / 2 + (1024 * 1025 - 512 * 513) / 2


def test_sequences_that_share_a_prompt_share_its_memory() -> None:
    def memory(trace: RequestTrace) -> float:
        on = replace(L40S, engines=(replace(L40S.engine(ONE_RANK), kv_tokens=4000),))
        candidate = Candidate(None, (PoolChoice(Accelerators(on, 1), 1, ONE_RANK, LIMITS),))
        traffic = Traffic.of(replace(trace, output_tokens=trace.output_tokens * 100))
        return bound_rate(candidate, traffic, SLO).rates[Resource.KV_MEMORY]

    apart = memory(sharing(*([i, 100 + i] for i in range(50)), [999]))
    assert memory(sharing(*([0, 1] for _ in range(50)), [0])) > 3 * apart


@given(st.floats(0.1, 1.0), st.integers(0, 9))
def test_the_fewer_have_to_be_served_the_more_may_be_offered(share: float, seed: int) -> None:
    trace = chat_trace(50, seed)
    traffic, all_of_it = Traffic.of(trace, share), Traffic.of(trace)
    bound = bound_rate(one_and_one(), traffic, SLO).rate
    assert bound >= bound_rate(one_and_one(), all_of_it, SLO).rate * 0.999


def test_the_winner_as_a_config_is_what_was_simulated() -> None:
    import yaml

    shape = ParallelShape(2, 1)
    on = budget_of("h100", 8).decode
    candidate = Candidate(PoolChoice(on, 2, shape, LIMITS), (PoolChoice(on, 4, ONE_RANK, LIMITS),))
    spec = spec_of(candidate, ClusterSpec(), candidate.decode[0])
    written = cluster_yaml(spec, "two\nlines")
    assert written.startswith("# two\n# lines\n")
    assert ClusterSpec.model_validate(yaml.safe_load(written)) == spec
    assert spec.pools.prefill.shape == shape
    assert spec.engine.device == "cuda"
    smallest = min(pool.engine.kv_tokens / pool.shape.num_ranks for pool in candidate.pools)
    assert spec.kv.memory == int(smallest * on.profile.kv_bytes_per_token)
    simulated = model_candidate(candidate, ClusterSpec()).workers
    assert [worker.num_blocks for worker in simulated] == [
        spec.kv.memory * shape.num_ranks // (on.profile.kv_bytes_per_token * 16)
        for shape in (ParallelShape(2, 1), ONE_RANK)
    ]
    values = yaml.safe_load(values_yaml(spec, ""))
    assert ClusterSpec.model_validate(values["cluster"]) == spec
