"""The fewest or cheapest accelerators that serve a rate: cheaper clusters are looked at first.

Pure but for the simulations that ``measure`` makes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tuner.search.bounds import SLACK, Bound
from tuner.search.halving import RUNGS, Job, Measure, Rung, Scored
from tuner.search.space import Candidate
from tuner.search.verdict import Verdict, nearest_of

# So many clusters are looked at before it is asked whether dearer ones are needed.
_STEP = 6
_QUICK = RUNGS[0]
_CLOSE = replace(RUNGS[-1], precision=0.05)
# Below this share of the rate nothing is said by a closer look.
_PROMISING = 0.9


def cheapest(
    rate: float,
    bounded: Sequence[tuple[Candidate, Bound]],
    measure: Measure,
    estimated: Callable[[Sequence[Scored]], Sequence[Scored]],
    progress: Callable[[str], None],
) -> list[Scored]:
    """By price, then by number: the first few that serve ``rate`` and what could cost as little.
    ``bounded``: with at least one bound above 0. ``estimated`` fills in estimates; None where there
    can't be any."""
    possible = [Scored(c, bound) for c, bound in bounded if SLACK * bound.rate >= rate]
    possible.sort(key=lambda one: (*_cost(one), -one.bound.rate))
    if not possible:
        # For the nearest: those that could come closest.
        possible = [Scored(c, bound) for c, bound in bounded if bound.rate > 0]
        possible = sorted(possible, key=lambda one: -one.bound.rate)[:_STEP]
    found: list[Scored] = []
    failed: list[Scored] = []
    for first in range(0, len(possible), _STEP):
        group = estimated(possible[first : first + _STEP])
        if found and _cost(group[0]) > _cost(found[0]):
            break
        progress(f"{first} of {len(possible)} clusters looked at, the cheaper ones first")
        seen = _at(rate, _likely(rate, group), _QUICK, measure)
        promising = [one for one in seen if one.rate >= _PROMISING * rate]
        looked = _at(rate, promising, _CLOSE, measure)
        found += [one for one in looked if _serves(one, rate)]
        failed += [one for one in seen if one.rate < _PROMISING * rate]
        failed += [one for one in looked if not _serves(one, rate)]
        found.sort(key=lambda one: (*_cost(one), -one.rate))
    simulated = [one.candidate for one in (*found, *failed)]
    rest = [Scored(c, bound) for c, bound in bounded if c not in simulated]
    failed.sort(key=lambda one: one.rate, reverse=True)
    return [*found, *failed, *rest]


def verdict_on_cost(rate: float, scored: Sequence[Scored]) -> Verdict:
    """Rivals of the same cost, colocated ones among them, were looked at before dearer ones."""
    if not _serves(scored[0], rate):
        return Verdict(None, nearest_of(scored), None, None)
    return Verdict(scored[0], scored[0], None, None)


def _serves(one: Scored, rate: float) -> bool:
    """For as long as one likes: who only gets through the time that is simulated does not."""
    trial = one.reached.trial if one.reached is not None else None
    return trial is not None and trial.lasting_rate >= rate


def _likely(rate: float, group: Sequence[Scored]) -> list[Scored]:
    return [one for one in group if one.estimate is None or SLACK * one.estimate >= rate] or [
        max(group, key=lambda one: one.estimate or 0.0)
    ]


def _at(rate: float, group: Sequence[Scored], rung: Rung, measure: Measure) -> list[Scored]:
    """What each reaches up to half above ``rate``: nobody asks for more."""
    jobs = [
        Job(
            one.candidate,
            rung,
            min(rate, SLACK * one.bound.rate),
            min(1.5 * rate, SLACK * one.bound.rate),
        )
        for one in group
    ]
    return [
        replace(one, reached=reached, rungs=1)
        for one, reached in zip(group, measure(jobs), strict=True)
    ]


def _cost(one: Scored) -> tuple[float, int]:
    return one.candidate.hour_price, one.candidate.accelerators
