"""Other scheduler limits for the best clusters: tried on one replica, kept where it serves more.

Pure but for the simulations behind ``estimates``. Does not cover: limits of clusters whose replicas
share a host, which can't be looked at alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from core.request import Role
from tuner.load.metrics import Slo
from tuner.search.bounds import Traffic, bound_rate
from tuner.search.estimate import Estimates
from tuner.search.halving import Scored
from tuner.search.single_replica import SingleReplica, replicas_of
from tuner.search.space import Candidate, Limits


def with_best_limits(
    chosen: Sequence[Scored],
    leaders: Sequence[Scored],
    estimates: Estimates,
    traffic: Traffic,
    slo: Slo,
) -> list[Scored]:
    """Each of ``chosen`` with the limits that its replicas serve the most with, as far as these
    are of ``leaders``."""
    replicas = list(dict.fromkeys(r for one in leaders for r in estimates.weakest(one)))
    pairs = [(replica, other) for replica in replicas for other in variants(replica)]
    rates = estimates.better(
        [replica.with_limits(other) for replica, other in pairs],
        [estimates.known(replica) or 0.0 for replica, _ in pairs],
    )
    best: dict[SingleReplica, tuple[float, Limits]] = {}
    for (replica, other), rate in zip(pairs, rates, strict=True):
        if rate > best.get(replica, (0.0, other))[0]:
            best[replica] = rate, other
    found = []
    for one in chosen:
        changed = with_limits(one.candidate, {r: limits for r, (_, limits) in best.items()})
        scored = replace(one, candidate=changed, bound=bound_rate(changed, traffic, slo))
        found.append(replace(scored, estimate=estimates.known_of(scored)))
    return found


def variants(replica: SingleReplica) -> list[Limits]:
    """Half and twice the tokens of a step where prompts are computed, twice the sequences where
    answers are."""
    limits = replica.pool.limits
    seqs, tokens = limits.max_num_seqs, limits.max_num_batched_tokens
    found = []
    if replica.role is not Role.DECODE:
        found += [Limits(seqs, max(tokens // 2, seqs)), Limits(seqs, 2 * tokens)]
    if replica.role is not Role.PREFILL:
        found.append(Limits(2 * seqs, max(tokens, 2 * seqs)))
    return [other for other in found if other != limits]


def with_limits(candidate: Candidate, best: dict[SingleReplica, Limits]) -> Candidate:
    """``candidate`` with other limits for some of its replicas."""
    pools = [
        replace(pool, limits=best.get(replica, pool.limits))
        for pool, replica in zip(candidate.pools, replicas_of(candidate), strict=True)
    ]
    if candidate.prefill is None:
        return Candidate(None, tuple(pools))
    return Candidate(pools[0], tuple(pools[1:]))
