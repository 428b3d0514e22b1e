"""Successive halving: a little simulation for many candidates, more for those that did well.

Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization"
(AISTATS 2016). Candidates whose bound is below what another one reached are not simulated at all.
Rivals (the best colocated cluster, the best 1:1) are carried to the end, so that the verdict
compares like with like.

Pure but for the simulations that ``measure`` makes. Does not cover: what is simulated in a rung
(``evaluate``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from tuner.search.bounds import SLACK, Bound
from tuner.search.rate_search import Reached
from tuner.search.space import Candidate


@dataclass(frozen=True, slots=True)
class Rung:
    """How closely candidates are looked at: ``services`` (see ``window``) and ``precision`` of the
    rate. ``keep``: so many of the best go on, beside the rivals."""

    services: float
    precision: float
    keep: int


RUNGS = (
    Rung(services=1.0, precision=0.15, keep=5),
    Rung(services=1.5, precision=0.06, keep=3),
    Rung(services=2.0, precision=0.03, keep=3),
)
# Kinds of clusters that a verdict compares with.
RIVALS: tuple[Callable[[Candidate], bool], ...] = (
    attrgetter("is_colocated"),
    attrgetter("is_one_to_one"),
)
# So many candidates are simulated before bounds are compared again.
_BATCH = 4
# A coarse look at a candidate ends when it misses the goal at this share of the best rate so far.
_HOPELESS = 0.8


@dataclass(frozen=True, slots=True)
class Job:
    """One candidate to look at in ``rung``: from ``guess`` up to ``most`` requests per second.
    ``certainty``, ``floor``: see ``rate_search.RateSearch``. ``is_told``: how near it comes to the
    goal is told even if it is given up at ``floor``, so that trial is simulated to the end."""

    candidate: Candidate
    rung: Rung
    guess: float
    most: float
    certainty: float = 1.3
    floor: float = 0.0
    is_told: bool = False


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate, its bound, and what it reached in the last rung that it came to (None: its
    bound or its estimate was too low). ``rungs``: how many it came to. ``estimate``: requests per
    second that its replicas serve one by one; None where these were not looked at."""

    candidate: Candidate
    bound: Bound
    reached: Reached | None = None
    rungs: int = 0
    estimate: float | None = None

    @property
    def rate(self) -> float:
        return self.reached.rate if self.reached is not None else 0.0

    @property
    def rate_per_accelerator(self) -> float:
        return self.rate / self.candidate.accelerators

    @property
    def lasting_rate_per_accelerator(self) -> float:
        """Of ``rate``, what it keeps up with; see ``Trial.lasting_rate``."""
        trial = self.reached.trial if self.reached is not None else None
        return trial.lasting_rate / self.candidate.accelerators if trial is not None else 0.0


Measure = Callable[[Sequence[Job]], Sequence[Reached]]


def halve(
    bounded: Sequence[tuple[Candidate, Bound]],
    measure: Measure,
    rungs: Sequence[Rung] = RUNGS,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Scored]:
    """All candidates, the best first. ``measure`` gives what each job reached, in their order."""
    waiting = sorted(
        (Scored(candidate, bound) for candidate, bound in bounded),
        key=lambda scored: scored.bound.rate,
        reverse=True,
    )
    alive, never = _first_rung(waiting, measure, rungs[0], progress)
    eliminated: list[Scored] = []
    for number, rung in enumerate(rungs[1:], 2):
        chosen = survivors(alive, rungs[number - 2].keep)
        eliminated = [scored for scored in alive if scored not in chosen] + eliminated
        progress(f"rung {number} of {len(rungs)}: {len(chosen)} candidates")
        alive = _look(chosen, measure, rung, [0.0] * len(chosen))
    by_rate = sorted(alive, key=_by_rate, reverse=True)
    return [*by_rate, *sorted(eliminated, key=_by_rate, reverse=True), *never]


def survivors(scored: Sequence[Scored], keep: int) -> list[Scored]:
    """The ``keep`` best, and the best of each kind of rival."""
    ranked = sorted(scored, key=_by_rate, reverse=True)
    chosen = ranked[:keep]
    for is_rival in RIVALS:
        best = next((one for one in ranked if is_rival(one.candidate)), None)
        if best is not None and best not in chosen:
            chosen.append(best)
    return chosen


def _first_rung(
    waiting: Sequence[Scored],
    measure: Measure,
    rung: Rung,
    progress: Callable[[str], None],
) -> tuple[list[Scored], list[Scored]]:
    """Simulated ones, and those whose bound is below what others reached.

    By descending bound, so that good rates are known early; rivals come in any case.
    """
    alive: list[Scored] = []
    rest = list(waiting)
    while rest:
        best = max((scored.rate for scored in alive), default=0.0)
        worth = [s for s in rest if s.bound.rate * SLACK >= best and s.bound.rate > 0]
        worth = worth or _missing_rivals(rest, alive)
        if not worth:
            break
        batch = worth[:_BATCH]
        progress(f"rung 1: {len(alive)} simulated, {len(worth)} may be better")
        alive += _look(batch, measure, rung, [_floor(one, alive) for one in batch])
        rest = [scored for scored in rest if scored not in batch]
    return alive, rest


def _missing_rivals(rest: Sequence[Scored], alive: Sequence[Scored]) -> list[Scored]:
    """The two with the highest bound of each kind of rival that nobody stands for yet."""
    missing: list[Scored] = []
    for is_rival in RIVALS:
        if not any(is_rival(scored.candidate) for scored in alive):
            missing += [s for s in rest if is_rival(s.candidate) and s.bound.rate > 0][:2]
    return missing


def _look(
    chosen: Sequence[Scored], measure: Measure, rung: Rung, floors: Sequence[float]
) -> list[Scored]:
    jobs = [
        Job(s.candidate, rung, _guess(s), s.bound.rate * SLACK, 1.1 if s.rate else 1.3, floor)
        for s, floor in zip(chosen, floors, strict=True)
    ]
    reached = measure(jobs)
    return [
        Scored(scored.candidate, scored.bound, result, scored.rungs + 1)
        for scored, result in zip(chosen, reached, strict=True)
    ]


def _floor(scored: Scored, alive: Sequence[Scored]) -> float:
    """A rival competes with its own kind only."""
    kinds = [is_rival for is_rival in RIVALS if is_rival(scored.candidate)]
    rates = [s.rate for s in alive if all(is_rival(s.candidate) for is_rival in kinds)]
    return _HOPELESS * max(rates, default=0.0)


def _guess(scored: Scored) -> float:
    """Close to what it reached before; at first a little below its bound."""
    return scored.rate if scored.rate else 0.6 * scored.bound.rate


def _by_rate(scored: Scored) -> tuple[float, float]:
    """Those that reach nothing are compared by how near they came."""
    return scored.rate, scored.reached.nearest_share if scored.reached is not None else 0.0
