"""The answer of a search: which cluster, how much better than its rivals, how sure.

Does not cover: how to say it (``report``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from tuner.search.conditions import Conditions
from tuner.search.halving import RIVALS, Scored
from tuner.search.space import Candidate
from tuner.search.uncertainty import Interval, ratio_of, told

REPLICATES = 16
# A ratio closer to 1 than this is a tie: simulations of the same cluster differ by as much.
TIE = 0.03


@dataclass(frozen=True, slots=True)
class Comparison:
    """The winner's goodput over a rival's, per accelerator; at most ``MOST_TOLD``. ``likely``: None
    without replicates in which one of them serves anything. ``lasting``: the ratio of the rates
    that they keep up with."""

    rival: Scored
    ratio: float
    likely: Interval | None
    lasting: float


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
        known = self.colocated
        return known is None or min(known.ratio, known.lasting) > 1 + TIE


# By condition: the rate of each of some clusters under it.
RatesUnder = Callable[[Sequence[Conditions], Sequence[Scored]], Sequence[Sequence[float]]]


def judge(
    scored: Sequence[Scored],
    rates_under: RatesUnder,
    replicates: int = REPLICATES,
    error: float = 0.0,
    seed: int = 0,
) -> Verdict:
    """``scored``: all candidates, the best first. ``error``: standard deviation of the logarithm of
    a rate from ``rates_under`` over the true one, as far as clusters don't have it in common."""
    best = scored[0]
    if not best.rate:
        return Verdict(None, nearest_of(scored), None, None)
    rivals = [_best(scored, best, kind) for kind in RIVALS]
    known = [rival for rival in rivals if rival is not None]
    ratios = _replicated_ratios(best, known, rates_under, replicates)
    generator = np.random.default_rng([seed, replicates])
    comparisons = [_compare(best, rival, ratios, error, generator) for rival in rivals]
    return Verdict(best, best, *comparisons)


def nearest_of(scored: Sequence[Scored]) -> Scored:
    """The one with the highest rate, or else the most requests within the SLO."""
    simulated = [one for one in scored if one.reached is not None]
    return max(simulated, key=lambda one: (one.rate, _share(one)), default=scored[0])


def _replicated_ratios(
    best: Scored,
    rivals: Sequence[Scored],
    rates_under: RatesUnder,
    count: int,
) -> dict[Candidate, list[float]]:
    """By rival: each replicate's ratio over that of the traffic and hardware as they are, looked at
    as coarsely; where that shows one of them serving nothing, over that of the close look."""
    if not rivals:
        return {}
    rows = rates_under([Conditions(number) for number in range(count + 1)], [best, *rivals])
    found: dict[Candidate, list[float]] = {}
    for place, rival in enumerate(rivals, 1):
        plain, *others = [ratio_of(row[0], row[place]) for row in rows]
        if not plain or plain == inf:
            plain = best.rate / rival.rate
        found[rival.candidate] = [ratio / plain for ratio in others if ratio is not None]
    return found


def _compare(
    best: Scored,
    rival: Scored | None,
    ratios: dict[Candidate, list[float]],
    error: float,
    generator: np.random.Generator,
) -> Comparison | None:
    if rival is None:
        return None
    ratio = best.rate_per_accelerator / rival.rate_per_accelerator
    changes = np.array(ratios[rival.candidate])
    # Both rates of a ratio were found with the same error.
    errors = np.exp(generator.normal(0.0, error * np.sqrt(2), len(changes)))
    drawn = [told(one) for one in (ratio * changes * errors).tolist()]
    lasting = best.lasting_rate_per_accelerator / rival.lasting_rate_per_accelerator
    return Comparison(rival, told(ratio), Interval.of(drawn) if drawn else None, told(lasting))


def _best(
    scored: Sequence[Scored], winner: Scored, kind: Callable[[Candidate], bool]
) -> Scored | None:
    if kind(winner.candidate):
        return None
    of_kind = [one for one in scored if kind(one.candidate) and one.rate > 0]
    return max(of_kind, key=lambda one: one.rate_per_accelerator, default=None)


def _share(scored: Scored) -> float:
    return scored.reached.nearest_share if scored.reached is not None else 0.0
