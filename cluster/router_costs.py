"""What a router predicts by: a profile that was measured, or rough times of the same model.

Covers: reading ``router.profile`` and refusing another model's, the rough times. Does not cover:
what the router makes of them (``router.routing.cost_model``), measuring (``crossdock profile``).
"""

from __future__ import annotations

from pathlib import Path

from cluster.model_folder import ModelFolder
from cluster.plan import resolve_dtype
from core.config import ClusterSpec, PeakSpec
from core.kv_layout import DTYPE_BYTES
from core.shards import ParallelShape
from core.step_budget import step_budget
from engine.model_hash import model_hash
from router.routing.cost_model import ClusterCosts, EngineCosts
from tuner.profile.hardware import BUILT_IN, HardwareSpec
from tuner.profile.model_shape import read_model_shape
from tuner.profile.modelled import Roofline
from tuner.profile.profile_file import read_profile, require_model
from tuner.simulate.from_spec import PoolProfiles, model_cluster

# One core of a server, with its share of the memory's bandwidth, and blocks that go by memory.
_CPU_CORE = HardwareSpec(
    name="a CPU core",
    flops=8e11,
    memory_bandwidth=16e9,
    memory=64 * 10**9,
    link_bandwidth=5e9,
    network_bandwidth=5e9,
    step_s=2e-3,
    message_s=0.5e-3,
)
_GPU = BUILT_IN["h100"]


def router_costs(spec: ClusterSpec, model: ModelFolder) -> ClusterCosts:
    """From ``router.profile`` if there is one. Raises ``Incompatible`` for one of another model,
    ``InvalidField`` for a file that can't be read, or that lacks the shape of a pool."""
    if spec.router.profile is None:
        return _rough_costs(spec, model)
    profile = read_profile(Path(spec.router.profile))
    require_model(profile, f"{model_hash(model.path):016x}", model.name)
    return model_cluster(spec, PoolProfiles(profile, profile)).rules.costs


def _rough_costs(spec: ClusterSpec, model: ModelFolder) -> ClusterCosts:
    hardware = _hardware(spec)
    itemsize = DTYPE_BYTES[resolve_dtype(spec, model)]
    roofline = Roofline(hardware, read_model_shape(model.path), itemsize)
    prefill, decode = spec.pools.prefill, spec.pools.decode

    def engine(pool: str, shape: ParallelShape) -> EngineCosts:
        return EngineCosts(roofline.step(shape), step_budget(spec, pool), shape.pipeline)

    return ClusterCosts(
        engine("prefill", prefill.shape),
        engine("decode", decode.shape),
        roofline.transfer(prefill.shape, decode.shape),
        hardware.message_s,
    )


def _hardware(spec: ClusterSpec) -> HardwareSpec:
    hardware = _CPU_CORE if spec.engine.device == "cpu" else _GPU
    peak = spec.engine.peak or PeakSpec(
        flops=hardware.flops * (spec.engine.threads or 1),
        memory_bandwidth=hardware.memory_bandwidth,
    )
    rates = {"flops": peak.flops, "memory_bandwidth": peak.memory_bandwidth}
    return hardware.model_copy(update=rates)
