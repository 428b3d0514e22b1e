"""What is counted of each tenant: requests, tokens, SLOs.

Children of a metric are looked up once for each tenant: that takes longer than counting, and this
runs for every token. Tenants beyond a bound are counted together. Does not cover: latencies, which
are of all tenants together (``router.metrics.metrics``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from core.lifecycle import State
from router.metrics import metric_table as table
from router.slo import TPOT, TTFT
from wire.exposition import BoundedLabel, Count, Counts

# Each tenant is a dozen series.
MAX_TENANTS = 64
REFUSED = "refused"
_UNFINISHED = (State.QUEUED, State.PREFILLING, State.STREAMING)
OUTCOMES = (*(state.value for state in State if state not in _UNFINISHED), REFUSED)


@dataclass(frozen=True, slots=True)
class TenantCounters:
    """Of one tenant's requests of one SLO class. ``requests`` by how they ended, ``slo_met`` by
    SLO."""

    requests: Mapping[str, Count]
    prompt_tokens: Count
    cached_tokens: Count
    generated: Count
    slo_requests: Count
    slo_met: Mapping[str, Count]
    goodput: Count

    def judge(self, met: frozenset[str]) -> None:
        """A request that counts for the SLOs has ended and ``met`` these."""
        self.slo_requests.inc()
        for slo in met:
            self.slo_met[slo].inc()
        if len(met) == len(self.slo_met):
            self.goodput.inc()


class TenantMetrics:
    """``of`` a tenant and a class."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._tenants = BoundedLabel(MAX_TENANTS)
        self._known: dict[tuple[str, str], TenantCounters] = {}
        self._requests = Counts(table.REQUESTS, registry)
        self._prompt = Counts(table.PROMPT_TOKENS, registry)
        self._cached = Counts(table.CACHED_TOKENS, registry)
        self._generated = Counts(table.GENERATED, registry)
        self._slo_requests = Counts(table.SLO_REQUESTS, registry)
        self._slo_met = Counts(table.SLO_MET, registry)
        self._goodput = Counts(table.GOODPUT, registry)

    def label(self, tenant: str) -> str:
        """Its name, or that of all beyond the bound."""
        return self._tenants.of(tenant)

    def of(self, tenant: str, slo_class: str) -> TenantCounters:
        known = self._known.get((tenant, slo_class))
        if known is not None:
            return known
        label = self._tenants.of(tenant)
        found = self._known.get((label, slo_class)) or self._new(label, slo_class)
        self._known[label, slo_class] = found
        return found

    def _new(self, tenant: str, slo_class: str) -> TenantCounters:
        whose = (tenant, slo_class)
        return TenantCounters(
            requests={outcome: self._requests.labels(*whose, outcome) for outcome in OUTCOMES},
            prompt_tokens=self._prompt.labels(tenant),
            cached_tokens=self._cached.labels(tenant),
            generated=self._generated.labels(tenant),
            slo_requests=self._slo_requests.labels(*whose),
            slo_met={slo: self._slo_met.labels(*whose, slo) for slo in (TTFT, TPOT)},
            goodput=self._goodput.labels(*whose),
        )
