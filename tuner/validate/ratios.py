"""Goodput of one cluster over that of another: whether predicted intervals hold the measured ratio.

A verdict says "1.7 × colocated; likely 1.5 to 1.9". Its interval is that of the same replicates as
here: both clusters on the same other hardware and under the same other traffic, so that what they
share cancels out. A verdict's ratio is that of the highest rates, this one of the goodput at a
given rate. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from tuner.search.uncertainty import Interval, ratio_of, told
from tuner.validate.compare import APART, Case, Coverage

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Ratio:
    """Goodput of ``better``, which was predicted to be at least as good, over that of ``other``,
    under the same load. ``likely``: where the replicates expect it."""

    better: str
    other: str
    traffic: str
    rate: float
    predicted: float
    measured: float
    likely: Interval

    @property
    def is_inside(self) -> bool:
        low, high = self.likely.low * (1 - _ROUNDING), self.likely.high * (1 + _ROUNDING)
        return low <= self.measured <= high

    @property
    def is_apart(self) -> bool:
        """Whether the two are clearly not alike, as predicted or as measured."""
        return any(abs(value - 1) > APART for value in (self.predicted, self.measured))


def ratios(cases: Sequence[Case]) -> list[Ratio]:
    """Of all pairs under the same load that have replicates, and of which one measured any."""
    found = []
    for one, other in combinations(cases, 2):
        alike = (one.traffic, one.rate) == (other.traffic, other.rate)
        measured = max(one.measured.goodput, other.measured.goodput) > 0
        if alike and measured and one.replicates and other.replicates:
            pair = sorted((one, other), key=lambda c: c.predicted.goodput, reverse=True)
            found.append(_ratio_of(*pair))
    return found


def _ratio_of(better: Case, other: Case) -> Ratio:
    predicted = _alike_if_nothing(better.predicted.goodput, other.predicted.goodput)
    pairs = zip(better.replicates, other.replicates, strict=True)
    drawn = [ratio_of(one.goodput, another.goodput) for one, another in pairs]
    known = [told(ratio) for ratio in drawn if ratio is not None]
    return Ratio(
        better.configuration,
        other.configuration,
        better.traffic,
        better.rate,
        predicted,
        _alike_if_nothing(better.measured.goodput, other.measured.goodput),
        Interval.of(known or [predicted]),
    )


def _alike_if_nothing(one: float, other: float) -> float:
    """A prediction that both serve nothing was one, too: that they are alike."""
    ratio = ratio_of(one, other)
    return 1.0 if ratio is None else told(ratio)


def ratio_coverage(found: Sequence[Ratio]) -> Coverage:
    """How many measured ratios lay inside their intervals."""
    return Coverage(sum(ratio.is_inside for ratio in found), len(found))
