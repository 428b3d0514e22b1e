"""Metrics as Prometheus reads them: families from specs, labels for a whole process, one text of
several processes.

Does not cover: which metrics there are (``core.metric_spec`` and each process's table), HTTP.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from math import inf
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from core.metric_spec import MetricKind, MetricSpec

# When a series began is of no use here, and it doubles a scrape.
disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# The value of a label for all whose own value would be one too many.
OTHER = "other"
# One value for each combination of labels.
Samples = Iterable[tuple[Sequence[str], float]]


class Collects(Protocol):
    def collect(self) -> Iterable[Metric]: ...


def new_gauge(spec: MetricSpec, registry: CollectorRegistry) -> Gauge:
    return Gauge(spec.family, spec.text, spec.labels, registry=registry)


def new_histogram(spec: MetricSpec, registry: CollectorRegistry) -> Histogram:
    return Histogram(spec.family, spec.text, spec.labels, registry=registry, buckets=spec.edges)


def family(spec: MetricSpec, samples: Samples) -> Metric:
    """A counter or gauge whose values are known at the moment of a scrape."""
    kind = CounterMetricFamily if spec.kind is MetricKind.COUNTER else GaugeMetricFamily
    found = kind(spec.family, spec.text, labels=spec.labels)
    for labels, value in samples:
        found.add_metric(labels, value)
    return found


def single(spec: MetricSpec, value: float) -> Metric:
    """As `family`, of a metric without labels."""
    return family(spec, [((), value)])


class Count:
    """One series of a counter. Unlike prometheus_client's it takes no lock and looks at nothing,
    which is nine tenths of the work: for one thread."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, by: float = 1.0) -> None:
        """``by``: 0 or more."""
        self.value += by


class Counts(Collector):
    """A counter: one `Count` for each combination of labels."""

    def __init__(self, spec: MetricSpec, registry: CollectorRegistry) -> None:
        self._spec = spec
        self._counts: dict[tuple[str, ...], Count] = {}
        registry.register(self)

    def labels(self, *values: str) -> Count:
        """Without labels: the only one."""
        return self._counts.setdefault(values, Count())

    def collect(self) -> Iterator[Metric]:
        yield family(self._spec, [(labels, count.value) for labels, count in self._counts.items()])


class CountedHistogram(Collector):
    """A histogram without labels that takes a value as often as it came at once, and with a
    tenth of the work: prometheus_client's looks for the bucket one by one and takes two locks."""

    def __init__(self, spec: MetricSpec, registry: CollectorRegistry) -> None:
        self._spec, self._edges = spec, spec.edges
        self._counts = [0] * (len(spec.edges) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, value: float, count: int = 1) -> None:
        self._counts[bisect_left(self._edges, value)] += count
        self._sum += value * count

    def collect(self) -> Iterator[Metric]:
        spec = self._spec
        edges = [floatToGoString(e) for e in (*spec.edges, inf)]  # type: ignore[no-untyped-call]
        found = HistogramMetricFamily(spec.family, spec.text)
        buckets = list(zip(edges, accumulate(self._counts), strict=True))
        found.add_metric((), buckets, self._sum)
        yield found


class Labelled(Collector):
    """All that ``inner`` collects, each sample with ``labels`` beside its own."""

    def __init__(self, inner: Collects, labels: Mapping[str, str]) -> None:
        self._inner = inner
        self._labels = dict(labels)

    def collect(self) -> Iterator[Metric]:
        for metric in self._inner.collect():
            copied = Metric(metric.name, metric.documentation, metric.type)
            copied.samples = [
                sample._replace(labels={**self._labels, **sample.labels})
                for sample in metric.samples
            ]
            yield copied


class BoundedLabel:
    """Values of a label that others choose: the first ``limit`` as they are, the rest `OTHER`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def of(self, value: str) -> str:
        if value in self._known:
            return value
        if len(self._known) >= self._limit:
            return OTHER
        self._known.add(value)
        return value


def merge(texts: Iterable[bytes]) -> bytes:
    """One text out of those of several processes: the samples of a family stay together.

    Each text must be one that ``prometheus_client`` wrote. Samples are left as they are: processes
    of the same kind have to differ in a label.
    """
    heads: dict[str, str] = {}
    samples: dict[str, list[str]] = {}
    for text in texts:
        name = ""
        for line in text.decode().splitlines():
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                heads.setdefault(name, line)
                samples.setdefault(name, [])
            elif line.startswith("# TYPE "):
                samples[name] = samples[name] or [line]
            elif line:
                samples[name].append(line)
    lines = [line for name, head in heads.items() for line in (head, *samples[name])]
    return ("\n".join(lines) + "\n").encode()
