"""From the name in a config to the policy."""

from __future__ import annotations

from router.routing.policies.kv_aware import KvAware
from router.routing.policies.least_loaded import LeastLoaded
from router.routing.policies.policy import Policy, PolicyName
from router.routing.policies.prefix_affinity import PrefixAffinity
from router.routing.policies.random import AnyWorker
from router.routing.policies.round_robin import RoundRobin
from router.slo import SloTargets


def make_policy(name: PolicyName, slo: SloTargets) -> Policy:
    """A new one, with no counts yet."""
    match name:
        case PolicyName.KV_AWARE:
            return KvAware(slo)
        case PolicyName.LEAST_LOADED:
            return LeastLoaded()
        case PolicyName.ROUND_ROBIN:
            return RoundRobin()
        case PolicyName.RANDOM:
            return AnyWorker()
        case PolicyName.PREFIX_AFFINITY:
            return PrefixAffinity()
