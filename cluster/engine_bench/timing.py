"""Several durations of the same work as one: median and spread. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds; ``count``: how many durations it is made of. p10 and p90 interpolate linearly."""

    median_s: float
    p10_s: float
    p90_s: float
    count: int


def summarize(seconds: Sequence[float]) -> Timing:
    """``seconds``: at least one duration."""
    p10, median, p90 = np.percentile(np.asarray(seconds, dtype=np.float64), (10, 50, 90))
    return Timing(float(median), float(p10), float(p90), len(seconds))
