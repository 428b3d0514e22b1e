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
from tuner.search.space import Candidate

FINAL = Rung(services=1.0, precision=0.03, keep=0)
# So far below the first an estimate may be for a cluster to be looked at, and so many are.
_NEAR = 0.88
_MOST = 6
# So few are all looked at.
_FEW = 6
# Whole clusters usually come about so near their estimates.
_USUAL = 0.98
# Given by another of its kind, an estimate is wrong by less: below this share of the best rate it
# is not worth a simulation.
HOPEFUL = 0.95


def finalists(estimated: Sequence[Scored]) -> list[Scored]:
    """The best by estimate and the best of each kind; ``estimated``: the best first."""
    known = _known(estimated)
    if not known:
        return [one for one in estimated if one.bound.rate > 0][:1]
    if len(known) <= _FEW:
        return known
    near = _NEAR * (known[0].estimate or 0.0)
    chosen = [one for one in known if (one.estimate or 0.0) >= near][:_MOST]
    chosen += [one for one in leaders_of(known) if one not in chosen]
    return chosen


def least_hope(estimated: Sequence[Scored]) -> float:
    """The share of the best rate that a cluster of the ``finalists`` of ``estimated`` must promise
    to be simulated."""
    return 0.0 if len(_known(estimated)) <= _FEW else HOPEFUL


def _known(estimated: Sequence[Scored]) -> list[Scored]:
    return [one for one in estimated if one.estimate]


def leaders_of(estimated: Sequence[Scored]) -> list[Scored]:
    """The best by estimate of those with two pools, and of each kind of rival."""
    leaders: list[Scored] = []
    for is_kind in (_has_two_pools, *RIVALS):
        best = next((one for one in estimated if is_kind(one.candidate)), None)
        if best is not None and best not in leaders:
            leaders.append(best)
    return leaders


def play(
    chosen: Sequence[Scored],
    measure: Measure,
    progress: Callable[[str], None],
    hope: float = HOPEFUL,
) -> list[Scored]:
    """``chosen``, of ``finalists``, with what they reach, the best first. Those that don't promise
    ``hope`` of the best rate are as they came, at the end."""
    leaders = leaders_of(chosen)
    progress(f"{len(leaders)} whole clusters, the best of each kind")
    first = _look(leaders, measure, [_USUAL * _guess(one) for one in leaders], floor=0.0)
    best = max(one.rate for one in first)
    others = [one for one in chosen if one not in leaders]
    guesses = [_guess(one) * _factor(one, first) for one in others]
    worth = [one for one, guess in zip(others, guesses, strict=True) if guess >= hope * best]
    if worth:
        progress(f"{len(worth)} whole clusters that may serve more than {best:.2f} requests/s")
    # Whoever misses the goal at the next rate that counts as higher is given up.
    floor = best * (1 + FINAL.precision / 2)
    # Where no first one serves anything, the others begin as those did.
    starts = [floor or _USUAL * _guess(one) for one in worth]
    looked = [*first, *_look(worth, measure, starts, floor)]
    ranked = sorted(looked, key=lambda one: (one.rate, one.estimate or 0.0), reverse=True)
    return [*ranked, *(one for one in others if one not in worth)]


def _has_two_pools(candidate: Candidate) -> bool:
    return not candidate.is_colocated


def _look(
    chosen: Sequence[Scored],
    measure: Measure,
    guesses: Sequence[float],
    floor: float,
) -> list[Scored]:
    jobs = [
        Job(one.candidate, FINAL, guess, _most(one), 1 + FINAL.precision, floor)
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
    """Reached over estimated, of the first of its kind; not below 1: what one lacks may be what
    only its shapes lack."""
    alike = [f for f in first if _pools(f) == _pools(one)]
    return max([1.0, *(f.rate / f.estimate for f in alike if f.estimate)])


def _pools(one: Scored) -> tuple[bool, int]:
    """Workers of two kinds beside each other are a kind of their own: the router treats them
    alike."""
    return one.candidate.is_colocated, len(one.candidate.pools)
