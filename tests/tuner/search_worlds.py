"""Budgets, traffic and made-up results for the tests of the search."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from core.latency_profile import LatencyProfile
from core.shards import ParallelShape
from tuner.load.metrics import Goodput, Slo, Spread
from tuner.profile import hardware, model_shape
from tuner.profile.modelled import modelled_profile
from tuner.search.bounds import Bound, Traffic, bound_rate
from tuner.search.evaluate import Goal, Trial
from tuner.search.halving import Job
from tuner.search.rate_search import Reached
from tuner.search.space import Accelerators, Budget, Candidate, Limits
from tuner.simulate.requests import RequestTrace
from tuner.simulate.summary import SimulationSummary

SLO = Slo(1.0, 0.05)
GOAL = Goal(SLO, 90.0)
LIMITS = Limits(256, 2048)


def profile_of(kind: str, model: str = "llama-3.1-8b") -> LatencyProfile:
    return modelled_profile(
        hardware.BUILT_IN[kind], model_shape.BUILT_IN[model], "bfloat16", "2026-11-21"
    )


def budget_of(kind: str, count: int) -> Budget:
    both = Accelerators(profile_of(kind), count, 2.0)
    return Budget(both, both)


def chat_trace(count: int = 400, seed: int = 0) -> RequestTrace:
    generator = np.random.default_rng(seed)
    return RequestTrace(
        "chats",
        np.concatenate([[0.0], np.cumsum(generator.exponential(0.1, count - 1))]),
        generator.integers(200, 2000, count).astype(np.int32),
        generator.integers(50, 300, count).astype(np.int32),
    )


def shared_trace(count: int = 400, seed: int = 0) -> RequestTrace:
    """Every prompt begins with one of ten beginnings, half of it long."""
    chats = chat_trace(count, seed)
    beginnings = np.random.default_rng([seed, 1]).integers(0, 10, count)
    shared = [np.array([2 * b, 2 * b + 1], dtype=np.int32) for b in beginnings.tolist()]
    return replace(chats, shared=shared, part_tokens=256)


def only_shapes(profile: LatencyProfile, shapes: set[ParallelShape]) -> LatencyProfile:
    """As if no other had been profiled."""
    return replace(profile, engines=tuple(e for e in profile.engines if e.shape in shapes))


def bounded(candidates: Sequence[Candidate], trace: RequestTrace) -> list[tuple[Candidate, Bound]]:
    traffic = Traffic.of(trace)
    return [(candidate, bound_rate(candidate, traffic, SLO)) for candidate in candidates]


def summary_at(rate: float, share: float) -> SimulationSummary:
    spread = Spread(0.5, 0.5, 0.6, 0.7, 0.8)
    return SimulationSummary(
        requests=100,
        completed=100,
        failed=0,
        errors={},
        window_s=10.0,
        elapsed_s=10.0,
        requests_per_s=rate,
        input_tokens_per_s=1000 * rate,
        output_tokens_per_s=200 * rate,
        hit_rate=0.0,
        ttft_s=spread,
        tpot_s=spread,
        itl_s=spread,
        e2e_s=spread,
        goodput=Goodput(rate * share, share, share, share),
        pools=(),
        transferred_tokens=0,
        edges_busy=0.0,
    )


class MadeUpWorld:
    """Every candidate reaches some part of its bound; a coarse rung sees it inexactly."""

    def __init__(self, bounds: Sequence[tuple[Candidate, Bound]], blur: float) -> None:
        self.truth = {c: bound.rate * self._part(c, "truth", 0.6, 0.95) for c, bound in bounds}
        self._blur = blur
        self.simulated: list[Candidate] = []

    def _part(self, candidate: Candidate, salt: str, low: float, high: float) -> float:
        number = zlib.crc32(f"{salt} {candidate}".encode()) / 2**32
        return low + (high - low) * number

    def measure(self, jobs: Sequence[Job]) -> list[Reached]:
        return [self._reached(job) for job in jobs]

    def _reached(self, job: Job) -> Reached:
        self.simulated.append(job.candidate)
        error = self._blur * job.rung.precision
        seen = self._part(job.candidate, str(job.rung.services), 1 - error, 1 + error)
        rate = min(job.most, self.truth[job.candidate] * seen)
        trial = Trial(rate, 0.95, summary_at(rate, 0.95))
        return Reached(trial, trial, 1)
