"""A simulated cluster takes as long as its parts, answers everything and leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_clusters import (
    STEP,
    TRANSFER,
    check_nothing_is_left,
    cluster,
    clusters,
    expanded,
    trace,
    traces,
    workers,
)

from amounts import examples
from core.errors import InvalidField
from core.handoff import LeaseTimes
from core.latency_profile import FEMTOSECONDS, StepWork
from core.request import Role
from router.placement import Disaggregation
from tuner.load.metrics import Slo
from tuner.simulate.cluster_model import ClusterModel
from tuner.simulate.miss_limit import MissLimit
from tuner.simulate.requests import RequestTrace
from tuner.simulate.simulator import Simulation, simulate
from tuner.simulate.summary import met

MESSAGE, REQUEST = 1e-4, 1e-3


def prefill_s(tokens: int, start: int = 0, sampled: int = 1) -> float:
    pairs = tokens * start + tokens * (tokens + 1) // 2
    return STEP.time(StepWork(tokens, sampled, pairs, 0, 0)) / FEMTOSECONDS


def decode_s(*lengths: int) -> float:
    """A step of sequences that are so long with the token that is computed."""
    count = len(lengths)
    return STEP.time(StepWork(count, count, 0, count, sum(lengths))) / FEMTOSECONDS


def transfer_s(tokens: int) -> float:
    return TRANSFER.time(tokens) / FEMTOSECONDS


def test_a_request_on_a_mixed_worker_takes_its_way_its_prompt_and_its_tokens() -> None:
    result = simulate(trace((0.0, 10, 3)), cluster(workers(Role.MIXED, 1)))
    ttft = 2 * REQUEST + 2 * MESSAGE + prefill_s(10)
    assert result.ttft_s == pytest.approx([ttft], abs=1e-12)
    assert result.tpot_s == pytest.approx([(decode_s(11) + decode_s(12)) / 2], abs=1e-12)
    assert expanded(result.gaps) == pytest.approx([decode_s(11), decode_s(12)], abs=1e-12)
    assert (result.attempts.tolist(), result.prefill_worker.tolist()) == ([1], [-1])
    assert result.ended_s == pytest.approx(result.last_token_s[0])


def test_a_handed_off_request_takes_the_transfer_and_one_more_message() -> None:
    """Open and prompt leave together; the ticket is there before the prompt is computed."""
    result = simulate(trace((0.5, 10, 3)), pair())
    ttft = 2 * REQUEST + 3 * MESSAGE + prefill_s(10) + transfer_s(12)
    assert result.ttft_s == pytest.approx([ttft], abs=1e-12)
    assert result.last_token_s - result.first_token_s == pytest.approx(
        [decode_s(11) + decode_s(12)], abs=1e-12
    )
    assert (result.prefill_worker.tolist(), result.decode_worker.tolist()) == ([0], [1])
    assert result.transferred_tokens == 12
    assert result.transfer_busy_s == pytest.approx(transfer_s(12))
    prefill, decode = result.workers
    assert (prefill.prefill_tokens, decode.decode_tokens) == (10, 2)
    assert prefill.busy_s == pytest.approx(prefill_s(10))
    assert decode.busy_s == pytest.approx(decode_s(11) + decode_s(12))


def test_finished_blocks_travel_while_the_next_chunk_is_computed() -> None:
    result = simulate(trace((0.0, 100, 2)), pair(budget=64))
    last_chunk = prefill_s(64, sampled=0) + prefill_s(36, start=64)
    ttft = 2 * REQUEST + 3 * MESSAGE + last_chunk + transfer_s(36)
    assert result.ttft_s == pytest.approx([ttft], abs=1e-12)


def test_an_answer_of_one_token_comes_from_the_prefill_worker() -> None:
    result = simulate(trace((0.0, 10, 1)), pair())
    assert result.ttft_s == pytest.approx([2 * REQUEST + 2 * MESSAGE + prefill_s(10)], abs=1e-12)
    assert np.isnan(result.tpot_s).all()
    assert result.workers[1].steps == 0


def test_the_second_prompt_waits_for_the_first_and_finds_its_prefix() -> None:
    """Both share 16 tokens; the second arrives when the first has just been computed."""
    together = trace((0.0, 20, 2), (1.0, 20, 2), shared=[[7, 8], [7, 8]])
    result = simulate(together, cluster(workers(Role.MIXED, 1)))
    assert result.cached_tokens.tolist() == [0, 16]
    ttft = 2 * REQUEST + 2 * MESSAGE + prefill_s(4, start=16)
    assert result.ttft_s[1] == pytest.approx(ttft, abs=1e-12)
    assert result.workers[0].prefix_tokens_hit == 16


def test_two_answers_share_each_step() -> None:
    result = simulate(trace((0.0, 10, 3), (0.0, 10, 3)), cluster(workers(Role.MIXED, 1)))
    first = prefill_s(10)
    # The second prompt came with the first one's step under way, and is computed beside its token.
    both = STEP.time(StepWork(11, 2, 55, 1, 11)) / FEMTOSECONDS
    way = 2 * REQUEST + 2 * MESSAGE
    assert result.ttft_s == pytest.approx([way + first, way + first + both], abs=1e-12)
    ends = [decode_s(12, 11), decode_s(12, 11) + decode_s(12)]
    assert result.last_token_s == pytest.approx(
        [way + first + both + end for end in ends], abs=1e-12
    )


def test_a_pipeline_of_two_stages_computes_two_chunks_at_once() -> None:
    group = workers(Role.MIXED, 1, budget=64, pipeline=2)
    result = simulate(trace((0.0, 128, 1)), cluster(group))
    one, two = prefill_s(64, sampled=0), prefill_s(64, start=64)
    assert result.ttft_s == pytest.approx(
        [2 * REQUEST + 2 * MESSAGE + one / 2 + max(one / 2, two / 2) + two / 2], abs=1e-12
    )


def test_utilization_and_queues_are_sampled() -> None:
    requests = [(0.0, 40, 150)] * 12
    result = simulate(trace(*requests), cluster(workers(Role.MIXED, 1, max_num_seqs=4)))
    track = result.workers[0]
    assert len(track.at_s) == len(track.busy) > 2
    assert track.waiting.max() == 8
    assert track.running.max() == 4
    assert 0 < track.used_blocks.max() <= track.num_blocks
    assert track.busy[1] == pytest.approx(1.0)
    assert (track.busy <= 1.0 + 1e-9).all()


def test_what_is_longer_than_the_model_takes_is_refused() -> None:
    short = replace(cluster(workers(Role.MIXED, 1)), max_model_len=30)
    result = simulate(trace((0.0, 20, 5), (0.0, 26, 5)), short)
    assert result.failures == {1: "PROMPT_TOO_LONG: 26 tokens in, 5 out, at most 30"}


def test_what_no_worker_can_hold_is_refused_and_hurts_nobody() -> None:
    small = cluster(workers(Role.PREFILL, 1), workers(Role.DECODE, 1, num_blocks=12))
    result = simulate(trace((0.0, 20, 5), (0.0, 500, 5), (0.0, 40, 9), (0.0, 20, 5)), small)
    assert list(result.failures) == [1, 2]
    assert result.failures[1] == "PROMPT_TOO_LONG: 500 tokens in, 5 out, at most 48"
    assert np.isfinite(result.last_token_s[[0, 3]]).all()
    assert np.isnan(result.first_token_s[[1, 2]]).all()


def test_a_cluster_that_must_disaggregate_and_cannot_says_so() -> None:
    mixed = replace(cluster(workers(Role.MIXED, 1)), disaggregation=Disaggregation.ALWAYS)
    assert simulate(trace((0.0, 20, 5)), mixed).failures == {0: "NO_WORKER"}


def test_a_full_decode_worker_makes_the_router_try_again() -> None:
    """D has room for one answer at a time, and that one takes longer than a reserve may wait."""
    narrow = cluster(workers(Role.PREFILL, 1), workers(Role.DECODE, 1, max_num_seqs=1, budget=8))
    impatient = replace(narrow, times=LeaseTimes(no_room=0.5))
    result = simulate(trace((0.0, 20, 700), (0.0, 20, 700)), impatient)
    assert result.failures == {}
    first, second = np.argsort(result.first_token_s)
    assert result.attempts[first] == 1
    # The answer before it took longer than half a second, so at least one reserve was refused.
    assert result.last_token_s[first] > 0.5
    assert result.attempts[second] > 1
    assert result.first_token_s[second] > result.last_token_s[first]


def test_it_can_be_stopped_early() -> None:
    result = simulate(trace((0.0, 10, 3), (5.0, 10, 3)), pair(), until_s=2.0)
    assert np.isfinite(result.last_token_s).tolist() == [True, False]
    assert result.failures == {}
    assert result.ended_s <= 2.0


@settings(max_examples=examples(60), deadline=None)
@given(
    traces(),
    clusters(),
    st.sampled_from([0.005, 0.02, 0.1, 0.5]),
    st.sampled_from([0.001, 0.002, 0.01]),
    st.integers(0, 5),
    st.integers(0, 20),
)
def test_too_many_misses_end_it_and_only_they(
    requests: RequestTrace,
    model: ClusterModel,
    ttft: float,
    tpot: float,
    skipped: int,
    most_missed: int,
) -> None:
    slo = Slo(ttft, tpot)
    whole = simulate(requests, model)
    cut = simulate(requests, model, miss_limit=MissLimit(ttft, tpot, skipped, most_missed))
    missed = int((~met(whole, slo)[skipped:]).sum())
    if missed <= most_missed:
        assert not cut.is_cut_short
    if cut.is_cut_short:
        assert int((~met(cut, slo)[skipped:]).sum()) > most_missed
        assert cut.ended_s <= whole.ended_s
    else:
        np.testing.assert_array_equal(cut.last_token_s, whole.last_token_s)


def test_a_hopeless_rate_is_given_up_long_before_its_end() -> None:
    requests = trace(*((0.001 * i, 60, 30) for i in range(400)))
    model = cluster(workers(Role.MIXED, 1))
    whole = simulate(requests, model)
    cut = simulate(requests, model, miss_limit=MissLimit(0.05, 0.01, 10, 39))
    assert cut.is_cut_short
    assert not whole.is_cut_short
    assert cut.decisions < 0.2 * whole.decisions


def test_progress_rises_to_one() -> None:
    told: list[float] = []
    simulate(trace(*[(0.0, 10, 30)] * 200), pair(), progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_a_seed_decides_and_nothing_else_does() -> None:
    many = trace(*[(0.01 * i, 30, 20) for i in range(40)])
    four = cluster(workers(Role.MIXED, 4))
    one, again, other = (simulate(many, four, seed=seed) for seed in (1, 1, 2))
    assert one.decode_worker.tolist() == again.decode_worker.tolist()
    np.testing.assert_array_equal(one.last_token_s, again.last_token_s)
    assert one.decode_worker.tolist() != other.decode_worker.tolist()


def test_a_cluster_that_cannot_answer_is_refused() -> None:
    with pytest.raises(InvalidField, match="must decode"):
        simulate(trace((0.0, 1, 1)), cluster(workers(Role.PREFILL, 1)))
    with pytest.raises(InvalidField, match="transfer"):
        simulate(trace((0.0, 1, 1)), replace(pair(), transfer=None))


@settings(max_examples=examples(60))
@given(traces(), clusters(), st.integers(0, 3))
def test_every_request_has_one_outcome_and_nothing_leaks(
    requests: RequestTrace, model: ClusterModel, seed: int
) -> None:
    simulation = Simulation(requests, model, seed=seed)
    simulation.run()
    check_nothing_is_left(simulation)
    result = simulation.result()
    answered = np.isfinite(result.last_token_s)
    assert answered.tolist() == [i not in result.failures for i in range(len(requests))]
    assert (result.first_token_s[answered] > result.arrivals_s[answered]).all()
    assert (result.last_token_s[answered] >= result.first_token_s[answered]).all()
    assert (result.decode_worker[answered] >= 0).all()
    # Every token but the first of an answer came a gap after the one before it.
    assert len(expanded(result.gaps)) == (result.output_tokens[answered] - 1).sum()


def pair(budget: int = 64) -> ClusterModel:
    return cluster(workers(Role.PREFILL, 1, budget=budget), workers(Role.DECODE, 1))
