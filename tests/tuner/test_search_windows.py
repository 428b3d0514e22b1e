"""What is simulated of a trace, and of a cluster."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_worlds import GOAL, LIMITS, SLO, budget_of, chat_trace, profile_of, shared_trace

from core.config import ClusterSpec
from core.request import Role
from core.shards import ONE_RANK
from tuner.search.bounds import Traffic
from tuner.search.conditions import Conditions
from tuner.search.evaluate import try_rate
from tuner.search.single_replica import SingleReplica, replicas_of
from tuner.search.space import Candidate, PoolChoice
from tuner.search.specs import MOST_WORKERS, divisor_of, part_of
from tuner.search.uncertainty import perturbed_profile
from tuner.search.window import Counted, Window, source_of


@given(st.floats(0.5, 500.0), st.floats(0.1, 20.0), st.floats(0.1, 20.0), st.floats(0.0, 5.0))
def test_a_window_has_the_traffic_of_its_time_or_many_answers_of_it(
    rate: float, filling_s: float, counted_s: float, answer_s: float
) -> None:
    excerpt = Window(chat_trace(50), rate, Counted(filling_s, counted_s, answer_s)).excerpt()
    assert excerpt.filling >= min(rate * filling_s, max(300, 2 * rate * answer_s))
    assert excerpt.counted >= min(rate * counted_s, max(1200, 2 * rate * answer_s))
    assert excerpt.counted >= 100
    assert np.isclose(excerpt.trace.rate, rate)
    counts = excerpt.counted / rate + excerpt.further_s
    assert counts >= counted_s * (1 - 1e-9)
    assert not excerpt.further_s or np.isclose(counts, counted_s)


def test_no_time_is_left_out_at_a_low_rate_or_of_long_answers() -> None:
    trace = chat_trace(50)
    assert not Window(trace, 40.0, Counted.of(5.0, 1.0, 1.0)).excerpt().further_s
    assert not Window(trace, 400.0, Counted.of(12.0, 1.0, 1.0)).excerpt().further_s
    assert Window(trace, 4000.0, Counted.of(1.2, 1.0, 1.0)).excerpt().further_s > 7


def test_a_burst_at_the_beginning_has_the_rate_of_the_whole_trace() -> None:
    trace = chat_trace(400)
    burst = np.concatenate([np.zeros(150), trace.arrivals_s[150:]])
    window = Window(replace(trace, arrivals_s=burst), 5.0, Counted(1.0, 2.0, 1.0))
    requests = window.excerpt().trace
    assert len(requests) >= 100
    assert not requests.rate


def test_longer_requests_stay_within_the_longest() -> None:
    trace = chat_trace(200)
    longest = (trace.prompt_tokens + trace.output_tokens).max()
    for conditions in (Conditions(prompts=1.2), Conditions(answers=1.2)):
        source = conditions.traffic(trace, 0, 0.9).source
        lengths = source.prompt_tokens + source.output_tokens
        assert lengths.max() == longest
        assert lengths.mean() > (trace.prompt_tokens + trace.output_tokens).mean()
        assert source.output_tokens.min() >= 1


def test_workers_that_share_cores_are_not_divided() -> None:
    on = budget_of("h100", 100).decode
    pool = PoolChoice(on, 40, ONE_RANK, LIMITS)
    assert divisor_of(Candidate(None, (pool,))) > 1
    assert divisor_of(Candidate(None, (replace(pool, host_cores=16),))) == 1


def test_a_short_trace_is_repeated_with_prefixes_of_its_own() -> None:
    trace = shared_trace(20)
    repeated = Window(trace, 10.0, Counted(1.0, 5.0, 1.0)).excerpt().trace
    once, again = repeated.shared[:20], repeated.shared[20:40]
    assert not {i for ids in once for i in ids.tolist()} & {
        i for ids in again for i in ids.tolist()
    }


def test_lengths_are_reordered_only_where_nothing_is_shared() -> None:
    alone, shared = chat_trace(200), shared_trace(200)
    drawn = source_of(alone, 1)
    assert sorted(drawn.prompt_tokens) == sorted(alone.prompt_tokens)
    assert (drawn.prompt_tokens != alone.prompt_tokens).any()
    assert (drawn.prompt_tokens != source_of(alone, 2).prompt_tokens).any()
    assert (drawn.arrivals_s == alone.arrivals_s).all()
    assert source_of(shared, 1) is shared


@given(st.integers(1, 60), st.integers(1, 30))
def test_resampling_leaves_out_no_request(count: int, parts: int) -> None:
    resampled = chat_trace(count).resampled(np.random.default_rng(0), parts)
    assert len(resampled) == count


@given(st.integers(1, 40), st.integers(1, 40))
def test_parts_of_a_large_cluster_have_its_ratio(prefills: int, decodes: int) -> None:
    on = budget_of("h100", 100).decode
    whole = Candidate(
        PoolChoice(on, prefills, ONE_RANK, LIMITS), (PoolChoice(on, decodes, ONE_RANK, LIMITS),)
    )
    divisor = divisor_of(whole)
    part = part_of(whole, divisor)
    assert part.ratio == whole.ratio
    assert divisor == 1 or prefills + decodes > MOST_WORKERS
    assert all(
        mine.replicas * divisor == all_.replicas
        for mine, all_ in zip(part.pools, whole.pools, strict=True)
    )


def test_seed_and_kind_of_hardware_decide_what_is_drawn() -> None:
    h100, l4 = profile_of("h100"), profile_of("l4")

    def factor(kind: str, number: int, seed: int) -> float:
        before = {"h100": h100, "l4": l4}[kind]
        after = perturbed_profile(before, number, seed)
        return after.engines[0].step.rows.at(1000) / before.engines[0].step.rows.at(1000)

    assert factor("h100", 1, 0) == factor("h100", 1, 0)
    others = {factor("h100", 2, 0), factor("h100", 1, 1), factor("l4", 1, 0)}
    assert len(others | {factor("h100", 1, 0)}) == 4


def test_a_prefill_replica_is_asked_for_one_token_and_the_other_end_takes_no_time() -> None:
    on = budget_of("h100", 2).decode
    pool = PoolChoice(on, 3, ONE_RANK, LIMITS)
    prefill, decode = replicas_of(Candidate(pool, (pool,)))
    assert set(prefill.requests(chat_trace()).output_tokens.tolist()) == {1}
    assert (decode.requests(chat_trace()).output_tokens > 1).all()
    for replica in (prefill, decode):
        own, other = sorted(
            replica.cluster(ClusterSpec()).workers, key=lambda w: w.role is not replica.role
        )
        assert own.count == 1
        assert own.engine == on.profile.engine(ONE_RANK)
        assert other.engine.step.rows.at(1000) == 1


@pytest.mark.thorough
def test_a_replica_that_gets_more_than_it_can_serve_misses_the_goal() -> None:
    on = budget_of("h100", 2).decode
    pool = PoolChoice(on, 1, ONE_RANK, LIMITS)
    for replica in replicas_of(Candidate(pool, (pool,))):
        trace = replica.requests(chat_trace())
        for times, is_met in ((0.7, True), (1.5, False)):
            rate = times * replica.bound(Traffic.of_all(chat_trace(), GOAL.share), SLO)
            window = Window(trace, rate, Counted(3.0, 6.0, 0.0))
            trial = try_rate(replica.cluster(ClusterSpec()), window, GOAL, to_the_end=False)
            assert trial.meets(GOAL) is is_met, (replica.role, times, trial.share)


def test_longer_answers_are_served_at_a_lower_rate() -> None:
    on = budget_of("h100", 1).decode
    mixed = SingleReplica(Role.MIXED, PoolChoice(on, 1, ONE_RANK, LIMITS))
    trace = chat_trace()
    plain = Conditions().traffic(trace, 0, 1.0)
    longer = Conditions(answers=1.2).traffic(trace, 0, 1.0)
    assert longer.means.prompt_tokens == plain.means.prompt_tokens
    assert mixed.bound(longer.means, SLO) < mixed.bound(plain.means, SLO)
    assert mixed.bound(Traffic.of(trace), SLO) == mixed.bound(plain.means, SLO)
