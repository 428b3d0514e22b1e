"""The best clusters by estimate, simulated as a whole: what the verdict is about.

Every estimate is wrong by a factor that clusters of a kind have in common (queues that many
replicas share make them serve more than each alone; two pools miss more than one). So the first of
each kind is searched from its estimate, and tells where to begin with the others, which are given
up once they miss the goal at what the best one reached.

Pure but for the simulations that ``measure`` makes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tuner.search.bounds import SLACK
from tuner.search.halving import RIVALS, Job, Measure, Rung, Scored

FINAL = Rung(services=2.0, precision=0.03, keep=0)
# So far below the first an estimate may be for a cluster to be looked at, and so many are.
_NEAR = 0.88
_MOST = 5
# An estimate is above or below by as much, usually; one that another of its kind corrects, by less.
_UNSURE, _SURER = 1.08, 1.04
# Of the rate of the best: who misses the goal at it is given up.
_BEATEN = 0.97


def finalists(estimated: Sequence[Scored]) -> list[Scored]:
    """The best by estimate and the best of each kind of rival; ``estimated``: the best first."""
    known = [one for one in estimated if one.estimate]
    if not known:
        return [one for one in estimated if one.bound.rate > 0][:1]
    near = _NEAR * (known[0].estimate or 0.0)
    chosen = [one for one in known if (one.estimate or 0.0) >= near][:_MOST]
    for is_rival in RIVALS:
        best = next((one for one in known if is_rival(one.candidate)), None)
        if best is not None and best not in chosen:
            chosen.append(best)
    return chosen


def play(
    chosen: Sequence[Scored], measure: Measure, progress: Callable[[str], None]
) -> list[Scored]:
    """``chosen`` with what they reach, the best first. ``chosen``: of ``finalists``."""
    leaders = leaders_of(chosen)
    progress(f"{len(leaders)} whole clusters, the best of each kind")
    first = _look(leaders, measure, [_guess(one) for one in leaders], _UNSURE, floor=0.0)
    others = [one for one in chosen if one not in leaders]
    best = max(one.rate for one in first)
    if others:
        progress(f"{len(others)} whole clusters that may be better than {best:.2f} requests/s")
    guesses = [_guess(one) * _factor(one, first) for one in others]
    looked = [*first, *_look(others, measure, guesses, _SURER, floor=_BEATEN * best)]
    return sorted(looked, key=lambda one: (one.rate, one.estimate or 0.0), reverse=True)


def leaders_of(chosen: Sequence[Scored]) -> list[Scored]:
    """The best by estimate, and the best of each kind of rival."""
    leaders = [chosen[0]]
    for is_rival in RIVALS:
        best = next((one for one in chosen if is_rival(one.candidate)), None)
        if best is not None and best not in leaders:
            leaders.append(best)
    return leaders


def _look(
    chosen: Sequence[Scored],
    measure: Measure,
    guesses: Sequence[float],
    certainty: float,
    floor: float,
) -> list[Scored]:
    jobs = [
        Job(one.candidate, FINAL, guess, _most(one), certainty, floor)
        for one, guess in zip(chosen, guesses, strict=True)
    ]
    return [
        replace(one, reached=reached, rungs=one.rungs + 1)
        for one, reached in zip(chosen, measure(jobs), strict=True)
    ]


def _most(one: Scored) -> float:
    return SLACK * one.bound.rate


def _guess(one: Scored) -> float:
    return min(one.estimate or 0.9 * one.bound.rate, _most(one))


def _factor(one: Scored, first: Sequence[Scored]) -> float:
    """Reached over estimated, of the first of its kind."""
    alike = [f for f in first if f.candidate.is_colocated is one.candidate.is_colocated]
    return next((f.rate / f.estimate for f in alike if f.rate and f.estimate), 1.0)
