"""The highest rate that meets a goal, by trials one after the other.

Pure but for the trials. Does not cover: what a trial is (``evaluate``), which clusters are searched
how closely (``halving``, ``estimate``, ``finals``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from tuner.search.evaluate import Goal, Trial

# Below this share of its bound a candidate is given up: waiting is not what makes it miss.
_SLOWEST = 0.02
# Of a gallop, before it goes faster: most guesses are good.
_SMALL_STEPS = 3
# Two rates that differ by the precision do so but for rounding.
_ROUNDED = 1 + 1e-9


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


@dataclass(frozen=True, slots=True)
class RateSearch:
    """Starts at ``guess``, goes no higher than ``most``, and ends when two rates that differ by a
    factor of 1 + ``precision`` have the limit between them. ``certainty``: the first factor above
    or below the guess that is tried, where latencies don't promise more. ``floor``: lower rates are
    not worth a trial. ``guess`` is above 0, unless ``most`` is 0: no rate is worth a trial."""

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
    """The highest rate that meets ``goal``."""
    bracket = Bracket(goal, search)
    while bracket.rate is not None:
        bracket.take(attempt(bracket.rate))
    return bracket.reached


class Bracket:
    """A search for the highest rate that waits for its trials. ``rate`` is the next one to try, in
    requests per second; None once it is over.

    Gallops away from the guess until the limit is between two trials, then bisects. A share that
    does not fall steadily with the rate costs precision, nothing else.
    """

    def __init__(self, goal: Goal, search: RateSearch) -> None:
        self._goal = goal
        self._search = search
        self._factor = search.certainty
        self._trials: list[Trial] = []
        self._good: Trial | None = None
        self._bad: float | None = None
        self.rate: float | None = None
        if search.most > 0:
            self.rate = min(max(search.guess, search.floor), search.most)

    @property
    def reached(self) -> Reached:
        """What is known by now."""
        # Of those alike the one with the least load: there latencies are nearest to the limits.
        nearest = max(self._trials, key=lambda trial: (trial.share, -trial.rate), default=None)
        return Reached(self._good, nearest, len(self._trials))

    def take(self, trial: Trial) -> None:
        """The trial of ``rate``."""
        self._trials.append(trial)
        if trial.meets(self._goal):
            self._good = trial
        else:
            self._bad = trial.rate
        self.rate = self._next(trial)

    def _next(self, latest: Trial) -> float | None:
        good, bad = self._good, self._bad
        if good is None:
            return self._lower(latest)
        if bad is None:
            return self._higher(latest)
        is_close = bad / good.rate <= (1 + self._search.precision) * _ROUNDED
        return None if is_close else math.sqrt(good.rate * bad)

    def _higher(self, latest: Trial) -> float | None:
        search = self._search
        if latest.rate >= search.most:
            return None
        # The limit is to come to lie between this rate and the next.
        expected = latest.headroom / math.sqrt(1 + search.precision)
        return min(search.most, latest.rate * max(self._step(), expected))

    def _lower(self, latest: Trial) -> float | None:
        lowest = max(self._search.floor, self._search.most * _SLOWEST)
        return None if latest.rate <= lowest else max(lowest, latest.rate / self._step())

    def _step(self) -> float:
        step = self._factor
        if len(self._trials) > _SMALL_STEPS:
            self._factor = min(step * step, 2.0)
        return step
