"""How much higher a rate may meet the goal, as the latencies of a trial that met it let one expect.

Only a guess of where to look next: whether a rate meets the goal says a trial of it. Pure.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tuner.load.metrics import Slo
from tuner.simulate.result import SimulationResult

# A cluster that gets one percent more than it serves makes requests wait longer by one percent of
# the time since it was empty; by about half of that near its limit, where not all of it is busy.
_LATER = 0.5
# Tokens take so much longer, in percent, for each percent that the rate is higher.
_SLOWER = 2.0


def headroom(
    result: SimulationResult,
    skipped: int,
    slo: Slo,
    share: float,
    further_s: float = 0.0,
    growth: float = 0.0,
) -> float:
    """A factor on the rate, at least 1. ``share`` of the requests after the first ``skipped``, and
    in ``further_s`` seconds after ``result``, are to meet ``slo``; ``growth``: see ``trend``."""
    arrived = result.arrivals_s
    elapsed_s = float(arrived[skipped] + share * (arrived[-1] + further_s - arrived[skipped]))
    ttft_s = _quantile(result.ttft_s[skipped:], share) + growth * further_s
    ttft = (slo.ttft_s - ttft_s) / (_LATER * max(elapsed_s, slo.ttft_s))
    tpot = (1 - _quantile(_of_answers(result, skipped), share) / slo.tpot_s) / _SLOWER
    return 1 + max(0.0, min(ttft, tpot))


def _of_answers(result: SimulationResult, skipped: int) -> npt.NDArray[np.float64]:
    """TPOT; those of one token have none to miss."""
    return np.where(result.output_tokens > 1, result.tpot_s, 0.0)[skipped:]


def _quantile(values: npt.NDArray[np.float64], share: float) -> float:
    """NaN is what never came."""
    return float(np.quantile(np.where(np.isnan(values), np.inf, values), share, method="higher"))
