"""One trial: what a cluster does at one rate in simulation.

Does not cover: at which rates (``rate_search``).
"""

from __future__ import annotations

from dataclasses import dataclass

from tuner.load.metrics import Slo
from tuner.search.headroom import headroom
from tuner.search.trend import growth, share_later
from tuner.search.window import Excerpt, Window
from tuner.simulate.cluster_model import ClusterModel
from tuner.simulate.miss_limit import MissLimit
from tuner.simulate.result import SimulationResult
from tuner.simulate.simulator import simulate
from tuner.simulate.summary import SimulationSummary, met, summarize

# A cluster that falls behind by less serves its rate: trends are no more exact.
KEEPS_UP = 0.02


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
    too. ``headroom``: the factor on the rate up to which the goal may be met, see ``headroom``.
    """

    rate: float
    share: float
    summary: SimulationSummary
    divided_by: int = 1
    is_cut_short: bool = False
    further_s: float = 0.0
    growth: float = 0.0
    headroom: float = 1.0

    @property
    def lasting_rate(self) -> float:
        """Of ``rate``, what the cluster keeps up with for as long as one likes."""
        return self.rate / (1 + self.growth) if self.falls_behind else self.rate

    @property
    def falls_behind(self) -> bool:
        """Whether ``rate`` is more than the cluster keeps up with: it meets the goal in the time
        that counts, and would miss it later."""
        return self.growth >= KEEPS_UP

    @property
    def counted_s(self) -> float:
        """For how long the goal was looked at, simulated or not, seconds."""
        return self.summary.window_s + self.further_s

    def meets(self, goal: Goal) -> bool:
        return self.share >= goal.share


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
    grown, further_s = growth(result, skipped), excerpt.further_s
    return Trial(
        rate=window.rate,
        share=_share(result, excerpt, goal.slo),
        summary=summarize(result, goal.slo, skipped),
        is_cut_short=result.is_cut_short,
        further_s=further_s,
        growth=grown,
        headroom=headroom(result, skipped, goal.slo, goal.share, further_s, grown),
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
