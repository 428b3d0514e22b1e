"""What a cluster reaches in simulation: at one rate, and the highest rate that meets the SLO.

Does not cover: which clusters get how much simulation (``halving``, ``estimate``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from tuner.load.metrics import Slo
from tuner.search.trend import growth, share_later
from tuner.search.window import Excerpt, Window
from tuner.simulate.cluster_model import ClusterModel
from tuner.simulate.miss_limit import MissLimit
from tuner.simulate.result import SimulationResult
from tuner.simulate.simulator import simulate
from tuner.simulate.summary import SimulationSummary, met, summarize

# Below this share of its bound a candidate is given up: waiting is not what makes it miss.
_SLOWEST = 0.02
# Of a gallop, before it goes faster: most guesses are good.
_SMALL_STEPS = 3


@dataclass(frozen=True, slots=True)
class Goal:
    """``percentile`` (0 to 100) of the requests are to meet both limits of ``slo``."""

    slo: Slo
    percentile: float

    @property
    def share(self) -> float:
        return self.percentile / 100


@dataclass(frozen=True, slots=True)
class Trial:
    """One simulation of a cluster at ``rate`` requests per second. ``share`` of the requests met
    the SLO, those not counted that came before the cluster had filled up.

    ``further_s``: seconds that count, too, but were not simulated: there latencies go on as they
    did (``trend``). ``growth``: as ``trend.growth`` gives it, the overload that there was.

    ``divided_by``: only such a part of the cluster was simulated, at as small a part of the rate.
    ``is_cut_short``: it ended when too many had missed the SLO; the rest of them counts as missed,
    too.
    """

    rate: float
    share: float
    summary: SimulationSummary
    divided_by: int = 1
    is_cut_short: bool = False
    further_s: float = 0.0
    growth: float = 0.0

    @property
    def lasting_rate(self) -> float:
        """Of ``rate``, what the cluster keeps up with for as long as one likes."""
        return self.rate / (1 + self.growth)

    def meets(self, goal: Goal) -> bool:
        return self.share >= goal.share


@dataclass(frozen=True, slots=True)
class Reached:
    """The highest rate found at which a cluster meets the goal: ``trial`` is the simulation at
    it; None if it meets it at no rate that was worth a trial, and ``nearest`` is the trial that
    came closest; None if there was no trial."""

    trial: Trial | None
    nearest: Trial | None
    simulations: int

    @property
    def told(self) -> Trial | None:
        """What there is to say of the cluster: how it meets the goal, or how nearly."""
        return self.trial or self.nearest

    @property
    def nearest_share(self) -> float:
        """Of the requests, within the SLO."""
        return self.nearest.share if self.nearest is not None else 0.0

    @property
    def rate(self) -> float:
        return self.trial.rate if self.trial is not None else 0.0


def try_rate(cluster: ClusterModel, window: Window, goal: Goal, *, to_the_end: bool) -> Trial:
    """Unless it goes ``to_the_end``, the simulation of a rate that misses the goal is cut short."""
    excerpt = window.excerpt()
    trace, skipped = excerpt.trace, excerpt.filling
    # Whoever has no whole answer by then has missed a limit.
    longest_s = goal.slo.ttft_s + float(trace.output_tokens.max()) * goal.slo.tpot_s
    most_missed = int(excerpt.counted * (1 - goal.share) + 1e-9)
    limit = MissLimit(goal.slo.ttft_s, goal.slo.tpot_s, skipped, most_missed)
    result = simulate(
        trace,
        cluster,
        seed=window.seed,
        until_s=trace.duration_s + longest_s,
        miss_limit=None if to_the_end else limit,
    )
    return Trial(
        rate=window.rate,
        share=_share(result, excerpt, goal.slo),
        summary=summarize(result, goal.slo, skipped),
        is_cut_short=result.is_cut_short,
        further_s=excerpt.further_s,
        growth=growth(result, skipped),
    )


def _share(result: SimulationResult, excerpt: Excerpt, slo: Slo) -> float:
    """Of all requests that count, those after the simulated ones included."""
    good = met(result, slo)[excerpt.filling :]
    share, further_s = float(good.mean()), excerpt.further_s
    if not further_s or result.is_cut_short:
        return share
    counted_s = float(result.arrivals_s[-1] - result.arrivals_s[excerpt.filling])
    later = share_later(result, good, slo, further_s)
    return (share * counted_s + later * further_s) / (counted_s + further_s)


@dataclass(frozen=True, slots=True)
class RateSearch:
    """Starts at ``guess``, goes no higher than ``most``, and ends when two rates that differ by a
    factor of 1 + ``precision`` have the limit between them. ``certainty``: the first factor above
    or below the guess that is tried. ``floor``: lower rates are not worth a trial. ``guess`` is
    above 0, unless ``most`` is 0: no rate is worth a trial."""

    guess: float
    most: float
    certainty: float
    precision: float
    floor: float = 0.0

    def scaled(self, factor: float) -> RateSearch:
        """The same search where all is faster by ``factor``."""
        return replace(
            self,
            guess=self.guess * factor,
            most=self.most * factor,
            floor=self.floor * factor,
        )


def highest_rate(attempt: Callable[[float], Trial], goal: Goal, search: RateSearch) -> Reached:
    """The highest rate that meets ``goal``.

    Gallops away from the guess until the limit is between two trials, then bisects. A share that
    does not fall steadily with the rate costs precision, nothing else.
    """
    if search.most <= 0:
        return Reached(None, None, 0)
    trials = [attempt(min(max(search.guess, search.floor), search.most))]
    good, bad = _bracket(attempt, goal, search, trials)
    while good is not None and bad is not None and bad > good.rate * (1 + search.precision):
        trials.append(attempt(math.sqrt(good.rate * bad)))
        if trials[-1].meets(goal):
            good = trials[-1]
        else:
            bad = trials[-1].rate
    nearest = max(trials, key=lambda trial: trial.share)
    return Reached(good, nearest, len(trials))


def _bracket(
    attempt: Callable[[float], Trial], goal: Goal, search: RateSearch, trials: list[Trial]
) -> tuple[Trial | None, float | None]:
    """A trial that meets the goal and a higher rate that does not; None where there is no such."""
    factor = search.certainty
    good: Trial | None = None
    bad: float | None = None
    while True:
        latest = trials[-1]
        if latest.meets(goal):
            good = latest
            if bad is not None or latest.rate >= search.most:
                return good, bad
            rate = min(search.most, latest.rate * factor)
        else:
            bad = latest.rate
            lowest = max(search.floor, search.most * _SLOWEST)
            if good is not None or latest.rate <= lowest:
                return good, bad
            rate = max(lowest, latest.rate / factor)
        if len(trials) > _SMALL_STEPS:
            factor = min(factor * factor, 2.0)
        trials.append(attempt(rate))
