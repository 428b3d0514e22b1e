"""Predicted against measured: errors, whether the ranking is right, whether intervals hold. Pure.

Does not cover: predicting (``tuner.validate.predict``), measuring (``cluster.validation``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median

from tuner.load.metrics import Goodput, Spread
from tuner.search.uncertainty import Interval

# Clusters whose goodput differs by less are as good as equal.
APART = 0.10

# What is compared, as the fields of an ``Outcome`` are called.
NUMBERS = ("ttft_p50_s", "ttft_p90_s", "tpot_p50_s", "tpot_p90_s", "goodput", "share")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a cluster did: latencies in seconds (None: nobody had any), ``goodput`` in requests per
    second, ``share`` (0 to 1) of the requests within the SLO."""

    ttft_p50_s: float | None
    ttft_p90_s: float | None
    tpot_p50_s: float | None
    tpot_p90_s: float | None
    goodput: float
    share: float

    @classmethod
    def of(cls, ttft_s: Spread | None, tpot_s: Spread | None, goodput: Goodput) -> Outcome:
        return cls(
            ttft_p50_s=None if ttft_s is None else ttft_s.p50,
            ttft_p90_s=None if ttft_s is None else ttft_s.p90,
            tpot_p50_s=None if tpot_s is None else tpot_s.p50,
            tpot_p90_s=None if tpot_s is None else tpot_s.p90,
            goodput=goodput.requests_per_s,
            share=goodput.share,
        )

    def number(self, name: str) -> float | None:
        """``name``: one of ``NUMBERS``."""
        value: float | None = getattr(self, name)
        return value


@dataclass(frozen=True, slots=True)
class Case:
    """``configuration`` under ``traffic`` at ``rate`` requests per second. ``likely``: by number,
    where the bootstrap expects it; ``replicates``: those of the bootstrap, in the same order for
    every case; ``shares_cores``: there are more engine threads than cores."""

    configuration: str
    traffic: str
    rate: float
    shares_cores: bool
    predicted: Outcome
    measured: Outcome
    likely: Mapping[str, Interval] = field(default_factory=dict)
    replicates: tuple[Outcome, ...] = ()

    def error(self, name: str) -> float | None:
        """|predicted - measured| / measured; None if one of them is not known, infinite if nothing
        was measured where something was predicted."""
        predicted, measured = self.predicted.number(name), self.measured.number(name)
        if predicted is None or measured is None:
            return None
        if predicted == measured:
            return 0.0
        return abs(predicted - measured) / measured if measured else math.inf


@dataclass(frozen=True, slots=True)
class Ranking:
    """Of ``pairs`` of configurations under the same load whose measured goodput differs clearly,
    so many in the predicted order, in the other one, and the rest predicted as equal."""

    pairs: int
    right: int
    wrong: int

    @property
    def tau(self) -> float | None:
        """Kendall's τ of these pairs; None without any. M. G. Kendall, "A new measure of rank
        correlation", Biometrika 30 (1938)."""
        return (self.right - self.wrong) / self.pairs if self.pairs else None


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many measured values lay inside their predicted intervals."""

    inside: int
    total: int

    @property
    def share(self) -> float | None:
        return self.inside / self.total if self.total else None


def median_errors(cases: Sequence[Case]) -> dict[str, float | None]:
    """Over all ``cases``, by number; None where none has both."""
    found: dict[str, float | None] = {}
    for name in NUMBERS:
        errors = [error for case in cases if (error := case.error(name)) is not None]
        found[name] = median(errors) if errors else None
    return found


def ranking(cases: Sequence[Case], apart: float = APART) -> Ranking:
    """Of goodput. ``apart``: by how much of the larger one two measured ones differ at least."""
    right = wrong = pairs = 0
    for one, other in combinations(cases, 2):
        if (one.traffic, one.rate) != (other.traffic, other.rate):
            continue
        measured = one.measured.goodput - other.measured.goodput
        if abs(measured) <= apart * max(one.measured.goodput, other.measured.goodput):
            continue
        agreement = measured * (one.predicted.goodput - other.predicted.goodput)
        pairs, right, wrong = pairs + 1, right + (agreement > 0), wrong + (agreement < 0)
    return Ranking(pairs, right, wrong)


def coverage(cases: Sequence[Case]) -> dict[str, Coverage]:
    """By number: of the cases that have an interval for it and a measured value."""
    found = {}
    for name in NUMBERS:
        known = [
            (interval, value)
            for case in cases
            if (interval := case.likely.get(name)) is not None
            and (value := case.measured.number(name)) is not None
        ]
        inside = sum(interval.low <= value <= interval.high for interval, value in known)
        found[name] = Coverage(inside, len(known))
    return found
