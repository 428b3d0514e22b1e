"""When no cluster can meet the goal, however few the requests: which one misses it by the least.

Bounds say so before anything is simulated: too many requests miss the TPOT even alone. One trial
of the cluster with the fastest tokens, at a rate at which requests hardly meet, shows how far off
it is.

Pure but for the simulation that ``measure`` makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from core.latency_profile import FEMTOSECONDS, StepWork
from tuner.load.metrics import Slo
from tuner.search.bounds import Bound, Traffic
from tuner.search.finals import FINAL
from tuner.search.halving import Job, Measure, Scored
from tuner.search.space import Candidate
from tuner.search.verdict import Verdict


def nobody_meets(bounded: Sequence[tuple[Candidate, Bound]]) -> bool:
    return not any(bound.rate for _, bound in bounded)


def nearest_miss(
    bounded: Sequence[tuple[Candidate, Bound]], traffic: Traffic, slo: Slo, measure: Measure
) -> tuple[list[Scored], Verdict]:
    """All candidates, the nearest first, and the verdict that names it. ``bounded``: at least one,
    none of which can meet the goal."""
    ranked = sorted(bounded, key=lambda pair: _token_seconds(pair[0], traffic))
    nearest, *rest = [Scored(candidate, bound) for candidate, bound in ranked]
    stay_s = slo.ttft_s + traffic.output_tokens * _token_seconds(nearest.candidate, traffic)
    rate = 1 / stay_s
    job = Job(nearest.candidate, FINAL, rate, rate, floor=rate, is_told=True)
    [reached] = measure([job])
    nearest = replace(nearest, reached=reached, rungs=1)
    return [nearest, *rest], Verdict(None, nearest, None, None)


def _token_seconds(candidate: Candidate, traffic: Traffic) -> float:
    """Of a sequence that decodes alone, on the slowest of its pools."""
    work = StepWork(1, 1, 0, 1, round(traffic.mean_context))
    return max(pool.engine.step.time(work) for pool in candidate.decode) / FEMTOSECONDS
