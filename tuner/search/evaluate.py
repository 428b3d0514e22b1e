"""What a candidate reaches in simulation: at one rate, and the highest rate that meets the SLO.

Does not cover: which candidates get how much simulation (``halving``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from core.config import ClusterSpec
from tuner.load.metrics import Slo
from tuner.search.space import Candidate
from tuner.search.specs import model_candidate
from tuner.search.window import Window
from tuner.simulate.simulator import simulate
from tuner.simulate.summary import SimulationSummary, met, summarize

# Below this share of its bound a candidate is given up: waiting is not what makes it miss.
_SLOWEST = 0.02


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
    """One simulation of a candidate at ``rate`` requests per second. ``share`` of the requests met
    the SLO, those not counted that came before the cluster had filled up."""

    rate: float
    share: float
    summary: SimulationSummary

    def meets(self, goal: Goal) -> bool:
        return self.share >= goal.share


@dataclass(frozen=True, slots=True)
class Reached:
    """The highest rate found at which a candidate meets the goal: ``trial`` is the simulation at
    it; None if it meets it at no rate that was worth a trial, and ``nearest`` is the trial that
    came closest."""

    trial: Trial | None
    nearest: Trial
    simulations: int

    @property
    def rate(self) -> float:
        return self.trial.rate if self.trial is not None else 0.0


def try_rate(candidate: Candidate, window: Window, base: ClusterSpec, goal: Goal) -> Trial:
    """``base``: all of the cluster but its pools."""
    trace, skipped = window.requests()
    # Whoever has no whole answer by then has missed a limit.
    longest_s = goal.slo.ttft_s + float(trace.output_tokens.max()) * goal.slo.tpot_s
    until_s = trace.duration_s + longest_s
    cluster = model_candidate(candidate, base)
    result = simulate(trace, cluster, seed=window.seed, until_s=until_s)
    good = met(result, goal.slo)[skipped:]
    return Trial(window.rate, float(good.mean()), summarize(result, goal.slo, skipped))


@dataclass(frozen=True, slots=True)
class RateSearch:
    """Starts at ``guess``, goes no higher than ``most``, and ends when two rates that differ by a
    factor of 1 + ``precision`` have the limit between them. ``certainty``: the first factor above
    or below the guess that is tried. ``floor``: lower rates are not worth a trial."""

    guess: float
    most: float
    certainty: float
    precision: float
    floor: float = 0.0


def highest_rate(attempt: Callable[[float], Trial], goal: Goal, search: RateSearch) -> Reached:
    """The highest rate that meets ``goal``.

    Gallops away from the guess until the limit is between two trials, then bisects. A share that
    does not fall steadily with the rate costs precision, nothing else.
    """
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
        factor = min(factor * factor, 2.0)
        trials.append(attempt(rate))
