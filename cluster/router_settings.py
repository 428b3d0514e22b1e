"""What a router is told of a cluster, from the cluster's config.

Does not cover: the router's process (``cluster.router_process``).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from cluster.model_folder import ModelFolder
from core.config import ClusterSpec
from core.door_limits import door_limits
from core.store_url import PASSWORD_VARIABLE, with_password
from router.access_rules import AccessRules
from router.placement import Disaggregation
from router.routing.cost_model import ClusterCosts
from router.routing.policies.policy import PolicyName
from router.routing.routing_rules import RoutingRules
from router.settings import RouterSettings
from router.slo import SloTargets


@dataclass(frozen=True, slots=True)
class Doors:
    """Where a router listens. Port 0: any free one. ``drain_s``: seconds that requests get at the
    end."""

    host: str
    grpc_port: int
    http_port: int
    drain_s: float


def router_settings(
    spec: ClusterSpec,
    model: ModelFolder,
    registry: str,
    doors: Doors,
    *,
    max_model_len: int,
    costs: ClusterCosts,
) -> RouterSettings:
    """``registry``: host:port of the controller's. ``costs``: what routing predicts by."""
    return RouterSettings(
        registry=registry,
        model=model.path,
        served_model_name=spec.served_model_name or model.name,
        host=doors.host,
        grpc_port=doors.grpc_port,
        http_port=doors.http_port,
        max_model_len=max_model_len,
        block_size=spec.kv.block_size,
        rules=RoutingRules(
            Disaggregation(spec.router.disaggregation),
            PolicyName(spec.router.policy),
            SloTargets(spec.slo.ttft, spec.slo.tpot),
            costs,
        ),
        drain_s=doors.drain_s,
        vllm_names=spec.metrics.vllm_names,
        metrics_tokens=tuple(spec.metrics.token_sha256),
        access=AccessRules.of(spec.tenants, spec.needs_key, door_limits(spec)),
        max_index_blocks=spec.router.max_index_blocks,
        store=with_password(spec.store, os.environ.get(PASSWORD_VARIABLE, "")),
        tls=spec.tls_files,
        doors=spec.door_files,
    )
