"""Who may ask this router for how much, as it is told when it starts. Plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from core.tenant_config import TenantSpec
from core.tenants import DoorLimits, Tenant


@dataclass(frozen=True, slots=True)
class AccessRules:
    """``tenants`` by name, ``api_keys``: whose they are, by SHA-256. ``needs_key``: requests
    without one are refused. ``door``: what is let in."""

    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    api_keys: Mapping[str, str] = field(default_factory=dict)
    needs_key: bool = False
    door: DoorLimits = field(default_factory=DoorLimits)

    @classmethod
    def of(cls, specs: Mapping[str, TenantSpec], needs_key: bool, door: DoorLimits) -> AccessRules:
        tenants = {name: spec.plain(name) for name, spec in specs.items()}
        keys = {key: name for name, spec in specs.items() for key in spec.api_key_sha256}
        return cls(tenants, keys, needs_key, door)

    def tenant(self, name: str) -> Tenant:
        """One that nobody described has an equal share and no limits."""
        return self.tenants.get(name) or _undescribed(name)


@lru_cache(maxsize=1024)
def _undescribed(name: str) -> Tenant:
    return Tenant(name)
