"""By what a router chooses workers: plain values, from the config and a latency profile."""

from __future__ import annotations

from dataclasses import dataclass, field

from router.placement import Disaggregation
from router.routing.cost_model import ROUGH_COSTS, ClusterCosts
from router.routing.policies.policy import PolicyName
from router.slo import SloTargets


@dataclass(frozen=True, slots=True)
class RoutingRules:
    """``slo``: what `kv_aware` does not want to miss. ``costs``: what it predicts by."""

    disaggregation: Disaggregation = Disaggregation.AUTO
    policy: PolicyName = PolicyName.KV_AWARE
    slo: SloTargets = field(default_factory=SloTargets)
    costs: ClusterCosts = ROUGH_COSTS
