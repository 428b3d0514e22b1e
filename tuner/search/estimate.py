"""What clusters serve, estimated from what their replicas serve one by one.

A cluster serves what its weakest pool does, a pool what its replicas do together. There are few
kinds of replicas, however many clusters are made of them, and the best are found without looking at
all kinds: as long as a bound stands for a replica, an estimate can only be too high, so only
replicas of those that lead are looked at (best-first search).

Pure but for the simulations that ``measure`` makes. Does not cover: what estimates leave out
(queues that many replicas share, both phases' bad luck added up): the best by estimate are
simulated as a whole (``finals``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf

from core.request import Role
from tuner.load.metrics import Slo
from tuner.search.bench import ReplicaJob
from tuner.search.bounds import Bound, Resource, Traffic
from tuner.search.conditions import Conditions
from tuner.search.halving import RIVALS, Scored
from tuner.search.rate_search import RateSearch, Reached
from tuner.search.single_replica import SingleReplica, replicas_of
from tuner.search.space import Candidate

Measure = Callable[[Sequence[ReplicaJob]], Sequence[Reached]]

SERVICES = 1.0
# Of the rate of one replica.
_PRECISION = 0.04
_CERTAINTY = 1.08
# Times the bound of all requests (those that miss the goal are served, too): where to begin, what
# stands for a replica that is not known, and what none reaches.
_USUAL, _RARELY_MORE, _NEVER_MORE = 1.0, 1.1, 1.5
# A pool that serves so many times what the other one does is not what limits a cluster.
_ENOUGH = 1.15
# Under other conditions, where only changes matter.
_COARSE = 0.08
# For each kind of rival as many are known for sure, and of all clusters so many.
_KNOWN_RIVALS = 1
KNOWN = 5


class Estimates:
    """Rates of replicas, each looked at once. ``traffic``: ``Traffic.of_all`` requests; ``least``:
    of those that are to meet the goal."""

    def __init__(self, measure: Measure, traffic: Traffic, least: Traffic, slo: Slo) -> None:
        self._measure = measure
        self._traffic = traffic
        self._least = least
        self._slo = slo
        self._known: dict[SingleReplica, float] = {}
        self._bounds: dict[SingleReplica, float] = {}
        self._limits: dict[SingleReplica, float] = {}

    def known(self, replica: SingleReplica) -> float | None:
        """Requests per second; None for a replica that was not looked at."""
        return self._known.get(replica)

    def learn(self, replicas: Sequence[SingleReplica]) -> None:
        """Looks at those that are not known."""
        unknown = [r for r in dict.fromkeys(replicas) if r not in self._known]
        # What nothing limits, or everything, needs no look.
        self._known |= {r: self._bound(r) for r in unknown if self._bound(r) in (0.0, inf)}
        new = [r for r in unknown if r not in self._known]
        reached = self._measure([ReplicaJob(r, self._first_search(r), SERVICES) for r in new])
        self._known |= {r: found.rate for r, found in zip(new, reached, strict=True)}

    def better(self, replicas: Sequence[SingleReplica], than: Sequence[float]) -> list[float]:
        """Of each: its rate if it is above that of ``than`` by more than the precision, else 0."""
        jobs = [
            ReplicaJob(replica, self._search_above(replica, rate), SERVICES)
            for replica, rate in zip(replicas, than, strict=True)
        ]
        rates = [found.rate for found in self._measure(jobs)]
        self._known |= {r: rate for r, rate in zip(replicas, rates, strict=True) if rate}
        return rates

    def under(
        self, conditions: Sequence[Conditions], replicas: Sequence[SingleReplica]
    ) -> list[dict[SingleReplica, float]]:
        """The rates of known ``replicas`` under each of ``conditions``."""
        jobs = [
            ReplicaJob(replica, self._search_around(replica), SERVICES, changed)
            for changed in conditions
            for replica in replicas
        ]
        rates = [found.rate for found in self._measure(jobs)]
        width = len(replicas)
        return [
            dict(zip(replicas, rates[place * width :][:width], strict=True))
            for place in range(len(conditions))
        ]

    def at_most(self, candidate: Candidate, bound: Bound) -> float:
        """Its estimate; more as long as a replica of it is not known."""
        return rate_of(candidate, self._rate_or_bound, bound.rates)

    def of(self, group: Sequence[Scored]) -> list[Scored]:
        """``group`` with estimates, for which unknown replicas are looked at."""
        self.learn([replica for one in group for replica in replicas_of(one.candidate)])
        return [replace(one, estimate=self.known_of(one)) for one in group]

    def known_of(self, scored: Scored) -> float | None:
        """Its estimate; None if a replica of it is not known."""
        if any(replica not in self._known for replica in replicas_of(scored.candidate)):
            return None
        return self.at_most(scored.candidate, scored.bound)

    def weakest(self, one: Scored) -> list[SingleReplica]:
        """Of the replicas of a known cluster those that serve about as little as the whole."""
        enough = _ENOUGH * (self.at_most(one.candidate, one.bound))
        return [
            replica
            for pool, replica in zip(one.candidate.pools, replicas_of(one.candidate), strict=True)
            if one.candidate.is_colocated or pool.replicas * self._rate_or_bound(replica) < enough
        ]

    def _rate_or_bound(self, replica: SingleReplica) -> float:
        known = self._known.get(replica)
        if known is not None:
            return known
        return min(self._most(replica), _RARELY_MORE * self._bound(replica))

    def _most(self, replica: SingleReplica) -> float:
        """A batch of decodes is as large as memory and TPOT allow, no luck makes it larger; but
        those that may miss the TPOT can be the ones that take most of it."""
        most = _NEVER_MORE * self._bound(replica)
        if replica.role is not Role.DECODE:
            return most
        if replica not in self._limits:
            self._limits[replica] = replica.bound(self._least, self._slo)
        return min(most, self._limits[replica])

    def _bound(self, replica: SingleReplica) -> float:
        if replica not in self._bounds:
            self._bounds[replica] = replica.bound(self._traffic, self._slo)
        return self._bounds[replica]

    def _first_search(self, replica: SingleReplica) -> RateSearch:
        guess = _USUAL * self._bound(replica)
        return RateSearch(guess, self._most(replica), _CERTAINTY, _PRECISION)

    def _search_above(self, replica: SingleReplica, rate: float) -> RateSearch:
        if not rate:
            return self._first_search(replica)
        floor = rate * (1 + _PRECISION)
        most = max(floor, self._most(replica))
        return RateSearch(floor, most, _CERTAINTY, _PRECISION, floor)

    def _search_around(self, replica: SingleReplica) -> RateSearch:
        rate = self._known[replica] or self._bound(replica)
        return RateSearch(rate, max(rate, self._most(replica)), _CERTAINTY, _COARSE)


def rate_of(
    candidate: Candidate,
    of_replica: Callable[[SingleReplica], float],
    bounds: dict[Resource, float],
) -> float:
    """Requests per second of a cluster whose replicas serve what ``of_replica`` says."""
    rates = [
        pool.replicas * of_replica(replica)
        for pool, replica in zip(candidate.pools, replicas_of(candidate), strict=True)
    ]
    if candidate.is_colocated:
        return sum(rates)
    return min(*rates, bounds.get(Resource.LINK, inf))


def estimate_all(
    bounded: Sequence[tuple[Candidate, Bound]],
    estimates: Estimates,
    progress: Callable[[str], None],
) -> list[Scored]:
    """All candidates, the best by estimate first: the first few of all, and the first of each kind
    of rival, have no better before them. Where an estimate is None, it is too low to matter."""
    scored = [Scored(candidate, bound) for candidate, bound in bounded]
    possible = [one for one in scored if one.bound.rate > 0]
    while True:
        ranked = sorted(
            possible, key=lambda one: estimates.at_most(one.candidate, one.bound), reverse=True
        )
        leading = ranked[:KNOWN]
        for is_rival in RIVALS:
            leading += [one for one in ranked if is_rival(one.candidate)][:_KNOWN_RIVALS]
        unknown = dict.fromkeys(
            replica
            for one in leading
            for replica in replicas_of(one.candidate)
            if estimates.known(replica) is None
        )
        if not unknown:
            break
        progress(f"replicas of {len(unknown)} kinds, each alone")
        estimates.learn(list(unknown))
    told = [replace(one, estimate=estimates.known_of(one)) for one in scored]
    return sorted(told, key=lambda one: one.estimate or 0.0, reverse=True)
