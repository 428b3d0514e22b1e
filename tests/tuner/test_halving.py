"""Successive halving finds what exhaustive simulation finds, for less."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_worlds import GOAL, LIMITS, MadeUpWorld, bounded, budget_of, chat_trace, summary_at

from tuner.search.charts import Point, pareto_front
from tuner.search.conditions import Conditions
from tuner.search.evaluate import RateSearch, Trial, highest_rate
from tuner.search.halving import RUNGS, Scored, halve
from tuner.search.space import all_candidates
from tuner.search.uncertainty import perturbed, perturbed_profile
from tuner.search.verdict import judge

TRACE = chat_trace()


@settings(max_examples=20, deadline=None)
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
    rivals = [c for c in (verdict.colocated, verdict.one_to_one) if c is not None]
    assert sorted(set(numbers)) == [0, 1, 2, 3, 4, 5]
    for comparison in rivals:
        assert comparison.likely is not None
        # Common errors cancel out.
        assert comparison.likely.low == pytest.approx(comparison.ratio)
        assert comparison.likely.high == pytest.approx(comparison.ratio)


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
