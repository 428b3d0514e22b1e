"""One process that simulates: what is asked of clusters and replicas, trial by trial.

Does not cover: which of them are asked for (``halving``, ``estimate``, ``finals``), sharing the
work between processes (``laboratory``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf

from core.config import ClusterSpec
from tuner.search.bounds import service_seconds
from tuner.search.conditions import AS_GIVEN, Conditions, Sampled
from tuner.search.evaluate import Goal, Trial, try_rate
from tuner.search.halving import Job
from tuner.search.rate_search import Bracket, RateSearch, Reached
from tuner.search.single_replica import SingleReplica
from tuner.search.specs import divisor_of, model_candidate, part_of
from tuner.search.uncertainty import perturbed
from tuner.search.window import Counted, Window
from tuner.simulate.cluster_model import ClusterModel
from tuner.simulate.requests import RequestTrace

# As many are under way at a time in one process, about.
_CONDITIONS_KEPT = 4


@dataclass(frozen=True, slots=True)
class Traced:
    """What all simulations of a search have in common."""

    trace: RequestTrace
    base: ClusterSpec
    goal: Goal
    seed: int


@dataclass(frozen=True, slots=True)
class ClusterJob:
    """A job under some conditions."""

    job: Job
    conditions: Conditions = AS_GIVEN

    @property
    def is_told(self) -> bool:
        """Whether its nearest trial is simulated to the end, if it meets the goal at no rate."""
        return self.job.is_told or not self.job.floor


@dataclass(frozen=True, slots=True)
class ReplicaJob:
    """One replica to look at. ``search`` is for conditions as given: under others it starts as
    much higher or lower as the bound is."""

    replica: SingleReplica
    search: RateSearch
    services: float
    conditions: Conditions = AS_GIVEN

    @property
    def is_told(self) -> bool:
        """As of a cluster."""
        return False


Wanted = ClusterJob | ReplicaJob


@dataclass(frozen=True, slots=True)
class Attempt:
    """A trial to make, at ``rate`` requests per second; see ``evaluate.try_rate``."""

    wanted: Wanted
    rate: float
    to_the_end: bool = False


class Course:
    """All trials of ``wanted``, one after the other. ``attempt`` is the next one to make; None once
    it is known what is ``reached``."""

    def __init__(self, wanted: Wanted, goal: Goal, search: RateSearch) -> None:
        self._wanted = wanted
        self._bracket = Bracket(goal, search)
        self._to_the_end: Trial | None = None

    @property
    def attempt(self) -> Attempt | None:
        """To be made by ``Bench.make``."""
        if self._bracket.rate is not None:
            return Attempt(self._wanted, self._bracket.rate)
        reached = self.reached
        nearest = reached.nearest
        if reached.trial or not self._wanted.is_told or nearest is None or not nearest.is_cut_short:
            return None
        return Attempt(self._wanted, nearest.rate, to_the_end=True)

    def take(self, trial: Trial) -> None:
        """The trial of ``attempt``."""
        if self._bracket.rate is not None:
            self._bracket.take(trial)
        else:
            self._to_the_end = trial

    @property
    def reached(self) -> Reached:
        """What is known by now."""
        reached = self._bracket.reached
        return replace(reached, nearest=self._to_the_end) if self._to_the_end else reached


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is simulated at different rates; a ``divisor``-th of what is asked about."""

    cluster: ClusterModel
    source: RequestTrace
    counted: Counted
    divisor: int = 1


class Bench:
    """Simulates in this process. Remembers the traffic as given and that of the latest
    conditions."""

    def __init__(self, given: Traced) -> None:
        self._given = given
        self._plain = self._changed(AS_GIVEN)
        self._kept = lru_cache(_CONDITIONS_KEPT)(self._changed)

    def reach(self, wanted: Wanted) -> Reached:
        """What one cluster or replica reaches."""
        course = self.course(wanted)
        while course.attempt is not None:
            course.take(self.make(course.attempt))
        return course.reached

    def course(self, wanted: Wanted) -> Course:
        """The trials that tell what ``wanted`` reaches."""
        if isinstance(wanted, ReplicaJob):
            search = wanted.search.scaled(self.scale(wanted.replica, wanted.conditions))
        else:
            job = wanted.job
            search = RateSearch(job.guess, job.most, job.certainty, job.rung.precision, job.floor)
        return Course(wanted, self._given.goal, search)

    def make(self, attempt: Attempt) -> Trial:
        """The trial."""
        wanted, goal = attempt.wanted, self._given.goal
        subject = self._cluster(wanted) if isinstance(wanted, ClusterJob) else self._replica(wanted)
        part = attempt.rate / subject.divisor
        window = Window(subject.source, part, subject.counted, self._given.seed)
        trial = try_rate(subject.cluster, window, goal, to_the_end=attempt.to_the_end)
        return replace(trial, rate=attempt.rate, divided_by=subject.divisor)

    def _cluster(self, wanted: ClusterJob) -> _Subject:
        given, job, conditions = self._given, wanted.job, wanted.conditions
        slo, candidate, sampled = given.goal.slo, job.candidate, self._sampled(conditions)
        if conditions.replicate:
            candidate = perturbed(candidate, conditions.replicate, given.seed)
        stay_s = service_seconds(candidate, sampled.means, slo)
        divisor = divisor_of(candidate)
        return _Subject(
            model_candidate(part_of(candidate, divisor), given.base),
            sampled.source,
            Counted.of(stay_s, slo.ttft_s, job.rung.services),
            divisor,
        )

    def _replica(self, wanted: ReplicaJob) -> _Subject:
        given, conditions, replica = self._given, wanted.conditions, wanted.replica
        sampled = self._sampled(conditions)
        if conditions.replicate:
            replica = replica.perturbed(conditions.replicate, given.seed)
        return _Subject(
            replica.cluster(given.base),
            replica.requests(sampled.source),
            replica.counted(sampled.means, given.goal.slo, wanted.services),
        )

    def scale(self, replica: SingleReplica, conditions: Conditions) -> float:
        """The bound of ``replica`` under ``conditions`` over that as given."""
        slo, before = self._given.goal.slo, self._plain.means
        after = self._sampled(conditions).means
        changed = replica
        if conditions.replicate:
            changed = replica.perturbed(conditions.replicate, self._given.seed)
        plain = replica.bound(before, slo)
        return changed.bound(after, slo) / plain if 0 < plain < inf else 1.0

    def is_shortened(self, replica: SingleReplica, rate: float) -> bool:
        """Whether trials of ``replica`` at ``rate`` leave time out, see ``window``."""
        counted = replica.counted(self._plain.means, self._given.goal.slo, services=1.0)
        return counted.is_shortened(rate)

    def _sampled(self, conditions: Conditions) -> Sampled:
        return self._plain if conditions == AS_GIVEN else self._kept(conditions)

    def _changed(self, conditions: Conditions) -> Sampled:
        given = self._given
        return conditions.traffic(given.trace, given.seed, given.goal.share)
