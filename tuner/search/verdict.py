"""The answer of a search: which cluster, how much better than its rivals, how sure.

Does not cover: how to say it (``report``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tuner.search.evaluate import Reached
from tuner.search.halving import RIVALS, Job, Rung, Scored
from tuner.search.laboratory import Replicate
from tuner.search.space import Candidate
from tuner.search.uncertainty import Interval

REPLICATES = 8
_RUNG = Rung(services=1.0, precision=0.1, most=1_500, keep=0)
# A larger ratio means no more than "far better".
_MOST_TOLD = 10.0
# A ratio closer to 1 than this is a tie: simulations of the same cluster differ by as much.
TIE = 0.03


@dataclass(frozen=True, slots=True)
class Comparison:
    """The winner's goodput over a rival's, per accelerator. ``likely``: None without replicates."""

    rival: Scored
    ratio: float
    likely: Interval | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """``winner`` None: nobody meets the SLO at any rate, and ``nearest`` came closest.

    ``colocated`` and ``one_to_one``: None if there is no such rival, or it is the winner, or it
    reached nothing (then any ratio would be endless).
    """

    winner: Scored | None
    nearest: Scored
    colocated: Comparison | None
    one_to_one: Comparison | None

    @property
    def disaggregate(self) -> bool:
        """Whether two pools are worth it."""
        if self.winner is None or self.winner.candidate.is_colocated:
            return False
        return self.colocated is None or self.colocated.ratio > 1 + TIE


def judge(
    scored: Sequence[Scored],
    replicate: Callable[[Sequence[Replicate]], Sequence[Reached]],
    replicates: int = REPLICATES,
) -> Verdict:
    """``scored``: all candidates, the best first, as ``halve`` gives them."""
    best = scored[0]
    if not best.rate:
        return Verdict(None, nearest_of(scored), None, None)
    rivals = [_best(scored, best, kind) for kind in RIVALS]
    known = [rival for rival in rivals if rival is not None]
    ratios = _replicated_ratios(best, known, replicate, replicates)
    comparisons = [_compare(best, rival, ratios) for rival in rivals]
    return Verdict(best, best, *comparisons)


def nearest_of(scored: Sequence[Scored]) -> Scored:
    """The one with the highest rate, or else the most requests within the SLO."""
    simulated = [one for one in scored if one.reached is not None]
    return max(simulated, key=lambda one: (one.rate, _share(one)), default=scored[0])


def _replicated_ratios(
    best: Scored,
    rivals: Sequence[Scored],
    replicate: Callable[[Sequence[Replicate]], Sequence[Reached]],
    count: int,
) -> dict[Candidate, list[float]]:
    """By rival: each replicate's ratio over that of the traffic and hardware as they are, looked at
    as coarsely."""
    if not rivals:
        return {}
    contestants = [best, *rivals]
    wanted = [Replicate(_job(one), number) for number in range(count + 1) for one in contestants]
    rates = [reached.rate for reached in replicate(wanted)]
    rows = [rates[i : i + len(contestants)] for i in range(0, len(rates), len(contestants))]
    found: dict[Candidate, list[float]] = {}
    for place, rival in enumerate(rivals, 1):
        plain, *others = [_ratio(row[0], row[place]) for row in rows]
        found[rival.candidate] = [ratio / plain for ratio in others] if plain else []
    return found


def _ratio(best: float, rival: float) -> float:
    """Of rates. A rival that meets the SLO at no rate is beaten by as much as is told at most."""
    return min(_MOST_TOLD, best / rival) if rival else _MOST_TOLD


def _job(scored: Scored) -> Job:
    # Other hardware may be faster than the bound of this one.
    return Job(scored.candidate, _RUNG, scored.rate, 2 * scored.bound.rate, 1.15)


def _compare(
    best: Scored, rival: Scored | None, ratios: dict[Candidate, list[float]]
) -> Comparison | None:
    if rival is None:
        return None
    ratio = best.rate_per_accelerator / rival.rate_per_accelerator
    drawn = [ratio * change for change in ratios[rival.candidate]]
    return Comparison(rival, ratio, Interval.of(drawn) if drawn else None)


def _best(
    scored: Sequence[Scored], winner: Scored, kind: Callable[[Candidate], bool]
) -> Scored | None:
    if kind(winner.candidate):
        return None
    of_kind = [one for one in scored if kind(one.candidate) and one.rate > 0]
    return max(of_kind, key=lambda one: one.rate_per_accelerator, default=None)


def _share(scored: Scored) -> float:
    return scored.reached.nearest.share if scored.reached is not None else 0.0
