"""The highest rate takes few trials: latencies say how far off it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bounded_worlds import profile_of_steps
from hypothesis import given
from hypothesis import strategies as st
from search_worlds import GOAL, LIMITS, bounded, budget_of, chat_trace, summary_at

from core.config import ClusterSpec
from core.latency_profile import RowCurve, StepModel, TransferModel
from core.shards import ONE_RANK
from tuner.load.metrics import Slo
from tuner.search.bench import ClusterJob, Traced
from tuner.search.evaluate import Goal, Trial, try_rate
from tuner.search.finals import FINAL
from tuner.search.halving import Job
from tuner.search.laboratory import Laboratory
from tuner.search.rate_search import RateSearch, Reached, highest_rate
from tuner.search.space import Accelerators, Candidate, Limits, PoolChoice, all_candidates
from tuner.search.specs import model_candidate
from tuner.search.window import Counted, Window, source_of

_FINE = RateSearch(1.0, 20.0, 1.03, 0.03)


def reach(limit: float, search: RateSearch, promise: float = 0.0) -> Reached:
    """``promise``: the share of the way to the limit that a trial's headroom tells."""

    def attempt(rate: float) -> Trial:
        share = 0.95 if rate <= limit else 0.1
        trial = Trial(rate, share, summary_at(rate, share))
        return replace(trial, headroom=max(1.0, 1 + promise * (limit / rate - 1)))

    return highest_rate(attempt, GOAL, search)


@pytest.mark.parametrize("limit", [1.001, 0.999, 0.971])
def test_a_good_guess_takes_two_trials(limit: float) -> None:
    assert reach(limit, _FINE).simulations == 2


def test_headroom_shortens_the_way_up() -> None:
    assert reach(1.14, _FINE, promise=1.0).simulations == 3 < reach(1.14, _FINE).simulations


@given(st.floats(0.5, 10.0), st.floats(0.0, 3.0))
def test_the_precision_is_kept_whatever_latencies_promise(limit: float, promise: float) -> None:
    assert limit / 1.03001 <= reach(limit, _FINE, promise).rate <= limit


def test_the_nearest_of_trials_that_are_alike_is_that_of_the_least_load() -> None:
    reached = reach(0.0, _FINE)
    assert reached.nearest is not None
    assert reached.nearest.rate < 0.5 < _FINE.guess


def one_worker() -> Candidate:
    """That serves 1,000 prompts of 100 tokens per second, in steps of 1 ms for each prompt."""
    step = StepModel(RowCurve(((1, 10**10), (1000, 10**13))), 0, 0, 0)
    profile = profile_of_steps(step, ONE_RANK, 1 << 20, TransferModel(1, 1))
    pool = PoolChoice(Accelerators(profile, 1), 1, ONE_RANK, Limits(256, 1000))
    return Candidate(None, (pool,))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("load", "low", "high"), [(0.7, 1.15, 1.5), (1.04, 1.01, 1.15), (1.4, 1, 1)]
)
def test_headroom_is_what_is_left_of_the_limits(load: float, low: float, high: float) -> None:
    goal = Goal(Slo(0.3, 0.05), 90.0)
    trace = source_of(chat_trace(400), 0)
    lengths = np.full(len(trace), 100, dtype=np.int32)
    source = replace(trace, prompt_tokens=lengths, output_tokens=np.ones_like(lengths))
    window = Window(source, load * 1000, Counted.of(0.3, 0.3, 1.0))
    cluster = model_candidate(one_worker(), ClusterSpec())
    assert low <= try_rate(cluster, window, goal, to_the_end=False).headroom <= high


@pytest.mark.processes
def test_several_processes_find_what_one_finds() -> None:
    trace = chat_trace(60)
    pairs = bounded(all_candidates(budget_of("h100", 2), 4000, LIMITS), trace)
    given_ = Traced(trace, ClusterSpec(), GOAL, 0)
    rung = replace(FINAL, precision=0.2)
    jobs = [Job(c, rung, 0.8 * bound.rate, bound.rate, 1.2) for c, bound in pairs]
    # Nothing meets it there: told by a trial that goes to the end.
    candidate, bound = pairs[0]
    hopeless = 3 * bound.rate
    jobs.append(Job(candidate, rung, hopeless, hopeless, 1.2, floor=hopeless, is_told=True))
    with Laboratory(given_, processes=1) as alone, Laboratory(given_, processes=2) as both:
        expected = alone.measure(jobs)
        found = both.clusters([ClusterJob(job) for job in jobs])
    assert [one.rate for one in found] == [one.rate for one in expected]
    assert [one.told for one in found] == [one.told for one in expected]
    assert found[-1].told is not None
    assert not found[-1].told.is_cut_short
