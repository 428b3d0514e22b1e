"""Ratios of rates that are told: capped alike, and not of two clusters that serve nothing."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import pytest
from search_worlds import LIMITS, bounded, budget_of, chat_trace, summary_at

from tuner.search.conditions import Conditions
from tuner.search.evaluate import Trial
from tuner.search.halving import Scored
from tuner.search.rate_search import Reached
from tuner.search.space import all_candidates
from tuner.search.uncertainty import MOST_TOLD, Interval, ratio_of
from tuner.search.verdict import Comparison, judge

PAIRS = bounded(all_candidates(budget_of("h100", 2), 4000, LIMITS), chat_trace(50))


def scored_at(rate: float, *, colocated: bool) -> Scored:
    candidate, bound = next(pair for pair in PAIRS if pair[0].is_colocated == colocated)
    trial = Trial(rate, 0.95, summary_at(rate, 0.95))
    return Scored(candidate, bound, Reached(trial, trial, 1))


def compared(best: float, rival: float, *rows: tuple[float, float]) -> Comparison:
    """``rows``: rates of both as given, then in each replicate."""

    def rates_under(
        conditions: Sequence[Conditions], clusters: Sequence[Scored]
    ) -> list[list[float]]:
        assert [one.replicate for one in conditions] == list(range(len(rows)))
        return [list(row) for row in rows]

    scored = [scored_at(best, colocated=False), scored_at(rival, colocated=True)]
    comparison = judge(scored, rates_under, len(rows) - 1).colocated
    assert comparison is not None
    return comparison


def test_a_ratio_of_two_that_serve_nothing_is_none() -> None:
    assert (ratio_of(3.0, 2.0), ratio_of(0.0, 2.0)) == (1.5, 0.0)
    assert (ratio_of(1.0, 0.0), ratio_of(0.0, 0.0)) == (inf, None)


def test_replicates_where_both_serve_nothing_say_nothing() -> None:
    likely = compared(6.0, 4.0, (6.0, 4.0), (0.0, 0.0), (6.0, 4.0), (0.0, 0.0)).likely
    assert likely == Interval(pytest.approx(1.5), pytest.approx(1.5), pytest.approx(1.5))
    assert compared(6.0, 4.0, (6.0, 4.0), (0.0, 0.0)).likely is None


def test_what_is_told_at_most_holds_for_the_ratio_and_its_interval() -> None:
    comparison = compared(60.0, 4.0, (60.0, 4.0), (60.0, 4.0), (60.0, 0.0), (60.0, 30.0))
    assert comparison.ratio == MOST_TOLD
    assert comparison.likely is not None
    assert 2.0 < comparison.likely.low < MOST_TOLD
    assert comparison.likely.median == comparison.likely.high == MOST_TOLD


@pytest.mark.parametrize("plain", [(0.0, 4.0), (6.0, 0.0), (0.0, 0.0)])
def test_a_coarse_look_that_saw_nothing_served_takes_no_interval_away(
    plain: tuple[float, float],
) -> None:
    likely = compared(6.0, 4.0, plain, (8.0, 4.0), (8.0, 4.0)).likely
    assert likely == Interval(pytest.approx(2.0), pytest.approx(2.0), pytest.approx(2.0))
