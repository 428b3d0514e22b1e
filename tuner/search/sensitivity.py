"""Which way to move if the traffic changes: the winner and its neighbours on other traffic.

Does not cover: changing the ratio of a running cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuner.search.conditions import CHANGES
from tuner.search.halving import Scored
from tuner.search.space import Candidate
from tuner.search.verdict import RatesUnder


@dataclass(frozen=True, slots=True)
class Shift:
    """With traffic changed as ``change`` says, ``best`` of the winner and its neighbours reaches
    ``rate``, the winner itself ``stays_at``."""

    change: str
    best: Candidate
    rate: float
    stays_at: float


def neighbours(winner: Scored, everyone: Sequence[Scored]) -> list[Scored]:
    """The winner, and of the clusters with its shapes and as many accelerators the ones with the
    next lower and higher share of prefill."""
    of, shapes = winner.candidate, [pool.shape for pool in winner.candidate.pools]
    alike = [
        one
        for one in everyone
        if one.candidate.is_colocated == of.is_colocated
        and [pool.shape for pool in one.candidate.pools] == shapes
        and one.candidate.accelerators == of.accelerators
    ]
    lower = [one for one in alike if one.candidate.ratio < of.ratio]
    higher = [one for one in alike if one.candidate.ratio > of.ratio]
    found = [winner]
    if lower:
        found.append(max(lower, key=lambda one: one.candidate.ratio))
    if higher:
        found.append(min(higher, key=lambda one: one.candidate.ratio))
    return found


def shifts_of(close: Sequence[Scored], rates_under: RatesUnder) -> tuple[Shift, ...]:
    """``close``: the winner first, then its ``neighbours``."""
    rows = rates_under(list(CHANGES.values()), close)
    found = []
    for change, rates in zip(CHANGES, rows, strict=True):
        best = max(range(len(close)), key=rates.__getitem__)
        found.append(Shift(change, close[best].candidate, rates[best], rates[0]))
    return tuple(found)
