"""What keeps a cluster from serving more, as a simulation at its highest rate shows it. Pure."""

from __future__ import annotations

from core.request import Role
from tuner.search.bounds import Bound, Resource
from tuner.search.evaluate import Trial
from tuner.simulate.pools import PoolSummary

# A worker that is so busy has no time left worth speaking of.
_BUSY = 0.85
_FULL = 0.95


def limited_by(trial: Trial, bound: Bound) -> Resource:
    """The resource that is used up; if none is, the one behind the limit that requests miss.

    Requests wait long before engines are busy all the time, so the second case is the usual one:
    TTFT is missed for want of prefill compute, TPOT for want of decode bandwidth.
    """
    pools = {pool.role: pool for pool in trial.summary.pools}
    full = [pool for pool in pools.values() if pool.used_blocks_max >= _FULL and pool.preemptions]
    if full:
        return Resource.KV_MEMORY
    if Role.MIXED in pools:
        return bound.limited_by
    busy = {role: pools[role].busy for role in (Role.PREFILL, Role.DECODE) if role in pools}
    busiest = max(busy, key=busy.__getitem__)
    if busy[busiest] < _BUSY:
        if bound.limited_by is Resource.LINK:
            return Resource.LINK
        goodput = trial.summary.goodput
        missed_more = goodput.share_ttft <= goodput.share_tpot
        return Resource.PREFILL_COMPUTE if missed_more else Resource.DECODE_BANDWIDTH
    return Resource.PREFILL_COMPUTE if busiest is Role.PREFILL else Resource.DECODE_BANDWIDTH


def busy_words(pools: tuple[PoolSummary, ...]) -> str:
    """ "prefill 71 %, decode 93 %"."""
    return ", ".join(f"{pool.role.value} {pool.busy:.0%}" for pool in pools)
