"""Carries simulations out, on all cores: the shell around the search.

Every process gets trace and goal once, then candidates. Results do not depend on the number of
processes. Does not cover: which simulations (``halving``, ``estimate``, ``verdict``).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from types import TracebackType

from core.config import ClusterSpec
from tuner.search.bounds import service_seconds
from tuner.search.conditions import AS_GIVEN, Conditions, Sampled
from tuner.search.evaluate import Goal, RateSearch, Reached, Trial, highest_rate, try_rate
from tuner.search.halving import Job
from tuner.search.single_replica import SingleReplica
from tuner.search.specs import divisor_of, model_candidate, part_of
from tuner.search.uncertainty import perturbed
from tuner.search.window import Counted, Window
from tuner.simulate.cluster_model import ClusterModel
from tuner.simulate.requests import RequestTrace


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


@dataclass(frozen=True, slots=True)
class ReplicaJob:
    """One replica to look at. ``search`` is for conditions as given: under others it starts as
    much higher or lower as the bound is."""

    replica: SingleReplica
    search: RateSearch
    services: float
    conditions: Conditions = AS_GIVEN


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is simulated at different rates; a ``divisor``-th of what is asked about."""

    cluster: ClusterModel
    source: RequestTrace
    counted: Counted
    divisor: int = 1


class Bench:
    """Simulates in this process. Remembers the traffic as given and that of the latest job."""

    def __init__(self, given: Traced) -> None:
        self._given = given
        self._plain = self._changed(AS_GIVEN)
        self._latest = AS_GIVEN, self._plain

    def reach(self, wanted: ClusterJob) -> Reached:
        """What one cluster reaches."""
        given, job, conditions = self._given, wanted.job, wanted.conditions
        slo, candidate, sampled = given.goal.slo, job.candidate, self._sampled(conditions)
        if conditions.replicate:
            candidate = perturbed(candidate, conditions.replicate, given.seed)
        stay_s = service_seconds(candidate, sampled.means, slo)
        divisor = divisor_of(candidate)
        subject = _Subject(
            model_candidate(part_of(candidate, divisor), given.base),
            sampled.source,
            Counted.of(stay_s, slo.ttft_s, job.rung.services),
            divisor,
        )
        search = RateSearch(job.guess, job.most, job.certainty, job.rung.precision, job.floor)
        return self._search(subject, search, job.is_told or not job.floor)

    def reach_alone(self, wanted: ReplicaJob) -> Reached:
        """What one replica reaches."""
        given, conditions, replica = self._given, wanted.conditions, wanted.replica
        sampled, slo, search = self._sampled(conditions), given.goal.slo, wanted.search
        search = search.scaled(self.scale(replica, conditions))
        if conditions.replicate:
            replica = replica.perturbed(conditions.replicate, given.seed)
        subject = _Subject(
            replica.cluster(given.base),
            replica.requests(sampled.source),
            replica.counted(sampled.means, slo, wanted.services),
        )
        return self._search(subject, search, is_told=False)

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
        if conditions == AS_GIVEN:
            return self._plain
        if self._latest[0] != conditions:
            self._latest = conditions, self._changed(conditions)
        return self._latest[1]

    def _changed(self, conditions: Conditions) -> Sampled:
        given = self._given
        return conditions.traffic(given.trace, given.seed, given.goal.share)

    def _search(self, subject: _Subject, search: RateSearch, is_told: bool) -> Reached:
        goal = self._given.goal

        def attempt(rate: float, to_the_end: bool = False) -> Trial:
            part = rate / subject.divisor
            window = Window(subject.source, part, subject.counted, self._given.seed)
            trial = try_rate(subject.cluster, window, goal, to_the_end=to_the_end)
            return replace(trial, rate=rate, divided_by=subject.divisor)

        reached = highest_rate(attempt, goal, search)
        nearest = reached.nearest
        if reached.trial or not is_told or nearest is None or not nearest.is_cut_short:
            return reached
        return replace(reached, nearest=attempt(nearest.rate, to_the_end=True))


_bench: Bench | None = None


def _remember(given: Traced) -> None:
    global _bench
    _bench = Bench(given)


def _reach(wanted: ClusterJob | ReplicaJob) -> Reached:
    assert _bench is not None
    return _reach_with(_bench, wanted)


def _reach_with(bench: Bench, wanted: ClusterJob | ReplicaJob) -> Reached:
    return bench.reach(wanted) if isinstance(wanted, ClusterJob) else bench.reach_alone(wanted)


@contextmanager
def _starting_processes() -> Iterator[None]:
    """Ctrl-C is for this process alone, from the first moment of a child's life: it inherits which
    signals are blocked. This process hears of it at the end."""
    resource_tracker.ensure_running()  # Else it begins with the first child and unblocks them.
    with _interrupted_later():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """Ctrl-C comes at the end. That a signal is blocked here is not enough: another thread takes
    it, and this one is interrupted all the same. A child whose parent is interrupted while it tells
    it what to do would complain."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or not _is_main_thread():
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


class Laboratory:
    """Processes that simulate; a context manager that ends them, at once after an error."""

    def __init__(self, given: Traced, processes: int | None = None) -> None:
        """``processes`` None: one for each core that this process may use."""
        self._given = given
        self._bench = Bench(given)
        cores = len(os.sched_getaffinity(0))
        self._processes = cores if processes is None else processes
        self._pool: ProcessPoolExecutor | None = None
        self._others: list[BaseProcess] = []

    def __enter__(self) -> Laboratory:
        if self._processes > 1:
            try:
                with _starting_processes():
                    self._start()
            except BaseException as error:
                self.__exit__(type(error), error, error.__traceback__)
                raise
        return self

    def _start(self) -> None:
        self._others = multiprocessing.active_children()
        self._pool = ProcessPoolExecutor(
            self._processes,
            # Threads of the parent must not be forked into the middle of what they do.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_remember,
            initargs=(self._given,),
        )
        for _ in range(self._processes):
            self._pool.submit(int)  # Each starts one, unless one is done already.

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is None:
            return
        if error is not None:
            self._kill_children()
        self._pool.shutdown(cancel_futures=True)

    def _kill_children(self) -> None:
        for child in multiprocessing.active_children():
            if child not in self._others:
                child.kill()

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

    def _all(self, jobs: Sequence[ClusterJob | ReplicaJob]) -> list[Reached]:
        if self._pool is None:
            return [_reach_with(self._bench, job) for job in jobs]
        with _starting_processes():  # Those that were not needed until now.
            reached = self._pool.map(_reach, jobs)
        return list(reached)
