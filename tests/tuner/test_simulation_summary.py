"""What is counted of a simulation: all of it, or what comes after a cluster has filled up."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_clusters import cluster, clusters, trace, traces, workers

from amounts import examples
from core.request import Role
from tuner.load.metrics import Slo
from tuner.simulate.cluster_model import ClusterModel
from tuner.simulate.period import Period, tokens_out
from tuner.simulate.pools import pool_courses, summarize_pools
from tuner.simulate.requests import RequestTrace
from tuner.simulate.result import SimulationResult
from tuner.simulate.simulator import simulate
from tuner.simulate.summary import summarize

SLO = Slo(1.0, 0.05)
MIXED = cluster(workers(Role.MIXED, 2))


def steady(count: int, every_s: float = 0.05) -> RequestTrace:
    return trace(*((every_s * i, 40, 30) for i in range(count)))


@given(traces(), clusters())
@settings(max_examples=examples(40))
def test_nothing_skipped_counts_all_that_happened(
    requests: RequestTrace, model: ClusterModel
) -> None:
    result = simulate(requests, model)
    summary = summarize(result, SLO)
    done = np.isfinite(result.last_token_s)
    assert summary.requests == len(requests)
    assert summary.requests_per_s * summary.elapsed_s == pytest.approx(done.sum())
    assert summary.elapsed_s == result.ended_s
    if done.all():
        tokens = summary.output_tokens_per_s * summary.elapsed_s
        assert tokens == pytest.approx(result.output_tokens.sum())
    for pool in summary.pools:
        of_role = [worker.busy_s for worker in result.workers if worker.role is pool.role]
        busy_s = pool.busy * summary.elapsed_s * pool.workers
        assert busy_s == pytest.approx(sum(of_role), rel=1e-6)


@given(traces(), clusters(), st.lists(st.floats(0, 1), min_size=1, max_size=4))
@settings(max_examples=examples(40))
def test_periods_one_after_the_other_hold_every_token_once(
    requests: RequestTrace, model: ClusterModel, cuts: list[float]
) -> None:
    result = simulate(requests, model)
    # Between two tokens a moment later would be counted twice where one comes exactly at a cut.
    edges = np.unique([0.0, *(cut * result.ended_s * 0.999_983 for cut in cuts), result.ended_s])
    periods = [Period(start, end) for start, end in pairwise(edges)]
    whole = tokens_out(result, Period(0.0, result.ended_s))
    assert sum(tokens_out(result, period) for period in periods) == pytest.approx(whole)


def test_a_cluster_that_fills_and_drains_is_counted_in_between() -> None:
    """Each answer takes about a third of a second, requests come for two seconds and more."""
    roomy = cluster(workers(Role.MIXED, 2, num_blocks=4000, max_num_seqs=64))
    result = simulate(trace(*((0.02 * i, 40, 150) for i in range(120))), roomy)
    whole, counted = summarize(result, SLO), summarize(result, SLO, skipped=60)
    assert counted.requests == counted.completed == 60
    assert counted.elapsed_s == counted.window_s == pytest.approx(59 * 0.02)
    # As much comes out as comes in, once all stay as long as those before.
    assert counted.requests_per_s == pytest.approx(50, rel=0.03)
    assert counted.output_tokens_per_s == pytest.approx(50 * 150, rel=0.03)
    assert counted.input_tokens_per_s == pytest.approx(50 * 40, rel=0.03)
    assert whole.output_tokens_per_s < 0.95 * counted.output_tokens_per_s
    assert whole.pools[0].busy <= counted.pools[0].busy
    assert counted.goodput.requests_per_s == pytest.approx(50, rel=0.03)


def test_latencies_and_goodput_are_those_of_counted_requests() -> None:
    # At first twenty at once, then one after the other.
    crowd = [(0.0, 40, 30)] * 20
    requests = trace(*crowd, *((2.0 + 0.5 * i, 40, 30) for i in range(10)))
    result = simulate(requests, cluster(workers(Role.MIXED, 1)))
    strict = Slo(0.02, 0.05)
    whole, counted = summarize(result, strict), summarize(result, strict, skipped=20)
    assert counted.goodput.share == 1.0 > whole.goodput.share
    assert counted.goodput.requests_per_s == pytest.approx(10 / 4.5)
    assert counted.ttft_s is not None
    assert whole.ttft_s is not None
    assert counted.ttft_s.max < whole.ttft_s.p50
    assert counted.pools[0].waiting_max == 0 < whole.pools[0].waiting_max


def cut_off(seconds: float) -> SimulationResult:
    return simulate(steady(100), MIXED, until_s=seconds)


def test_a_simulation_that_was_cut_off_is_counted_up_to_then() -> None:
    result = cut_off(3.0)
    summary = summarize(result, SLO, skipped=20)
    assert summary.requests == 80
    assert summary.completed < 80
    assert summary.elapsed_s == pytest.approx(result.ended_s - 1.0)
    assert summary.output_tokens_per_s == pytest.approx(20 * 30, rel=0.15)


def test_cut_off_before_the_first_counted_request_leaves_nothing_to_count() -> None:
    summary = summarize(cut_off(0.5), SLO, skipped=20)
    assert (summary.completed, summary.elapsed_s, summary.output_tokens_per_s) == (0, 0.0, 0.0)
    assert summary.ttft_s is None
    assert [pool.busy for pool in summary.pools] == [0.0]


def test_pools_over_time_are_between_their_least_and_their_most() -> None:
    split = cluster(workers(Role.PREFILL, 2), workers(Role.DECODE, 3))
    result = simulate(steady(200, every_s=0.01), split)
    courses = pool_courses(result)
    assert [pool.role for pool in courses] == [Role.PREFILL, Role.DECODE]
    for pool in courses:
        assert (np.diff(pool.at_s) > 0).all()
        for course in (pool.busy, pool.waiting, pool.running, pool.used_blocks):
            assert len(course.mean) == len(pool.at_s)
            assert (course.least <= course.mean + 1e-12).all()
            assert (course.mean <= course.most + 1e-12).all()
    decode = courses[1]
    period = Period(0.0, result.ended_s)
    waiting = summarize_pools(result, period)[1].waiting_mean
    assert waiting == pytest.approx(decode.waiting.mean[period.holds(decode.at_s)].mean())
    assert decode.running.most.max() > 0
