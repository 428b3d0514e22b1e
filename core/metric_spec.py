"""What a metric is called and what it means: one line of a process's table of metrics.

Every process has such a table; its metrics, the documentation and the tests of dashboards and
alerts follow from them. Does not cover: values and their text form (``wire.exposition``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

PREFIX = "crossdock_"

# Upper bounds of buckets, in seconds: those of vLLM, so that existing dashboards fit.
TTFT_EDGES = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0),
    *(7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
ITL_EDGES = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0),
    *(7.5, 10.0, 20.0, 40.0, 80.0),
)
E2E_EDGES = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
# Of parts of a request, which are short here: those too that vLLM has for whole requests.
PART_EDGES = tuple(sorted({*TTFT_EDGES, *E2E_EDGES}))
# Of tokens: 1, 2 and 5 times powers of ten, as vLLM has them.
TOKEN_EDGES = tuple(float(m * 10**e) for e in range(6) for m in (1, 2, 5))
# Of decisions, which take microseconds to milliseconds.
DECISION_EDGES = (
    *(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05),
)
# Of a ratio whose right value is 1.
RATIO_EDGES = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.11, 1.25, 1.5, 2.0, 4.0, 10.0, 100.0)


class MetricKind(Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """``name`` without prefix, ``text`` its meaning with the unit, ``edges`` of a histogram."""

    name: str
    kind: MetricKind
    text: str
    labels: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()

    @property
    def family(self) -> str:
        """Without the suffix of its samples."""
        return PREFIX + self.name

    @property
    def samples(self) -> tuple[str, ...]:
        """The names that a scrape shows."""
        match self.kind:
            case MetricKind.COUNTER:
                return (f"{self.family}_total",)
            case MetricKind.GAUGE:
                return (self.family,)
            case MetricKind.HISTOGRAM:
                return tuple(f"{self.family}_{part}" for part in ("bucket", "sum", "count"))


def counter(name: str, text: str, *labels: str) -> MetricSpec:
    return MetricSpec(name, MetricKind.COUNTER, text, labels)


def gauge(name: str, text: str, *labels: str) -> MetricSpec:
    return MetricSpec(name, MetricKind.GAUGE, text, labels)


def histogram(name: str, text: str, edges: tuple[float, ...], *labels: str) -> MetricSpec:
    return MetricSpec(name, MetricKind.HISTOGRAM, text, labels, edges)


CERTIFICATE_EXPIRY = gauge(
    "certificate_expiry_timestamp_seconds",
    "Unix time at which a certificate that this process shows runs out: `member` to the cluster, "
    "`door` to clients",
    "certificate",
)

# Of every process, beside its own table.
COMMON = (CERTIFICATE_EXPIRY,)
