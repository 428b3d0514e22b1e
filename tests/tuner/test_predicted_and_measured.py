"""Comparisons of predicted and measured numbers, by hand-made ones."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_clusters import trace

from tuner.load.metrics import Goodput, Spread
from tuner.load.prompts import PromptMaker
from tuner.search.uncertainty import Interval
from tuner.validate.compare import (
    NUMBERS,
    Case,
    Coverage,
    Outcome,
    Ranking,
    coverage,
    median_errors,
    ranking,
)
from tuner.validate.plan import first_seconds, plan_requests
from tuner.validate.predict import likely, middle
from tuner.validate.ratios import ratio_coverage, ratios
from tuner.validate.report import as_json, summary_lines, table

OUTCOME = Outcome(0.2, 0.4, 0.020, 0.030, goodput=1.0, share=0.9)


def case(
    predicted: Outcome = OUTCOME,
    measured: Outcome = OUTCOME,
    name: str = "1P:1D",
    rate: float = 1.0,
    shared: bool = False,
    **intervals: tuple[float, float],
) -> Case:
    bounds = {number: Interval(low, low, high) for number, (low, high) in intervals.items()}
    return Case(name, "short", rate, shared, predicted, measured, bounds)


def with_goodput(predicted: float, measured: float, rate: float = 1.0) -> Case:
    return case(replace(OUTCOME, goodput=predicted), replace(OUTCOME, goodput=measured), rate=rate)


def test_an_outcome_has_the_percentiles_of_its_spreads() -> None:
    ttft, tpot = Spread(0.3, 0.2, 0.4, 0.5, 0.6), Spread(0.02, 0.02, 0.03, 0.04, 0.05)
    assert Outcome.of(ttft, tpot, Goodput(1.0, 0.9, 0.95, 0.92)) == OUTCOME
    nobody = Outcome.of(None, None, Goodput(0.0, 0.0, 0.0, 0.0))
    assert [nobody.number(name) for name in NUMBERS] == [None, None, None, None, 0.0, 0.0]


def test_errors_are_relative_to_what_was_measured() -> None:
    predicted = Outcome(0.3, None, 0.018, 0.030, goodput=1.0, share=0.9)
    measured = Outcome(0.2, 0.4, 0.020, 0.030, goodput=0.0, share=0.0)
    found = {name: case(predicted, measured).error(name) for name in NUMBERS}
    assert found["ttft_p50_s"] == pytest.approx(0.5)
    assert found["ttft_p90_s"] is None
    assert found["tpot_p50_s"] == pytest.approx(0.1)
    assert found["tpot_p90_s"] == 0
    assert found["goodput"] == math.inf


def test_medians_are_over_all_cases_that_have_both() -> None:
    cases = [
        case(replace(OUTCOME, ttft_p50_s=ttft), replace(OUTCOME, tpot_p90_s=None))
        for ttft in (0.2, 0.22, 0.6)
    ]
    errors = median_errors(cases)
    assert errors["ttft_p50_s"] == pytest.approx(0.1)
    assert errors["tpot_p90_s"] is None
    assert errors["goodput"] == 0
    assert set(median_errors([]).values()) == {None}


def test_the_ranking_counts_pairs_that_differ_clearly_under_the_same_load() -> None:
    best, second, equal = with_goodput(1.0, 2.0), with_goodput(1.5, 1.0), with_goodput(0.9, 0.95)
    other_load = with_goodput(9.0, 0.1, rate=2.0)
    # Best against both others is clear; it is predicted below the second and above the third.
    assert ranking([best, second, equal, other_load]) == Ranking(pairs=2, right=1, wrong=1)
    assert ranking([best, equal]).tau == 1
    assert ranking([second, equal]).tau is None


def test_a_pair_that_is_predicted_as_equal_is_neither_right_nor_wrong() -> None:
    order = ranking([with_goodput(1.0, 2.0), with_goodput(1.0, 1.0)])
    assert order == Ranking(pairs=1, right=0, wrong=0)
    assert order.tau == 0


@given(st.lists(st.tuples(st.floats(0.01, 10), st.floats(0.01, 10)), max_size=8))
def test_tau_is_one_for_what_was_measured_and_minus_one_for_its_opposite(
    pairs: list[tuple[float, float]],
) -> None:
    cases = [with_goodput(predicted, measured) for predicted, measured in pairs]
    exact = ranking([replace(one, predicted=one.measured) for one in cases])
    opposite = ranking(
        [replace(one, predicted=replace(OUTCOME, goodput=-one.measured.goodput)) for one in cases]
    )
    assert exact.tau in (None, 1.0)
    assert opposite.tau in (None, -1.0)
    assert exact.pairs == opposite.pairs == ranking(cases).pairs
    assert -1 <= (ranking(cases).tau or 0.0) <= 1
    assert ranking(cases[::-1]) == ranking(cases)


def test_coverage_counts_measured_values_inside_their_intervals() -> None:
    cases = [
        case(goodput=(0.9, 1.1), ttft_p50_s=(0.3, 0.4)),
        case(goodput=(1.0, 1.0)),
        case(goodput=(1.1, 1.2)),
        case(measured=replace(OUTCOME, ttft_p50_s=None), ttft_p50_s=(0.1, 0.4)),
    ]
    found = coverage(cases)
    assert found["goodput"] == Coverage(2, 3)
    assert found["ttft_p50_s"] == Coverage(0, 1)
    assert found["share"].share is None


def with_replicates(name: str, predicted: float, measured: float, *drawn: float) -> Case:
    one = with_goodput(predicted, measured)
    replicates = tuple(replace(OUTCOME, goodput=value) for value in drawn)
    return replace(one, configuration=name, replicates=replicates)


def test_what_two_clusters_share_cancels_out_of_their_ratio() -> None:
    """On faster hardware both are faster."""
    slow = with_replicates("colocated", 1.0, 0.8, 0.5, 1.0, 2.0)
    fast = with_replicates("1P:1D", 1.5, 1.2, 0.75, 1.5, 3.0)
    [ratio] = ratios([slow, fast])
    assert (ratio.better, ratio.other) == ("1P:1D", "colocated")
    assert ratio.predicted == pytest.approx(ratio.measured)
    assert ratio.likely.low == ratio.likely.high == pytest.approx(1.5)
    assert ratio.is_inside
    assert ratio.is_apart


def test_coverage_of_ratios_counts_each_pair_under_a_load() -> None:
    base = with_replicates("a", 1.0, 1.0, 0.9, 1.0, 1.1)
    inside = with_replicates("b", 1.5, 1.4, 1.1, 1.5, 1.9)
    outside = with_replicates("c", 2.0, 1.0, 2.0, 2.0, 2.0)
    alike = with_replicates("d", 1.0, 1.0, 0.9, 1.0, 1.1)
    elsewhere = replace(base, rate=9.0)
    found = ratios([base, inside, outside, alike, elsewhere])
    told = {(r.better, r.other): (r.is_inside, r.is_apart) for r in found}
    assert told == {
        ("b", "a"): (True, True),
        ("c", "a"): (False, True),
        ("a", "d"): (True, False),
        ("c", "b"): (False, True),
        ("b", "d"): (True, True),
        ("c", "d"): (False, True),
    }
    assert ratio_coverage(found) == Coverage(3, 6)
    assert ratio_coverage([]).share is None


def test_nothing_is_said_of_ratios_where_nothing_was_drawn_or_served() -> None:
    served = with_replicates("a", 1.0, 1.0, 1.0)
    assert ratios([served, with_goodput(1.0, 1.0)]) == []
    nothing = with_replicates("b", 0.0, 0.0, 0.0)
    assert ratios([nothing, nothing]) == []
    [endless] = ratios([served, nothing])
    assert (endless.predicted, endless.measured) == (10.0, 10.0)
    assert endless.is_inside


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_likely_intervals_hold_most_replicates(values: list[float]) -> None:
    replicates = [replace(OUTCOME, goodput=value, tpot_p90_s=None) for value in values]
    found = likely(replicates)
    assert "tpot_p90_s" not in found
    interval = found["goodput"]
    assert min(values) <= interval.low <= interval.median <= interval.high <= max(values)
    assert likely([]) == {}


def test_the_middle_of_outcomes_is_that_of_each_number() -> None:
    outcomes = [
        replace(OUTCOME, goodput=g, ttft_p90_s=t) for g, t in ((3, None), (1, 2.0), (2, None))
    ]
    assert middle(outcomes) == replace(OUTCOME, goodput=2, ttft_p90_s=2.0)
    assert middle([OUTCOME]) == OUTCOME


def test_the_plan_of_a_trace_is_the_trace() -> None:
    requests = trace((0.0, 20, 3), (0.5, 30, 4), shared=[[4, 5], [4]])
    plan = plan_requests(requests)
    assert plan.window_s == 0.5
    assert [(r.at_s, r.prompt_tokens, r.output_tokens) for r in plan.requests] == [
        (0.0, 20, 3),
        (0.5, 30, 4),
    ]
    maker = PromptMaker(np.arange(1000, dtype=np.int32), content_seed=1)
    one, other = (maker.make(request) for request in plan.requests)
    assert (len(one), len(other)) == (20, 30)
    # Parts have 8 tokens, and the first is the same.
    assert list(one[:8]) == list(other[:8])
    assert list(one[8:16]) != list(other[8:16])
    assert all(not r.block_ids for r in plan_requests(trace((0.0, 9, 1))).requests)


def test_a_trace_is_cut_by_time() -> None:
    requests = trace((0.0, 1, 1), (1.0, 1, 1), (2.5, 1, 1))
    assert len(first_seconds(requests, 1.0)) == 2
    assert len(first_seconds(requests, 0.5)) == 1
    assert first_seconds(requests, 9.0).duration_s == 2.5


def test_reports_say_both_numbers_and_how_far_they_are_apart() -> None:
    slow = replace(OUTCOME, ttft_p50_s=0.25, goodput=0.5)
    cases = [
        case(predicted=slow, goodput=(0.4, 0.6)),
        case(measured=slow, name="colocated", shared=True),
        case(measured=replace(OUTCOME, goodput=0.0), name="2P:1D"),
    ]
    columns, rows = table(cases)
    assert dict(zip(columns, rows[0], strict=True))["TTFT p50 ms"] == "250 / 200"
    assert dict(zip(columns, rows[1], strict=True))["in SLO"] == "90% / 90%"
    lines = "\n".join(summary_lines(cases))
    assert "where threads have cores of their own (2 runs): TTFT p50 12%" in lines
    assert "where cores are shared (1 runs): TTFT p50 20%" in lines
    assert "measured inside the predicted 80 % interval: goodput/s 0 of 1" in lines
    assert "ratio of two clusters' goodput" not in lines
    drawn = [
        with_replicates("1P:1D", 1.5, 1.4, 1.2, 1.6),
        with_replicates("colocated", 1.0, 1.0, 1.0, 1.0),
    ]
    words = "\n".join(summary_lines(drawn))
    assert "80 % interval: 1 of 1, of those more than 10% apart 1 of 1" in words
    assert as_json(drawn)["ratios"]["coverage"] == {"inside": 1, "total": 1, "share": 1.0}
    told = json.loads(json.dumps(as_json(cases), allow_nan=False))
    assert told["cases"][2]["error"]["goodput"] is None
    assert told["cases"][0]["likely"]["goodput"] == {"low": 0.4, "median": 0.4, "high": 0.6}
    assert told["ranking"]["pairs"] == 3
    assert told["median_error_shared_cores"]["goodput"] == 1.0
