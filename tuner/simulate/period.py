"""What happened between two moments of a simulation: which answers ended, how many tokens came.

Pure. Does not cover: what the workers did (``tuner.simulate.pools``), percentiles (``summary``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tuner.simulate.result import Seconds, SimulationResult


@dataclass(frozen=True, slots=True)
class Period:
    """Seconds of virtual time."""

    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s

    def holds(self, times_s: Seconds) -> npt.NDArray[np.bool_]:
        """Which of ``times_s`` lie in it; NaN never does."""
        return (self.start_s <= times_s) & (times_s <= self.end_s)


def counted_period(result: SimulationResult, skipped: int) -> Period:
    """All of the simulation; or, where the first ``skipped`` requests only fill the cluster, from
    the arrival of the first counted one to that of the last: before, it fills, after, it drains."""
    if not skipped:
        return Period(0.0, result.ended_s)
    start = float(result.arrivals_s[skipped])
    return Period(start, max(start, min(float(result.arrivals_s[-1]), result.ended_s)))


def tokens_out(result: SimulationResult, period: Period) -> float:
    """Tokens of answers that came in ``period``, those after the first of an answer taken as evenly
    spread. Of an answer that had not ended when the simulation did only the first token counts."""
    first, last = result.first_token_s, result.last_token_s
    ended = np.isfinite(last)
    inside = np.minimum(last, period.end_s) - np.maximum(first, period.start_s)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.clip(inside / (last - first), 0.0, 1.0)
    share = np.where(last > first, spread, period.holds(last))
    more = (result.output_tokens - 1) * share
    return float(period.holds(first).sum() + more[ended].sum())
