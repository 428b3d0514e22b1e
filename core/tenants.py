"""Who asks: tenants, their share of the cluster, and what each may ask for.

Plain values. Does not cover: the config that they are from (``core.tenant_config``), who is let in
when (``router.admission.admission``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Who everybody is as long as nobody needs a key.
DEFAULT_TENANT = "default"
# Classes from 0, which is served first, to this one.
LOWEST_PRIORITY = 9
# Requests without a token in one router. A burst of a second fits in, also on large clusters.
DEFAULT_MAX_WAITING = 2048


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """None: no limit. ``cache_share``: of the decode workers' blocks, from 0 to 1, that its
    running requests may take."""

    requests_per_second: float | None = None
    tokens_per_minute: float | None = None
    concurrent_sequences: int | None = None
    cache_share: float | None = None


@dataclass(frozen=True, slots=True)
class Tenant:
    """``weight``: of its share, against the others' of its class. ``priority``: its class, and the
    best one that a request of its may ask for."""

    name: str = DEFAULT_TENANT
    weight: float = 1.0
    priority: int = 0
    limits: TenantLimits = field(default_factory=TenantLimits)


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """What one router lets in. ``max_waiting``: requests without a token. ``prefill_backlog``:
    prompt tokens that a worker may have still to compute when it is sent another prompt;
    ``decode_backlog``: sequences beyond those that it computes at once. None: as many as come."""

    max_waiting: int = DEFAULT_MAX_WAITING
    prefill_backlog: int | None = None
    decode_backlog: int | None = None
