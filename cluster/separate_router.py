"""A router beside a cluster that others run: what it is told, from the cluster's own config.

Covers: the longest sequence, which router and controller compute alike. Does not cover: the router
(``router.main``), who lists the workers (``cluster.launch``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.demo_model import ensure_demo_model
from cluster.memory_plan import PoolBlocks, plan_blocks, plan_max_model_len
from cluster.model_folder import (
    ModelFolder,
    find_model,
    read_folder_without_weights,
    read_model_folder,
)
from cluster.progress import Progress
from cluster.router_costs import router_costs
from cluster.router_process import RouterOptions
from core.config import ClusterSpec
from core.door_limits import door_limits


@dataclass(frozen=True, slots=True)
class Doors:
    """Where a router listens. Port 0: any free one. ``drain_s``: seconds that requests get at the
    end."""

    host: str
    grpc_port: int
    http_port: int
    drain_s: float


def locate_model(spec: ClusterSpec, progress: Progress) -> ModelFolder:
    """The folder of ``spec.model``, or of the demo model. Raises as ``read_model_folder``."""
    return read_model_folder(_folder(spec, progress))


def locate_model_of_router(spec: ClusterSpec, progress: Progress) -> ModelFolder:
    """The same without a look at the weights: on a router's machine there may be none, unless
    ``router.profile`` is to be compared with them."""
    return read_folder_without_weights(_folder(spec, progress))


def _folder(spec: ClusterSpec, progress: Progress) -> Path:
    return find_model(spec.model) if spec.model else ensure_demo_model(progress)


def plan_blocks_elsewhere(spec: ClusterSpec, model: ModelFolder) -> PoolBlocks:
    """For workers on other machines: what is free on this one says nothing about them."""
    return plan_blocks(spec, model, None)


def router_options(
    spec: ClusterSpec, model: ModelFolder, registry: str, doors: Doors
) -> RouterOptions:
    """``registry``: host:port of the controller's. Raises ``InvalidField`` as it does."""
    return RouterOptions(
        registry=registry,
        model_folder=str(model.path),
        served_model_name=spec.served_model_name or model.name,
        host=doors.host,
        grpc_port=doors.grpc_port,
        http_port=doors.http_port,
        max_model_len=plan_max_model_len(spec, model, plan_blocks_elsewhere(spec, model)),
        block_size=spec.kv.block_size,
        disaggregation=spec.router.disaggregation,
        drain_s=doors.drain_s,
        slo_ttft_s=spec.slo.ttft,
        slo_tpot_s=spec.slo.tpot,
        vllm_names=spec.metrics.vllm_names,
        policy=spec.router.policy,
        costs=router_costs(spec, model),
        tenants=spec.tenants,
        needs_key=spec.needs_key,
        door=door_limits(spec),
        max_index_blocks=spec.router.max_index_blocks,
    )
