"""What one accelerator can do, by its data sheet, and how much of that engines really reach.

Covers: descriptions of hardware, a few built-in ones. Does not cover: what follows for a model
(``tuner.profile.modelled``).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from core.kv_config import parse_bytes

ByteSize = Annotated[int, BeforeValidator(parse_bytes), Field(ge=1, le=10**13)]
# What is beyond is a slip of units, and would leave the numbers that can be computed with.
Rate = Annotated[float, Field(ge=1, le=1e20)]
Seconds = Annotated[float, Field(ge=0, le=60)]
Share = Annotated[float, Field(ge=0.001, le=1)]


class HardwareSpec(BaseModel):
    """One accelerator, and its links. Rates are those of the data sheet.

    ``flops``: dense FLOP/s at the served precision. ``memory_bandwidth``, ``link_bandwidth`` (to
    the accelerators of the same replica, one direction) and ``network_bandwidth`` (to other
    replicas): bytes/s. ``collective_s``: fixed seconds of one sum over a replica's ranks;
    ``step_s``: of one step, beside what the device computes; ``message_s`` and ``request_s``: see
    ``core.latency_profile.LatencyProfile``.

    ``compute_efficiency``, ``attention_efficiency``, ``bandwidth_efficiency``: the shares of
    ``flops`` in matrix products and in attention over prompts, and of bandwidths, that are
    reached. The defaults are what well-tuned engines report; a measured profile needs none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    flops: Rate
    memory_bandwidth: Rate
    memory: ByteSize
    link_bandwidth: Rate
    network_bandwidth: Rate
    collective_s: Seconds = 10e-6
    step_s: Seconds = 1e-3
    message_s: Seconds = 0.3e-3
    request_s: Seconds = 1e-3
    compute_efficiency: Share = 0.6
    attention_efficiency: Share = 0.4
    bandwidth_efficiency: Share = 0.75
    memory_share: Share = 0.9


def _gpu(
    name: str, tflops: float, terabytes_per_s: float, gigabytes: int, link: float, network: float
) -> HardwareSpec:
    """``link`` and ``network`` in GB/s."""
    return HardwareSpec(
        name=name,
        flops=tflops * 1e12,
        memory_bandwidth=terabytes_per_s * 1e12,
        memory=gigabytes * 10**9,
        link_bandwidth=link * 1e9,
        network_bandwidth=network * 1e9,
    )


# NVIDIA's data sheets: bf16 without sparsity, NVLink (PCIe for the L cards) in one direction, and
# the network card that the vendor's reference server gives each GPU.
BUILT_IN = {
    spec.name: spec
    for spec in (
        _gpu("a100", 312, 2.039, 80, 300, 25),
        _gpu("h100", 989, 3.35, 80, 450, 50),
        _gpu("h200", 989, 4.8, 141, 450, 50),
        _gpu("b200", 2250, 7.7, 180, 900, 50),
        _gpu("l40s", 362, 0.864, 48, 32, 12.5),
        _gpu("l4", 121, 0.3, 24, 16, 12.5),
    )
}
