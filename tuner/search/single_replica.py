"""One replica by itself: what it serves says most of what a cluster of such replicas serves.

A prefill replica answers prompts with one token each; a decode replica stands behind prefill
workers that take no time, at the end of its real link; a mixed replica is a cluster of one. So
DistServe looks at the phases, too (Zhong et al., "DistServe", OSDI 2024, section 4).

Pure. Does not cover: what a cluster of them serves (``estimate``), searching the rate.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from core.config import ClusterSpec
from core.latency_profile import RowCurve, StepModel, TransferModel
from core.request import Role
from router.placement import Disaggregation
from tuner.load.metrics import Slo
from tuner.search.bounds import Resource, Traffic, bound_rate, service_seconds
from tuner.search.space import Candidate, Limits, PoolChoice
from tuner.search.specs import model_candidate
from tuner.search.uncertainty import other_pool
from tuner.search.window import Counted
from tuner.simulate.cluster_model import ClusterModel, WorkerModel
from tuner.simulate.requests import RequestTrace

# Of the workers at the other end. So many of them share the links to one decode replica.
_NO_TIME = StepModel(RowCurve(((0, 1), (1, 1))), 0, 0, 0)
_NO_TRANSFER = TransferModel(0, 0)
_SENDERS = 4
_ENDLESS_BLOCKS = 1 << 16
_ENDLESS_LIMITS = Limits(1 << 12, 1 << 20)


@dataclass(frozen=True, slots=True)
class SingleReplica:
    """One replica of ``pool``, whose number of replicas is 1. ``peer``: of a decode replica, a
    pool that sends to it; which one makes no difference that would be worth a look at each."""

    role: Role
    pool: PoolChoice
    peer: PoolChoice | None = field(default=None, compare=False)

    def __hash__(self) -> int:
        # Of a whole profile it would take long.
        return hash((self.role, self.pool.shape, self.pool.limits))

    def with_limits(self, limits: Limits) -> SingleReplica:
        return replace(self, pool=replace(self.pool, limits=limits))

    def perturbed(self, number: int, seed: int) -> SingleReplica:
        """On other hardware, see ``uncertainty``."""
        peer = None if self.peer is None else other_pool(self.peer, number, seed)
        return replace(self, pool=other_pool(self.pool, number, seed), peer=peer)

    def requests(self, source: RequestTrace) -> RequestTrace:
        """What it is asked for of the requests of a cluster."""
        if self.role is not Role.PREFILL:
            return source
        return replace(source, output_tokens=np.ones_like(source.output_tokens))

    def bound(self, traffic: Traffic, slo: Slo) -> float:
        """Requests per second that it serves at most."""
        if self.role is Role.MIXED:
            return bound_rate(Candidate(None, (self.pool,)), traffic, slo).rate
        peer = self.peer if self.peer is not None else self.pool
        pools = (self.pool, peer) if self.role is Role.PREFILL else (peer, self.pool)
        rates = bound_rate(Candidate(pools[0], pools[1:]), traffic, slo).rates
        if self.role is Role.PREFILL:
            return rates[Resource.PREFILL_COMPUTE]
        return min(rates[Resource.DECODE_BANDWIDTH], rates[Resource.KV_MEMORY])

    def counted(self, traffic: Traffic, slo: Slo, services: float) -> Counted:
        """How long it has to be watched."""
        if self.role is Role.PREFILL:
            return Counted.of(slo.ttft_s, slo.ttft_s, services)
        stay_s = service_seconds(Candidate(None, (self.pool,)), traffic, slo)
        return Counted.of(stay_s, slo.ttft_s, services)

    def cluster(self, base: ClusterSpec) -> ClusterModel:
        """The replica and what it can't do without. ``base``: all else of a cluster."""
        if self.role is Role.MIXED:
            return model_candidate(Candidate(None, (self.pool,)), base)
        if self.role is Role.PREFILL:
            alone = model_candidate(Candidate(None, (self.pool,)), base)
            (own,) = alone.workers
            workers = (replace(own, role=Role.PREFILL), _other_end(own, Role.DECODE))
            # The other end would be asked to do it all, as it takes no time.
            return replace(
                alone,
                workers=workers,
                transfer=_NO_TRANSFER,
                disaggregation=Disaggregation.PREFER,
            )
        assert self.peer is not None
        pair = model_candidate(Candidate(self.peer, (self.pool,)), base)
        sender, own = pair.workers
        return replace(pair, workers=(_other_end(sender, Role.PREFILL), own))


def replicas_of(candidate: Candidate) -> tuple[SingleReplica, ...]:
    """One for each pool of ``candidate``."""
    if candidate.prefill is None:
        return tuple(SingleReplica(Role.MIXED, _one(pool)) for pool in candidate.decode)
    prefill, decode = _one(candidate.prefill), _one(candidate.decode[0])
    # What the sender's steps take does not matter, so its limits don't either.
    sender = replace(prefill, limits=decode.limits)
    return SingleReplica(Role.PREFILL, prefill), SingleReplica(Role.DECODE, decode, sender)


def _one(pool: PoolChoice) -> PoolChoice:
    return replace(pool, replicas=1)


def _other_end(model: WorkerModel, role: Role) -> WorkerModel:
    """Workers that take no time and hold everything."""
    return replace(
        model,
        role=role,
        count=_SENDERS if role is Role.PREFILL else 1,
        engine=replace(model.engine, step=_NO_TIME),
        num_blocks=max(model.num_blocks, _ENDLESS_BLOCKS),
        max_num_seqs=_ENDLESS_LIMITS.max_num_seqs,
        max_num_batched_tokens=_ENDLESS_LIMITS.max_num_batched_tokens,
    )
