"""Metrics as Prometheus reads them: families from specs, labels for a whole process, one text of
several processes.

Does not cover: which metrics there are (``core.metric_spec`` and each process's table), HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

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


def new_counter(spec: MetricSpec, registry: CollectorRegistry) -> Counter:
    return Counter(spec.family, spec.text, spec.labels, registry=registry)


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
