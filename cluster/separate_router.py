"""A router beside a cluster that others run: what it is told, from the cluster's own config.

Covers: the longest sequence, which router and controller compute alike. Does not cover: the router
(``router.main``), who lists the workers (``cluster.serving_cluster``).
"""

from __future__ import annotations

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
from cluster.router_settings import Doors, router_settings
from core.config import ClusterSpec
from router.settings import RouterSettings


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


def settings_of_router(
    spec: ClusterSpec, model: ModelFolder, registry: str, doors: Doors
) -> RouterSettings:
    """``registry``: host:port of the controller's. Raises ``InvalidField`` as it does."""
    max_model_len = plan_max_model_len(spec, model, plan_blocks_elsewhere(spec, model))
    costs = router_costs(spec, model)
    return router_settings(spec, model, registry, doors, max_model_len=max_model_len, costs=costs)
