"""Clusters that meet the goal at no rate, beside those that do: they get no trial at rate 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from search_worlds import GOAL, LIMITS, bounded, budget_of, chat_trace, summary_at

from core.config import ClusterSpec
from core.latency_profile import FEMTOSECONDS, StepWork
from core.shards import ONE_RANK
from tuner.load.metrics import Slo
from tuner.search.bench import Bench, ReplicaJob, Traced
from tuner.search.bounds import Bound, Traffic, bound_rate
from tuner.search.cheapest import cheapest, verdict_on_cost
from tuner.search.conditions import AS_GIVEN, Conditions
from tuner.search.estimate import Estimates
from tuner.search.evaluate import Goal, Trial
from tuner.search.finals import finalists, play
from tuner.search.goodput import SimulatedRates
from tuner.search.halving import Job, Scored
from tuner.search.laboratory import Laboratory
from tuner.search.rate_search import RateSearch, Reached, highest_rate
from tuner.search.single_replica import replicas_of
from tuner.search.space import Candidate, PoolChoice, all_candidates
from tuner.search.verdict import Verdict
from tuner.simulate.requests import RequestTrace

TRACE = chat_trace(50)
PAIRS = bounded(all_candidates(budget_of("h100", 8), 4000, LIMITS), TRACE)


def reaching(truth: Callable[[Candidate], float]) -> Callable[[Sequence[Job]], list[Reached]]:
    """Measures clusters that meet the goal up to what ``truth`` says."""

    def measure(jobs: Sequence[Job]) -> list[Reached]:
        found = []
        for job in jobs:
            most = truth(job.candidate)

            def attempt(rate: float, most: float = most) -> Trial:
                assert rate > 0
                share = 0.95 if rate <= most else 0.1
                return Trial(rate, share, summary_at(rate, share))

            search = RateSearch(job.guess, job.most, job.certainty, job.rung.precision, job.floor)
            found.append(highest_rate(attempt, GOAL, search))
        return found

    return measure


def without(bound: Bound) -> Bound:
    """As if too many requests missed the TPOT even alone."""
    return replace(bound, rate=0.0, rates=dict.fromkeys(bound.rates, 0.0))


def test_where_no_rate_is_possible_there_is_no_trial() -> None:
    def attempt(rate: float) -> Trial:
        raise AssertionError(rate)

    reached = highest_rate(attempt, GOAL, RateSearch(5.0, 10.0, 1.5, 0.02).scaled(0.0))
    assert (reached.rate, reached.nearest, reached.simulations) == (0.0, None, 0)


def test_the_nearest_to_a_rate_is_one_that_can_meet_the_goal() -> None:
    (only, bound), *others = PAIRS[:6]
    mixed = [(only, bound), *((c, without(other)) for c, other in others)]
    scored = cheapest(
        9 * bound.rate,
        mixed,
        reaching(lambda _: bound.rate),
        lambda group: group,
        lambda text: None,
    )
    assert len(scored) == len(mixed)
    verdict = verdict_on_cost(9 * bound.rate, scored)
    assert verdict.winner is None
    assert verdict.nearest.candidate == only
    assert verdict.nearest.rate > 0


def test_who_falls_behind_does_not_serve_a_rate() -> None:
    """Ten percent too much passes for as long as is simulated."""
    overloaded, other = PAIRS[:2]
    rate = 0.5 * min(overloaded[1].rate, other[1].rate)

    def measure(jobs: Sequence[Job]) -> list[Reached]:
        growth = {overloaded[0]: 0.1, other[0]: 0.0}
        trials = [
            Trial(rate, 0.95, summary_at(rate, 0.95), growth=growth[job.candidate]) for job in jobs
        ]
        return [Reached(trial, trial, 1) for trial in trials]

    def verdict_of(*pairs: tuple[Candidate, Bound]) -> Verdict:
        scored = cheapest(rate, pairs, measure, lambda group: group, lambda text: None)
        return verdict_on_cost(rate, scored)

    assert verdict_of(overloaded).winner is None
    winner = verdict_of(overloaded, other).winner
    assert winner is not None
    assert winner.candidate == other[0]


def test_others_are_looked_at_where_the_first_of_each_kind_reach_nothing() -> None:
    estimated = [Scored(c, bound, estimate=0.8 * bound.rate) for c, bound in PAIRS]
    estimated.sort(key=lambda one: -(one.estimate or 0.0))
    chosen = finalists(estimated)
    last = chosen[-1]
    first = {one.candidate for one in estimated[:3]}

    def truth(candidate: Candidate) -> float:
        return 0.5 * last.bound.rate if candidate not in first else 0.0

    assert play(chosen, reaching(lambda _: 0.0), lambda text: None)[0].rate == 0
    assert play(chosen, reaching(truth), lambda text: None)[0].rate > 0


def tight(trace: RequestTrace, factor: float) -> tuple[Candidate, Goal]:
    """Two replicas, and a TPOT of ``factor`` times what the longest answer needs alone."""
    on = budget_of("h100", 2).decode
    longest = Traffic.of(trace).least.context_to_meet
    alone = on.profile.engine(ONE_RANK).step.time(StepWork(1, 1, 0, 1, round(longest)))
    candidate = Candidate(None, (PoolChoice(on, 2, ONE_RANK, LIMITS),))
    return candidate, Goal(Slo(1.0, factor * alone / FEMTOSECONDS), 100.0)


def test_a_replica_that_is_too_slow_on_other_hardware_reaches_nothing() -> None:
    candidate, goal = tight(TRACE, 1.001)
    (replica,) = replicas_of(candidate)
    bench = Bench(Traced(TRACE, ClusterSpec(), goal, 0))
    assert bench.scale(replica, AS_GIVEN) == 1.0
    others = [Conditions(replicate=number) for number in range(1, 17)]
    slower = next(one for one in others if bench.scale(replica, one) == 0.0)
    search = RateSearch(1.0, 2.0, 1.1, 0.1)
    reached = bench.reach(ReplicaJob(replica, search, 1.0, slower))
    assert (reached.rate, reached.simulations) == (0.0, 0)


def test_a_neighbour_that_no_rate_is_possible_for_reaches_nothing() -> None:
    candidate, goal = tight(TRACE, 0.999)
    bound = bound_rate(candidate, Traffic.of(TRACE), goal.slo)
    assert bound.rate == 0.0
    with Laboratory(Traced(TRACE, ClusterSpec(), goal, 0), processes=1) as laboratory:
        rates = SimulatedRates(laboratory)([Conditions(prompts=1.2)], [Scored(candidate, bound)])
    assert rates == [[0.0]]


@pytest.mark.parametrize("than", [0.0, 1.0])
def test_other_limits_are_tried_on_a_replica_that_serves_nothing(than: float) -> None:
    candidate, _ = tight(TRACE, 1.0)
    (replica,) = replicas_of(candidate)
    searches: list[RateSearch] = []

    def measure(jobs: Sequence[ReplicaJob]) -> list[Reached]:
        searches.extend(job.search for job in jobs)
        return [Reached(None, None, 0) for _ in jobs]

    assert Estimates(measure, Traffic.of(TRACE), Traffic.of(TRACE), GOAL.slo).better(
        [replica], [than]
    ) == [0.0]
    assert searches[0].guess > than
