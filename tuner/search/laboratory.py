"""Carries simulations out, on all cores: the shell around the search.

Every process gets trace and goal once, then trials. Results do not depend on the number of
processes. Does not cover: what one process does (``bench``), which simulations (``halving``,
``estimate``, ``verdict``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from types import TracebackType

from tuner.processes import Processes
from tuner.search.bench import Attempt, Bench, ClusterJob, Course, ReplicaJob, Traced, Wanted
from tuner.search.conditions import Conditions
from tuner.search.evaluate import Trial
from tuner.search.halving import Job
from tuner.search.rate_search import Reached
from tuner.search.single_replica import SingleReplica

# Courses under way for each process: their trials take turns, so that the last course is not one
# that nobody had begun.
_UNDER_WAY = 2

_bench: Bench | None = None


def _remember(given: Traced) -> None:
    global _bench
    _bench = Bench(given)


def _make(attempt: Attempt) -> Trial:
    assert _bench is not None
    return _bench.make(attempt)


class Laboratory:
    """Processes that simulate; a context manager that ends them, at once after an error."""

    def __init__(self, given: Traced, processes: int | None = None) -> None:
        """``processes`` None: one for each core that this process may use."""
        self._given = given
        self._bench = Bench(given)
        cores = len(os.sched_getaffinity(0))
        self._count = cores if processes is None else processes
        self._processes: Processes | None = None

    def __enter__(self) -> Laboratory:
        if self._count > 1:
            self._processes = Processes(self._count, _remember, (self._given,))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._processes is not None:
            self._processes.__exit__(kind, error, trace)

    def measure(self, jobs: Sequence[Job]) -> list[Reached]:
        """What each job reached as given, in their order."""
        return self.clusters([ClusterJob(job) for job in jobs])

    def clusters(self, jobs: Sequence[ClusterJob]) -> list[Reached]:
        """What each cluster reached."""
        return self._all(jobs)

    def replicas(self, jobs: Sequence[ReplicaJob]) -> list[Reached]:
        """What each replica reached."""
        return self._all(jobs)

    def scales(
        self, conditions: Sequence[Conditions], replicas: Sequence[SingleReplica]
    ) -> list[list[float]]:
        """By condition: how much higher or lower the bound of each replica is under it."""
        return [[self._bench.scale(one, under) for one in replicas] for under in conditions]

    def is_shortened(self, replica: SingleReplica, rate: float) -> bool:
        """Whether trials of ``replica`` at ``rate`` leave time out, see ``window``."""
        return self._bench.is_shortened(replica, rate)

    def _all(self, jobs: Sequence[Wanted]) -> list[Reached]:
        if self._processes is None:
            return [self._bench.reach(job) for job in jobs]
        courses = [self._bench.course(job) for job in jobs]
        self._follow(courses, self._processes)
        return [course.reached for course in courses]

    def _follow(self, courses: Sequence[Course], processes: Processes) -> None:
        """Makes all their trials."""
        waiting = iter(courses)
        under_way: dict[Future[Trial], Course] = {}

        def go_on(course: Course) -> bool:
            if course.attempt is None:
                return False
            under_way[processes.submit(_make, course.attempt)] = course
            return True

        def begin_another() -> bool:
            return any(go_on(course) for course in waiting)

        while len(under_way) < _UNDER_WAY * self._count and begin_another():
            pass
        while under_way:
            for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                course = under_way.pop(done)
                course.take(done.result())
                if not go_on(course):
                    begin_another()
