"""Successive halving finds what exhaustive simulation finds, for less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_worlds import GOAL, LIMITS, MadeUpWorld, bounded, budget_of, chat_trace, summary_at

from amounts import examples
from core.config import ClusterSpec
from tuner.search.bench import Traced
from tuner.search.bounds import Traffic
from tuner.search.chart_points import Point, pareto_front
from tuner.search.conditions import Conditions
from tuner.search.evaluate import Trial
from tuner.search.finals import FINAL
from tuner.search.goodput import by_halving
from tuner.search.halving import RUNGS, Job, Scored, halve
from tuner.search.laboratory import Laboratory
from tuner.search.rate_search import RateSearch, Reached, highest_rate
from tuner.search.space import all_candidates
from tuner.search.uncertainty import perturbed, perturbed_profile
from tuner.search.verdict import judge

TRACE = chat_trace()


@settings(max_examples=examples(20), deadline=None)
@given(st.integers(2, 12), st.floats(0.0, 0.5))
def test_the_best_is_found_within_the_precision_of_the_last_rung(count: int, blur: float) -> None:
    pairs = bounded(all_candidates(budget_of("h100", count), 4000, LIMITS), TRACE)
    world = MadeUpWorld(pairs, blur)
    best = halve(pairs, world.measure)[0]
    exact = max(world.truth.values())
    # What a coarse look hides may cost up to its own error.
    assert world.truth[best.candidate] >= exact * (1 - 2 * blur * RUNGS[0].precision - 1e-9)


def test_most_candidates_are_never_simulated_or_not_for_long() -> None:
    pairs = bounded(all_candidates(budget_of("h100", 16), 4000, LIMITS), TRACE)
    world = MadeUpWorld(pairs, 0.1)
    scored = halve(pairs, world.measure)
    assert len(scored) == len(pairs)
    assert len(set(world.simulated)) < len(pairs)
    assert sum(one.rungs == len(RUNGS) for one in scored) <= RUNGS[1].keep + 2


def test_rivals_come_to_the_last_rung_however_bad() -> None:
    pairs = bounded(all_candidates(budget_of("h100", 8), 4000, LIMITS), TRACE)
    scored = halve(pairs, MadeUpWorld(pairs, 0.0).measure)
    last = [one.candidate for one in scored if one.rungs == len(RUNGS)]
    assert any(candidate.is_colocated for candidate in last)
    assert any(candidate.is_one_to_one for candidate in last)


@given(st.floats(0.01, 100.0), st.floats(0.1, 10.0))
def test_the_highest_rate_is_found_from_any_guess(limit: float, guess: float) -> None:
    def attempt(rate: float) -> Trial:
        return Trial(rate, 1.0 if rate <= limit else 0.0, summary_at(rate, 1.0))

    search = RateSearch(guess * limit, 20 * limit, 1.3, 0.02)
    reached = highest_rate(attempt, GOAL, search)
    assert limit / 1.02 <= reached.rate <= limit


def test_a_goal_that_no_rate_meets_ends_with_the_nearest() -> None:
    def attempt(rate: float) -> Trial:
        return Trial(rate, 0.5 / (1 + rate), summary_at(rate, 0.5))

    reached = highest_rate(attempt, GOAL, RateSearch(5.0, 10.0, 1.5, 0.02))
    assert reached.trial is None
    assert reached.rate == 0.0
    assert reached.nearest.rate <= 0.2


def test_the_verdict_compares_with_rivals_on_the_same_replicates() -> None:
    pairs = bounded(all_candidates(budget_of("h100", 8), 4000, LIMITS), TRACE)
    world = MadeUpWorld(pairs, 0.0)
    scored = halve(pairs, world.measure)
    numbers: list[int] = []

    def rates_under(
        conditions: Sequence[Conditions], clusters: Sequence[Scored]
    ) -> list[list[float]]:
        numbers.extend(one.replicate for one in conditions)
        return [
            [world.truth[one.candidate] * (1 + 0.1 * (under.replicate % 3)) for one in clusters]
            for under in conditions
        ]

    verdict = judge(scored, rates_under, replicates=5)
    assert verdict.winner is not None
    told = {"colocated": verdict.colocated, "1:1": verdict.one_to_one}
    is_winner = {
        "colocated": verdict.winner.candidate.is_colocated,
        "1:1": verdict.winner.candidate.is_one_to_one,
    }
    # The winner is no rival of itself.
    assert {kind: rival is None for kind, rival in told.items()} == is_winner
    rivals = [rival for rival in told.values() if rival is not None]
    assert rivals
    assert sorted(set(numbers)) == [0, 1, 2, 3, 4, 5]
    for comparison in rivals:
        assert comparison.likely is not None
        # Common errors cancel out.
        assert comparison.likely.low == pytest.approx(comparison.ratio)
        assert comparison.likely.high == pytest.approx(comparison.ratio)


class OtherLimitsServeFourPercentMore(Laboratory):
    """Of any cluster with other limits than the usual, and no more than that."""

    def measure(self, jobs: Sequence[Job]) -> list[Reached]:
        found = []
        for job in jobs:
            usual = all(pool.limits == LIMITS for pool in job.candidate.pools)
            most = 1.0 if usual else 1 + FINAL.precision

            def attempt(rate: float, most: float = most) -> Trial:
                share = 0.95 if rate <= most else 0.1
                return Trial(rate, share, summary_at(rate, share))

            search = RateSearch(job.guess, min(job.most, 1.0) if usual else job.most, 1.1, 0.001)
            found.append(highest_rate(attempt, GOAL, replace(search, floor=job.floor)))
        return found


def test_limits_that_serve_just_enough_more_to_be_kept_are_kept() -> None:
    pairs = bounded(all_candidates(budget_of("h100", 1), 4000, LIMITS), TRACE)
    with OtherLimitsServeFourPercentMore(Traced(TRACE, ClusterSpec(), GOAL, 0), 1) as laboratory:
        best = by_halving(pairs, laboratory, Traffic.of(TRACE), GOAL.slo, lambda text: None)[0]
    assert best.rate == 1 + FINAL.precision
    assert best.candidate.decode[0].limits != LIMITS


def test_perturbed_hardware_is_the_same_for_everyone_and_differs_between_replicates() -> None:
    candidates = all_candidates(budget_of("h100", 4), 4000, LIMITS)
    for candidate in candidates[:3]:
        one, again, other = (perturbed(candidate, seed) for seed in (1, 1, 2))
        assert one == again
        assert one != other
    profile = candidates[0].decode[0].on.profile
    assert perturbed_profile(profile, 3) == perturbed_profile(profile, 3)


def test_the_pareto_front_leaves_out_what_is_beaten_twice() -> None:
    def point(name: str, user: float, gpu: float) -> Point:
        return Point(name, False, 1.0, 1.0, gpu, user)

    found = [point("a", 10, 100), point("b", 20, 80), point("c", 15, 70), point("d", 30, 80)]
    assert [p.name for p in pareto_front(found)] == ["a", "d"]
