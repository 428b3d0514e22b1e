"""Overload is seen by how latencies grow, before any limit is missed."""

from __future__ import annotations

import numpy as np
import pytest
from bounded_worlds import profile_of_steps
from search_worlds import chat_trace

from core.config import ClusterSpec
from core.latency_profile import RowCurve, StepModel, TransferModel
from core.shards import ONE_RANK
from tuner.load.metrics import Slo
from tuner.search import window
from tuner.search.evaluate import Goal, Trial, try_rate
from tuner.search.space import Accelerators, Candidate, Limits, PoolChoice
from tuner.search.specs import model_candidate
from tuner.search.trend import slope_of
from tuner.search.window import Counted, Window, source_of

# Of prompts of one length that cost 1 ms each, whatever else is in the step.
_TRACE = chat_trace(400)
_SERVED = 1000.0
_GOAL = Goal(Slo(0.3, 0.05), 90.0)


def one_worker() -> Candidate:
    """That serves ``_SERVED`` prompts per second."""
    step = StepModel(RowCurve(((1, 10**10), (1000, 10**13))), 0, 0, 0)
    profile = profile_of_steps(step, ONE_RANK, 1 << 20, TransferModel(1, 1))
    pool = PoolChoice(Accelerators(profile, 1), 1, ONE_RANK, Limits(256, 1000))
    return Candidate(None, (pool,))


def trial_at(rate: float) -> Trial:
    trace = source_of(_TRACE, 0)
    lengths = np.full(len(trace), 100, dtype=np.int32)
    ones = np.ones(len(trace), dtype=np.int32)
    source = type(trace)("prompts", trace.arrivals_s, lengths, ones)
    counted = Counted.of(_GOAL.slo.ttft_s, _GOAL.slo.ttft_s, 1.0)
    cluster = model_candidate(one_worker(), ClusterSpec())
    return try_rate(cluster, Window(source, rate, counted), _GOAL, to_the_end=False)


@pytest.mark.parametrize("load", [pytest.param(0.95, marks=pytest.mark.thorough), 1.06])
def test_what_eight_limits_would_bear_passes(load: float) -> None:
    trial = trial_at(load * _SERVED)
    assert trial.further_s > 0
    assert trial.meets(_GOAL)


@pytest.mark.thorough
@pytest.mark.parametrize("load", [1.15, 1.19])
def test_an_overload_is_missed_though_nobody_was_late_yet(load: float) -> None:
    trial = trial_at(load * _SERVED)
    assert trial.summary.goodput.share == 1.0
    assert not trial.meets(_GOAL)
    assert trial.growth == pytest.approx(load - 1, abs=0.05)


@pytest.mark.thorough
@pytest.mark.parametrize("load", [1.05, 1.25])
def test_a_whole_window_says_the_same(load: float, monkeypatch: pytest.MonkeyPatch) -> None:
    short = trial_at(load * _SERVED)
    monkeypatch.setattr(window, "_FILLING", 1e9)
    monkeypatch.setattr(window, "_COUNTED", 1e9)
    whole = trial_at(load * _SERVED)
    assert not whole.further_s
    assert short.meets(_GOAL) == whole.meets(_GOAL)


def test_lines_leave_out_what_never_came() -> None:
    x = np.arange(30.0)
    y = np.where(x % 7 == 3, np.nan, 2.0 * x + 1.0)
    assert slope_of(x, y) == pytest.approx(2.0)
    assert slope_of(x[:5], y[:5]) == 0.0
    assert slope_of(np.zeros(30), y) == 0.0
