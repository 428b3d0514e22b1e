"""The sections of the config about who may ask for how much: `tenants`, `auth`, `admission`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, Field, StringConstraints

from core.config_section import Section, wrong_within
from core.tenants import DEFAULT_MAX_WAITING, DEFAULT_TENANT, LOWEST_PRIORITY, Tenant, TenantLimits

MAX_TENANTS = 1000
MAX_KEYS = 16

TenantName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def _lower(digest: object) -> object:
    return digest.strip().lower() if isinstance(digest, str) else digest


Sha256 = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9a-f]{64}$"),
    BeforeValidator(_lower, json_schema_input_type=str),
]


class TenantLimitsSpec(Section):
    """What a tenant may ask for. A key that is left out sets no limit. They hold for all routers
    together if these have a `store`; else each counts by itself, and a tenant that spreads its
    requests over several gets as many times as much."""

    requests_per_second: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """On average; a second's worth may come at once. More are refused, with the time after which to
    come again."""
    tokens_per_minute: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Of prompts, except what caches had of them, and of answers, on average; a minute's worth may
    come at once. Answers count as long as the tenant's latest ones until they have ended; what they
    had more is paid off before the next request."""
    concurrent_sequences: int | None = Field(default=None, ge=1, strict=True)
    """Answers on workers at a time. Further requests wait at the door."""
    cache_share: float | None = Field(default=None, gt=0, le=1)
    """Of the decode workers' KV blocks, the share that its running requests may take, each
    counted with all of its `max_tokens`. Further ones wait at the door; one at a time may always
    run."""

    def plain(self) -> TenantLimits:
        return TenantLimits(**self.model_dump())


class TenantSpec(Section):
    """One who asks, by its API keys. `default` is who comes without one."""

    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Of its share when there is more to do than the cluster can: twice the weight, twice the
    tokens."""
    priority: int = Field(default=0, ge=0, le=LOWEST_PRIORITY, strict=True)
    """Its class; 0 is served first. A request may ask for a later class, not for an earlier one."""
    api_key_sha256: list[Sha256] = Field(default_factory=list, max_length=MAX_KEYS)
    """SHA-256 of each of its keys, in hexadecimal digits, as `crossdock api-key` prints them."""
    limits: TenantLimitsSpec = TenantLimitsSpec()

    def plain(self, name: str) -> Tenant:
        return Tenant(name, self.weight, self.priority, self.limits.plain())


class AuthSpec(Section):
    """Who may come in."""

    required: bool | None = None
    """Whether a request without an API key is refused; else it is the tenant `default`'s. Without
    it: as soon as a tenant has a key. A wrong key is refused in any case."""


class AdminSpec(Section):
    """Who may operate the cluster (`status`, `scale`, `drain`, `flip`). Without anything here: with
    `tls.ca` who has a certificate of the cluster or of an operator, else who reaches the port."""

    token_sha256: list[Sha256] = Field(default_factory=list, max_length=MAX_KEYS)
    """SHA-256 of each token that opens the operators' port, as `crossdock api-key` makes them; no
    certificate is asked for then."""


class AdmissionSpec(Section):
    """What a router lets in, and when. What waits at its door is ordered by priority, then by the
    tenants' weighted shares, then by when the first token is due."""

    max_waiting: int = Field(default=DEFAULT_MAX_WAITING, ge=1, strict=True)
    """Requests without a first token, at the door and on workers. Of more, those that would be
    served last are refused with the time after which to come again."""
    prefill_backlog: int | None = Field(default=None, ge=1, strict=True)
    """Prompt tokens that a worker may have still to compute when it is sent another prompt. Without
    it: one engine step's worth if there are several tenants, else as many as come."""
    decode_backlog: int | None = Field(default=None, ge=0, strict=True)
    """Sequences that a worker may have beyond its `max_num_seqs`. Without it: none if there are
    several tenants, else as many as come."""


def check_keys(tenants: Mapping[str, TenantSpec]) -> None:
    """Raises what pydantic takes from a validator if a key doesn't say who comes, or nobody can."""
    owners: dict[str, str] = {}
    for name, tenant in tenants.items():
        if not tenant.api_key_sha256 and name != DEFAULT_TENANT:
            raise wrong_within(
                (name, "api_key_sha256"),
                [],
                "nobody could be this tenant; make a key with `crossdock api-key`",
            )
        for digest in tenant.api_key_sha256:
            if owners.setdefault(digest, name) != name:
                raise wrong_within(
                    (name, "api_key_sha256"),
                    f"{digest[:8]}…",
                    f"is a key of {owners[digest]}, too; make one for each of them",
                )
