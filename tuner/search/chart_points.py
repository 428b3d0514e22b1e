"""What the pictures of a search show: its candidates as points, and those that matter most. Pure.

Does not cover: drawing them (``charts``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuner.search.halving import Scored
from tuner.search.report import tokens_per_accelerator, tokens_per_user
from tuner.search.space import Candidate
from tuner.search.tune import TuneResult


@dataclass(frozen=True, slots=True)
class Point:
    """One candidate. ``prefill_share``: of all its accelerators; 0 for colocated. Of one that was
    not simulated as a whole the rate is an estimate and tokens per second are not known."""

    name: str
    is_colocated: bool
    prefill_share: float
    rate_per_accelerator: float
    tokens_per_accelerator: float | None = None
    tokens_per_user: float | None = None

    @property
    def is_estimate(self) -> bool:
        return self.tokens_per_user is None


def points(result: TuneResult) -> list[Point]:
    """All candidates that met the SLO at some rate, and those with an estimate."""
    found = [_point(scored) for scored in result.scored]
    return [point for point in found if point is not None]


def _point(scored: Scored) -> Point | None:
    candidate, reached = scored.candidate, scored.reached
    place = (str(candidate), candidate.is_colocated, prefill_share(candidate))
    if reached is None:
        estimate = scored.estimate
        return Point(*place, estimate / candidate.accelerators) if estimate else None
    if reached.trial is None:
        return None
    tokens = (tokens_per_accelerator(scored, reached.trial), tokens_per_user(reached.trial))
    return Point(*place, scored.rate_per_accelerator, *tokens)


def pareto_front(found: Sequence[Point]) -> list[Point]:
    """Those that nobody beats in both tokens/s/GPU and tokens/s/user, by the latter."""
    front: list[Point] = []
    highest = -1.0
    known = [(p.tokens_per_user, p.tokens_per_accelerator, p) for p in found]
    for _, of_gpu, point in sorted(
        ((user, gpu, p) for user, gpu, p in known if user is not None and gpu is not None),
        key=lambda one: one[:2],
        reverse=True,
    ):
        if of_gpu > highest:
            front.append(point)
            highest = of_gpu
    return front[::-1]


def prefill_share(candidate: Candidate) -> float:
    """The ratio of the pools as a share (0 to 1), which has no end that is far away."""
    return candidate.ratio / (1 + candidate.ratio)


def best_of_each_share(found: Sequence[Point]) -> list[Point]:
    """The highest simulated goodput at each ratio of two pools, by the share of prefill."""
    best: dict[float, Point] = {}
    for point in found:
        if point.is_colocated or point.is_estimate:
            continue
        known = best.get(point.prefill_share)
        if known is None or point.rate_per_accelerator > known.rate_per_accelerator:
            best[point.prefill_share] = point
    return [best[share] for share in sorted(best)]


def neighbours_of(
    places: Mapping[int, tuple[float, float]], close: tuple[float, float]
) -> list[list[int]]:
    """``places``, (x, y) by number, in groups that are told together: each is nearer than ``close``
    to the first of its group in both directions."""
    groups: list[list[int]] = []
    for number, place in places.items():
        for group in groups:
            first = places[group[0]]
            if abs(place[0] - first[0]) < close[0] and abs(place[1] - first[1]) < close[1]:
                group.append(number)
                break
        else:
            groups.append([number])
    return groups
