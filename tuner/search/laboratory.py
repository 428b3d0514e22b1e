"""Carries simulations out, on all cores: the shell around the search.

Every process gets trace and goal once, then trials. Results do not depend on the number of
processes. Does not cover: what one process does (``bench``), which simulations (``halving``,
``estimate``, ``verdict``).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from types import TracebackType

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

    def _all(self, jobs: Sequence[Wanted]) -> list[Reached]:
        if self._pool is None:
            return [self._bench.reach(job) for job in jobs]
        courses = [self._bench.course(job) for job in jobs]
        self._follow(courses, self._pool)
        return [course.reached for course in courses]

    def _follow(self, courses: Sequence[Course], pool: ProcessPoolExecutor) -> None:
        """Makes all their trials."""
        waiting = iter(courses)
        under_way: dict[Future[Trial], Course] = {}

        def go_on(course: Course) -> bool:
            if course.attempt is None:
                return False
            with _starting_processes():  # Those that were not needed until now.
                under_way[pool.submit(_make, course.attempt)] = course
            return True

        def begin_another() -> bool:
            return any(go_on(course) for course in waiting)

        while len(under_way) < _UNDER_WAY * self._processes and begin_another():
            pass
        while under_way:
            for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                course = under_way.pop(done)
                course.take(done.result())
                if not go_on(course):
                    begin_another()
