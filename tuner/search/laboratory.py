"""Carries simulations out, on all cores: the shell around the search.

Every process gets trace and goal once, then candidates. Results do not depend on the number of
processes. Does not cover: which simulations (``halving``, ``verdict``).
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from core.config import ClusterSpec
from tuner.search.bounds import Traffic, service_seconds
from tuner.search.evaluate import Goal, RateSearch, Reached, Trial, highest_rate, try_rate
from tuner.search.halving import Job
from tuner.search.uncertainty import perturbed
from tuner.search.window import Window
from tuner.simulate.requests import RequestTrace


@dataclass(frozen=True, slots=True)
class Traced:
    """What all simulations of a search have in common."""

    trace: RequestTrace
    base: ClusterSpec
    goal: Goal
    seed: int


@dataclass(frozen=True, slots=True)
class Replicate:
    """A job on other hardware and other traffic, see ``uncertainty``. ``number`` 0: neither."""

    job: Job
    number: int = 0


def reach(given: Traced, replicate: Replicate) -> Reached:
    """What one candidate reaches."""
    job, trace = replicate.job, given.trace
    candidate = job.candidate
    if replicate.number:
        candidate = perturbed(candidate, replicate.number)
        trace = trace.resampled(np.random.default_rng([given.seed, replicate.number]))
    service_s = service_seconds(candidate, Traffic.of(trace), given.goal.slo)

    def attempt(rate: float) -> Trial:
        rung = job.rung
        window = Window(trace, rate, service_s, rung.services, rung.most, given.seed)
        return try_rate(candidate, window, given.base, given.goal)

    search = RateSearch(job.guess, job.most, job.certainty, job.rung.precision, job.floor)
    return highest_rate(attempt, given.goal, search)


_given: Traced | None = None


def _remember(given: Traced) -> None:
    global _given
    _given = given


def _reach(replicate: Replicate) -> Reached:
    assert _given is not None
    return reach(_given, replicate)


class Laboratory:
    """Processes that simulate; a context manager that ends them."""

    def __init__(self, given: Traced, processes: int | None = None) -> None:
        """``processes`` None: one for each core that this process may use."""
        self._given = given
        cores = len(os.sched_getaffinity(0))
        self._processes = cores if processes is None else processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Laboratory:
        if self._processes > 1:
            self._pool = ProcessPoolExecutor(
                self._processes,
                # Threads of the parent must not be forked into the middle of what they do.
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_remember,
                initargs=(self._given,),
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def measure(self, jobs: Sequence[Job]) -> list[Reached]:
        """What each job reached, in their order."""
        return self.replicate([Replicate(job) for job in jobs])

    def replicate(self, replicates: Sequence[Replicate]) -> list[Reached]:
        if self._pool is None:
            return [reach(self._given, replicate) for replicate in replicates]
        return list(self._pool.map(_reach, replicates))
