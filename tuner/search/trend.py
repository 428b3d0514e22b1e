"""Whether a cluster falls behind: how latencies change over the time that is simulated, and what
that comes to in the time after it.

A cluster that gets more than it can serve makes every request wait longer than the one before it,
by as much as its overload is (of 1.1 times what it can serve, a request that comes a second later
waits 0.1 s longer). A line through the latencies by arrival (least squares) shows that long before
a limit is missed.

Pure. Does not cover: how much is simulated (``window``).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tuner.load.metrics import Slo
from tuner.simulate.result import SimulationResult

Numbers = npt.NDArray[np.float64]

# A line through fewer values says nothing.
_FEWEST = 10
# Standard errors of a slope that chance hardly makes, neighbours being alike.
_CERTAIN = 4


def share_later(result: SimulationResult, good: npt.NDArray[np.bool_], slo: Slo, s: float) -> float:
    """Of the requests in the ``s`` seconds after those of ``result``, how many meet ``slo`` if
    latencies go on as they did. ``good``, bool [n]: which of the last n requests met it; those
    after them miss it as often, and more as latencies grow. Falling latencies stay as they are."""
    skipped = len(result.arrivals_s) - len(good)
    arrived = result.arrivals_s[skipped:]
    lasts = np.full(len(good), s)
    for latency, limit in (
        (result.ttft_s[skipped:], slo.ttft_s),
        (result.tpot_s[skipped:], slo.tpot_s),
    ):
        slope = slope_of(arrived, latency)
        if slope > 0:
            # As they would be at the end of what was simulated.
            latest = latency + slope * (arrived[-1] - arrived)
            room = np.where(np.isnan(latest), np.inf, (limit - latest) / slope)
            lasts = np.minimum(lasts, room)
    return float(np.where(good, np.clip(lasts, 0.0, s), 0.0).mean()) / s


def growth(result: SimulationResult, skipped: int) -> float:
    """Seconds by which a request waited longer for its first token, or took longer than one of the
    same length to its last one, than one that came a second before it; 0 if it did not, or if the
    difference may be chance. Of ``result`` without the first ``skipped``."""
    arrived, ttft = result.arrivals_s[skipped:], result.ttft_s[skipped:]
    more = result.output_tokens[skipped:] - 1
    answered = np.where(more > 0, result.tpot_s[skipped:], 0.0) * float(more.mean())
    return max(_certain_slope(arrived, ttft), _certain_slope(arrived, ttft + answered))


def _certain_slope(x: Numbers, y: Numbers) -> float:
    """As ``slope_of``; 0 if it falls or may be chance."""
    slope = slope_of(x, y)
    if slope <= 0:
        return 0.0
    chance = float(np.nanstd(y - slope * x)) / (float(x.std()) * len(x) ** 0.5)
    return slope if slope > _CERTAIN * chance else 0.0


def slope_of(x: Numbers, y: Numbers) -> float:
    """Of the line of least squares, y for each of x; [n] each. NaN in ``y`` is left out. 0 of too
    few values, and if all of ``x`` are the same."""
    known = np.isfinite(y)
    if int(known.sum()) < _FEWEST:
        return 0.0
    centred = x[known] - x[known].mean()
    spread = float((centred**2).sum())
    return float((centred * y[known]).sum()) / spread if spread else 0.0
