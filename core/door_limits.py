"""What a router lets in, from a cluster's config. Pure."""

from __future__ import annotations

from core.config import ClusterSpec
from core.step_budget import step_budget
from core.tenants import DoorLimits


def door_limits(spec: ClusterSpec) -> DoorLimits:
    """Where several tenants compete, what waits does so at the door, where their shares count, and
    a worker has what it computes and one step's worth beside it; else what waits does so on the
    workers, which order prompts better as they know more of them."""
    admission = spec.admission
    prefill, decode = admission.prefill_backlog, admission.decode_backlog
    if spec.tenants_compete:
        pool = "prefill" if spec.pools.prefill.replicas else "decode"
        prefill = step_budget(spec, pool) if prefill is None else prefill
        decode = 0 if decode is None else decode
    return DoorLimits(admission.max_waiting, prefill, decode)
