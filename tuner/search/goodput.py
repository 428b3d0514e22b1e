"""The highest rate that a budget can serve, by either of two ways.

Accelerators of their own: replicas are looked at one by one, then the best clusters as a whole
(``by_replicas``). Workers that share a host: there are few clusters, and no replica of them is
alone, so all that bounds leave are simulated as a whole (``by_halving``).

Does not cover: the fewest accelerators for a rate (``cheapest``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from tuner.load.metrics import Slo
from tuner.search.bench import ClusterJob
from tuner.search.bounds import SLACK, Bound, Traffic, bound_rate
from tuner.search.conditions import AS_GIVEN, Conditions
from tuner.search.estimate import Estimates, estimate_all, rate_of
from tuner.search.finals import FINAL, finalists, leaders_of, least_hope, play
from tuner.search.halving import RUNGS, Job, Rung, Scored, halve
from tuner.search.laboratory import Laboratory
from tuner.search.scheduler_limits import variants, with_best_limits, with_limits
from tuner.search.single_replica import SingleReplica, replicas_of
from tuner.search.space import Candidate

Progress = Callable[[str], None]

# How closely clusters are looked at under other conditions.
_COARSE = Rung(services=1.0, precision=0.1, keep=0)


def by_replicas(
    bounded: Sequence[tuple[Candidate, Bound]],
    laboratory: Laboratory,
    estimates: Estimates,
    traffic: Traffic,
    slo: Slo,
    progress: Progress,
) -> list[Scored]:
    """All candidates, the best first; those that were simulated as a whole come before others."""
    estimated = estimate_all(bounded, estimates, progress)
    chosen = finalists(estimated)
    if not chosen:
        return estimated
    rest = [one for one in estimated if one not in chosen]
    if not chosen[0].estimate:
        # No replica meets the goal alone: one whole cluster shows how far off it is.
        return [*play(chosen, laboratory.measure, progress), *rest]
    progress("scheduler limits of the best")
    chosen = with_best_limits(chosen, leaders_of(chosen), estimates, traffic, slo)
    return [*play(chosen, laboratory.measure, progress, least_hope(estimated)), *rest]


def by_halving(
    bounded: Sequence[tuple[Candidate, Bound]],
    laboratory: Laboratory,
    traffic: Traffic,
    slo: Slo,
    progress: Progress,
) -> list[Scored]:
    """All candidates, the best first, the winner with its best limits."""
    scored = halve(bounded, laboratory.measure, progress=progress)
    best = scored[0]
    if not best.rate:
        return scored
    progress("scheduler limits of the best")
    floor = best.rate * (1 + FINAL.precision)
    tried = []
    for replica in replicas_of(best.candidate):
        for limits in variants(replica):
            candidate = with_limits(best.candidate, {replica: limits})
            tried.append(Scored(candidate, bound_rate(candidate, traffic, slo), rungs=best.rungs))
    jobs = [
        Job(one.candidate, RUNGS[-1], floor, SLACK * one.bound.rate, 1.1, floor) for one in tried
    ]
    looked = [
        replace(one, reached=reached)
        for one, reached in zip(tried, laboratory.measure(jobs), strict=True)
    ]
    better = max(looked, key=lambda one: one.rate, default=best)
    return [better, *scored[1:]] if better.rate >= floor else scored


class EstimatedRates:
    """Rates under other conditions: estimates from replicas, by the factor that the whole cluster
    has over its estimate as given.

    Not simulated again are replicas of pools that serve far more than their cluster, and those that
    serve so many requests that a window of them is shortened, for which queues of chance don't
    matter: their rates change as their bounds do."""

    def __init__(self, estimates: Estimates, laboratory: Laboratory) -> None:
        self._estimates = estimates
        self._laboratory = laboratory

    def __call__(
        self, conditions: Sequence[Conditions], clusters: Sequence[Scored]
    ) -> list[list[float]]:
        estimates = self._estimates
        replicas = list(dict.fromkeys(r for one in clusters for r in replicas_of(one.candidate)))
        estimates.learn(replicas)
        typical = _factor(clusters)
        rows = []
        for rates in self._of_replicas(conditions, replicas, self._weak(clusters)):
            estimated = [rate_of(c.candidate, rates.__getitem__, c.bound.rates) for c in clusters]
            plain = [estimates.known_of(one) for one in clusters]
            rows.append(
                [
                    rate * (one.rate / known if one.rate and known else typical)
                    for rate, one, known in zip(estimated, clusters, plain, strict=True)
                ]
            )
        return rows

    def _weak(self, clusters: Sequence[Scored]) -> list[SingleReplica]:
        """Those whose rates need a simulation."""
        estimates, laboratory = self._estimates, self._laboratory
        weakest = dict.fromkeys(r for one in clusters for r in estimates.weakest(one))
        return [r for r in weakest if not laboratory.is_shortened(r, estimates.known(r) or 0.0)]

    def _of_replicas(
        self,
        conditions: Sequence[Conditions],
        replicas: Sequence[SingleReplica],
        weak: Sequence[SingleReplica],
    ) -> list[dict[SingleReplica, float]]:
        """By condition: the rate of each replica."""
        known = {r: self._estimates.known(r) or 0.0 for r in replicas}
        strong = {r: rate for r, rate in known.items() if r not in weak}
        changed = [under for under in conditions if under != AS_GIVEN]
        scaled, looked = self._scaled(changed, strong), self._estimates.under(changed, weak)
        rows = {AS_GIVEN: known}
        for under, of_strong, of_weak in zip(changed, scaled, looked, strict=True):
            rows[under] = of_strong | of_weak
        return [rows[under] for under in conditions]

    def _scaled(
        self, conditions: Sequence[Conditions], rates: dict[SingleReplica, float]
    ) -> list[dict[SingleReplica, float]]:
        return [
            {r: rates[r] * factor for r, factor in zip(rates, factors, strict=True)}
            for factors in self._laboratory.scales(conditions, list(rates))
        ]


class SimulatedRates:
    """Rates under other conditions: each cluster as a whole, coarsely."""

    def __init__(self, laboratory: Laboratory) -> None:
        self._laboratory = laboratory

    def __call__(
        self, conditions: Sequence[Conditions], clusters: Sequence[Scored]
    ) -> list[list[float]]:
        jobs = [ClusterJob(_job(one), under) for under in conditions for one in clusters]
        rates = [reached.rate for reached in self._laboratory.clusters(jobs)]
        width = len(clusters)
        return [rates[place : place + width] for place in range(0, len(rates), width)]


def _job(scored: Scored) -> Job:
    # Other hardware may be faster than the bound of this one.
    guess = scored.rate or 0.8 * scored.bound.rate
    return Job(scored.candidate, _COARSE, guess, 2 * scored.bound.rate, 1.15)


def _factor(clusters: Sequence[Scored]) -> float:
    """Of the first: the others are its neighbours."""
    first = clusters[0]
    return first.rate / first.estimate if first.rate and first.estimate else 1.0


def error_of_estimates(scored: Sequence[Scored]) -> float:
    """How differently clusters serve more or less than their estimates: standard deviation of the
    logarithm. Where fewer than two are known, as in the last few percent of a search."""
    logs = [np.log(one.rate / one.estimate) for one in scored if one.rate and one.estimate]
    spread = float(np.std(logs, ddof=1)) if len(logs) > 1 else 0.0
    return max(spread, FINAL.precision / 2)
