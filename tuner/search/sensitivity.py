"""Which way to move if the traffic changes: the winner and its neighbours on other traffic.

Does not cover: changing the ratio of a running cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tuner.load.metrics import Slo
from tuner.search.bounds import SLACK, Traffic, bound_rate
from tuner.search.evaluate import Reached
from tuner.search.halving import Job, Rung, Scored
from tuner.search.space import Candidate
from tuner.simulate.requests import RequestTrace

_RUNG = Rung(services=1.0, precision=0.1, most=1_500, keep=0)
GROWTH = 1.2


@dataclass(frozen=True, slots=True)
class Shift:
    """With traffic changed as ``change`` says, ``best`` of the winner and its neighbours reaches
    ``rate``, the winner itself ``stays_at``."""

    change: str
    best: Candidate
    rate: float
    stays_at: float


def changes(trace: RequestTrace) -> dict[str, RequestTrace]:
    """By description: traffic that differs from ``trace`` in one way."""
    return {
        "prompts 20 % longer": replace(
            trace, prompt_tokens=np.ceil(trace.prompt_tokens * GROWTH).astype(np.int32)
        ),
        "answers 20 % longer": replace(
            trace, output_tokens=np.ceil(trace.output_tokens * GROWTH).astype(np.int32)
        ),
    }


def neighbours(winner: Candidate, everyone: Sequence[Candidate]) -> list[Candidate]:
    """The winner, and of the clusters with its shapes the ones with the next lower and higher share
    of prefill."""
    shapes = [pool.shape for pool in winner.pools]
    alike = [
        other
        for other in everyone
        if other.is_colocated == winner.is_colocated
        and [pool.shape for pool in other.pools] == shapes
        and other != winner
    ]
    lower = [other for other in alike if other.ratio < winner.ratio]
    higher = [other for other in alike if other.ratio > winner.ratio]
    found = [winner]
    if lower:
        found.append(max(lower, key=lambda other: other.ratio))
    if higher:
        found.append(min(higher, key=lambda other: other.ratio))
    return found


def shift(
    change: str,
    trace: RequestTrace,
    winner: Scored,
    everyone: Sequence[Candidate],
    slo: Slo,
    measure: Callable[[Sequence[Job]], Sequence[Reached]],
) -> Shift:
    """``measure`` simulates ``trace``, the changed one."""
    traffic = Traffic.of(trace)
    close = neighbours(winner.candidate, everyone)
    bounds = [bound_rate(candidate, traffic, slo).rate for candidate in close]
    jobs = [
        Job(candidate, _RUNG, min(winner.rate, bound), SLACK * bound)
        for candidate, bound in zip(close, bounds, strict=True)
        if bound > 0
    ]
    rates = {job.candidate: reached.rate for job, reached in zip(jobs, measure(jobs), strict=True)}
    best = max(rates, key=rates.__getitem__, default=winner.candidate)
    return Shift(change, best, rates.get(best, 0.0), rates.get(winner.candidate, 0.0))
