"""What a cluster's metrics say at a time, and how they changed between two times. Pure.

The arithmetic is that of Prometheus' ``rate`` and ``histogram_quantile``, between two scrapes.
Does not cover: fetching a scrape (``cluster.cli.watch``), what to show (``cluster.live.frame``).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from core.metric_spec import MetricKind, MetricSpec

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Scrape:
    """``at``: seconds, monotonic. ``samples``: by name, then by labels in their order."""

    at: float
    samples: Mapping[str, Mapping[Labels, float]]

    @classmethod
    def parse(cls, text: str, at: float) -> Scrape:
        """``text``: in the format of Prometheus; raises ``ValueError`` if it is not."""
        samples: dict[str, dict[Labels, float]] = defaultdict(dict)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples[sample.name][tuple(sorted(sample.labels.items()))] = sample.value
        return cls(at, dict(samples))

    def select(self, name: str, where: Mapping[str, str]) -> dict[Labels, float]:
        """Samples that have all labels of ``where``."""
        wanted = set(where.items())
        found = self.samples.get(name, {})
        return {labels: value for labels, value in found.items() if wanted <= set(labels)}


@dataclass(frozen=True, slots=True)
class Interval:
    """Two scrapes of the same cluster, ``after`` the later one."""

    before: Scrape
    after: Scrape

    def now(self, spec: MetricSpec, **where: str) -> float:
        """Sum of a gauge's or counter's present values."""
        return sum(self.after.select(_total(spec), where).values())

    def label_sets(self, spec: MetricSpec) -> list[Labels]:
        """Of all present samples."""
        return list(self.after.select(_total(spec), {}))

    def values(self, spec: MetricSpec, label: str) -> list[str]:
        """What a label is, among the present samples; in their order, each once."""
        return list(dict.fromkeys(dict(labels).get(label, "") for labels in self.label_sets(spec)))

    def increase(self, spec: MetricSpec, **where: str) -> float:
        return self._increase(_total(spec), where)

    def rate(self, spec: MetricSpec, **where: str) -> float:
        """Per second; 0 without time in between."""
        seconds = self.after.at - self.before.at
        return self.increase(spec, **where) / seconds if seconds > 0 else 0.0

    def mean(self, spec: MetricSpec, **where: str) -> float | None:
        """Of what a histogram saw in between; None if nothing."""
        count = self._increase(f"{spec.family}_count", where)
        return self._increase(f"{spec.family}_sum", where) / count if count else None

    def quantile(self, q: float, spec: MetricSpec, **where: str) -> float | None:
        """Of what a histogram saw in between, straight within its bucket; None if nothing."""
        buckets: dict[float, float] = defaultdict(float)
        for labels, count in self._increases(f"{spec.family}_bucket", where).items():
            buckets[float(dict(labels)["le"])] += count
        return _quantile(q, sorted(buckets.items()))

    def _increase(self, name: str, where: Mapping[str, str]) -> float:
        return sum(self._increases(name, where).values())

    def _increases(self, name: str, where: Mapping[str, str]) -> dict[Labels, float]:
        before = self.before.select(name, where)
        after = self.after.select(name, where)
        return {labels: _grown(before.get(labels, 0.0), now) for labels, now in after.items()}


def _total(spec: MetricSpec) -> str:
    return spec.samples[0] if spec.kind is MetricKind.COUNTER else spec.family


def _grown(before: float, now: float) -> float:
    """A counter that fell was started anew in between."""
    return now - before if now >= before else now


def _quantile(q: float, buckets: list[tuple[float, float]]) -> float | None:
    """``buckets``: rising upper bounds, the last infinite, and how many are at most that."""
    total = buckets[-1][1] if buckets else 0.0
    if total <= 0:
        return None
    low = below = 0.0
    for bound, count in buckets:
        if count >= q * total:
            if math.isinf(bound):
                return low
            return low + (bound - low) * (q * total - below) / (count - below)
        low, below = bound, count
    return low
