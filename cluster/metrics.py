"""What the controller tells Prometheus: the pools, what is wanted of them, how they are used.

Does not cover: names and meanings (``cluster.metric_table``), workers and routers themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from cluster import metric_table as table
from cluster.admin import ClusterView
from cluster.plan import POOLS
from cluster.pool_messages import MemberState
from cluster.pool_utilization import imbalance
from core.tls_files import ServerFiles
from wire.certificate_expiry import CertificateExpiry
from wire.exposition import Labelled, family, single


class ControllerMetrics(Collector):
    """``view`` is called for each scrape; ``prices``: of a pool's worker, an hour, where known;
    ``files``: of the certificate that it shows."""

    def __init__(
        self,
        view: Callable[[], ClusterView],
        prices: Mapping[str, float],
        files: ServerFiles | None = None,
    ) -> None:
        self._view = view
        self._prices = prices
        self._registry = CollectorRegistry()
        self._registry.register(self)
        process = CollectorRegistry()
        ProcessCollector(registry=process)
        process.register(CertificateExpiry({"member": files}))
        # Beside a router's own, which has no such label.
        self._registry.register(Labelled(process, {"worker": "controller"}))

    def render(self) -> bytes:
        """The text of a scrape."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        view = self._view()
        wanted = {"prefill": view.wanted.prefill, "decode": view.wanted.decode}
        yield family(table.WANTED, [((pool,), count) for pool, count in wanted.items()])
        members = Counter((member.slot.pool, member.state) for member in view.members)
        yield family(
            table.MEMBERS,
            [((p, s.value), members[p, s]) for p in POOLS for s in MemberState],
        )
        yield single(table.RESTARTS, view.restarts)
        yield single(table.SETTLED, float(view.settled))
        yield family(
            table.UTILIZATION,
            [((pool,), used) for pool, used in view.utilization.items() if used is not None],
        )
        ratio = imbalance(view.utilization.get("prefill"), view.utilization.get("decode"))
        yield family(table.IMBALANCE, [] if ratio is None else [((), ratio)])
        pools = Counter(member.slot.pool for member in view.members)
        yield family(
            table.HOUR_PRICE,
            [((pool,), price * pools[pool]) for pool, price in self._prices.items()],
        )
