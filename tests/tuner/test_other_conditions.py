"""Rates under other conditions, and which clusters are simulated as given."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from search_worlds import LIMITS, SLO, bounded, budget_of, chat_trace, summary_at

from tuner.search.bench import ReplicaJob
from tuner.search.bounds import Traffic
from tuner.search.conditions import AS_GIVEN, CHANGES, Conditions
from tuner.search.estimate import Estimates
from tuner.search.evaluate import Trial
from tuner.search.finals import finalists, least_hope, play
from tuner.search.goodput import EstimatedRates
from tuner.search.halving import Job, Scored
from tuner.search.laboratory import Laboratory
from tuner.search.rate_search import Reached
from tuner.search.single_replica import SingleReplica
from tuner.search.space import all_candidates

KNOWN = 20.0


def reached(rate: float) -> Reached:
    trial = Trial(rate, 0.95, summary_at(rate, 0.95))
    return Reached(trial, trial, 1)


class MadeUpLaboratory(Laboratory):
    """Replicate n of any replica is n percent faster, and by its bound a little less than that."""

    def __init__(self) -> None:
        self.looked_at: list[Conditions] = []

    def replicas(self, jobs: Sequence[ReplicaJob]) -> list[Reached]:
        self.looked_at += [job.conditions for job in jobs]
        return [reached(KNOWN * self._factor(job.conditions)) for job in jobs]

    def scales(
        self, conditions: Sequence[Conditions], replicas: Sequence[SingleReplica]
    ) -> list[list[float]]:
        return [[0.999 * self._factor(one)] * len(replicas) for one in conditions]

    def is_shortened(self, replica: SingleReplica, rate: float) -> bool:
        return False

    def _factor(self, under: Conditions) -> float:
        return (1 + under.replicate / 100) / under.prompts


def rates_of(conditions: Sequence[Conditions]) -> tuple[list[float], list[Conditions]]:
    """Of a colocated cluster, whose replicas were just looked at as given."""
    trace = chat_trace(50)
    pairs = bounded(all_candidates(budget_of("h100", 2), 4000, LIMITS), trace)
    candidate, bound = next(pair for pair in pairs if pair[0].is_colocated)
    laboratory = MadeUpLaboratory()
    traffic = Traffic.of(trace)
    estimates = Estimates(laboratory.replicas, traffic, traffic, SLO)
    [one] = estimates.of([Scored(candidate, bound)])
    laboratory.looked_at.clear()
    rows = EstimatedRates(estimates, laboratory)(conditions, [one])
    as_given = one.estimate
    assert as_given
    return [row[0] / as_given for row in rows], laboratory.looked_at


def test_every_replicate_is_looked_at_and_what_is_known_is_not_again() -> None:
    conditions = [Conditions(number) for number in range(12)]
    rates, looked_at = rates_of(conditions)
    assert looked_at == conditions[1:]
    assert rates == pytest.approx([1 + number / 100 for number in range(12)])


def test_every_change_of_the_traffic_is_looked_at() -> None:
    rates, looked_at = rates_of([*CHANGES.values(), AS_GIVEN])
    assert looked_at == list(CHANGES.values())
    assert rates == pytest.approx([1 / 1.2, 1.0, 1.0])


def test_of_many_clusters_only_the_hopeful_are_simulated_of_few_all() -> None:
    pairs = bounded(all_candidates(budget_of("h100", 8), 4000, LIMITS), chat_trace(50))
    looked_at: list[Job] = []

    def measure(jobs: Sequence[Job]) -> list[Reached]:
        looked_at.extend(jobs)
        return [reached(job.guess) for job in jobs]

    for known, everyone in ((20, False), (6, True)):
        looked_at.clear()
        # Far below the first, but near enough to be chosen.
        estimates = [100.0] + [89.0] * 3 + [10.0] * (known - 4)
        estimated = [
            Scored(c, bound, estimate=estimate)
            for (c, bound), estimate in zip(pairs, estimates, strict=False)
        ]
        chosen = finalists(estimated)
        play(chosen, measure, lambda text: None, least_hope(estimated))
        assert (len(looked_at) == len(chosen)) == everyone
