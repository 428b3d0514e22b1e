"""What a worker tells Prometheus: its totals and its state at the moment of a scrape.

Does not cover: names and meanings (``worker.metric_table``), where it is scraped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from core.metric_spec import MetricSpec
from core.peak_rates import PeakRates
from core.phase_clock import Phase
from core.step_cost import CostModel
from core.tls_files import server_files
from core.worker_settings import WorkerSettings
from crossdock.v1 import worker_pb2 as pb
from wire.certificate_expiry import CertificateExpiry
from wire.exposition import Labelled, family, new_histogram, single
from worker import metric_table as table
from worker.brain import Brain
from worker.step_meter import StepMeter


class WorkerMetrics:
    """``costs`` of the model and ``peak`` of one rank's device give MFU and MBU."""

    def __init__(self, settings: WorkerSettings, costs: CostModel, peak: PeakRates) -> None:
        self._settings = settings
        self._peak = peak
        self._own = CollectorRegistry()
        self._phases = new_histogram(table.PHASES, self._own)
        for phase in Phase:
            self._phases.labels(phase.value)
        self.meter = StepMeter(costs, new_histogram(table.STEP_TIME, self._own).observe)
        ProcessCollector(registry=self._own)
        self._own.register(CertificateExpiry({"member": server_files(settings.tls)}))

    def observe_phase(self, phase: Phase, seconds: float) -> None:
        self._phases.labels(phase.value).observe(seconds)

    def state(
        self,
        brain: Brain[Any, Any],
        edges: Sequence[pb.EdgeStats],
        ranks: Sequence[pb.RankStats],
        routers: int,
    ) -> list[Metric]:
        """A snapshot; the caller holds the lock that guards ``brain``."""
        return [
            *_load(brain, self._settings.max_num_seqs),
            *_blocks(brain),
            *_counters(brain),
            *_edges(edges),
            *_ranks(ranks, self._settings.shape.num_ranks),
            single(table.ROUTERS, routers),
            *self._engine(),
        ]

    def render(self, state: Sequence[Metric]) -> bytes:
        """The text of a scrape, with ``state`` as `state` gave it."""
        labels = {"worker": self._settings.worker, "role": self._settings.role.value}
        scrape = CollectorRegistry()
        scrape.register(Labelled(self._own, labels))
        scrape.register(Labelled(_Fixed(state), labels))
        return generate_latest(scrape)

    def _engine(self) -> Iterator[Metric]:
        meter, peak, ranks = self.meter, self._peak, self._settings.shape.num_ranks
        yield single(table.STEPS, meter.steps)
        yield single(table.BUSY, meter.busy_s)
        yield single(table.FLOPS, meter.flops)
        yield single(table.BYTES, meter.bytes)
        yield family(table.PEAK_FLOPS, [((peak.source,), peak.flops * ranks)])
        yield family(table.PEAK_BANDWIDTH, [((peak.source,), peak.bandwidth * ranks)])


class _Fixed(Collector):
    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Sequence[Metric]:
        return self._metrics


def _load(brain: Brain[Any, Any], max_num_seqs: int) -> Iterator[Metric]:
    load = brain.load
    yield single(table.RUNNING, load.running)
    yield single(table.WAITING, load.waiting)
    yield single(table.MAX_SEQUENCES, max_num_seqs)
    yield single(table.PENDING, load.pending_prefill_tokens)
    yield single(table.LEASES, brain.num_leases)


def _blocks(brain: Brain[Any, Any]) -> Iterator[Metric]:
    pool = brain.pool
    states = {
        "free": pool.num_free,
        "cached": pool.num_cached,
        "leased": pool.num_leased,
        "quarantined": pool.num_quarantined,
    }
    yield family(table.BLOCKS, [((state,), count) for state, count in states.items()])
    yield single(table.POOL_BLOCKS, pool.num_blocks)
    yield single(table.ORPHANS, brain.num_orphans)


def _counters(brain: Brain[Any, Any]) -> Iterator[Metric]:
    counters = brain.counters
    yield single(table.COMPUTED, counters.prefill_tokens_computed)
    yield single(table.RECOMPUTED, counters.recomputed_tokens)
    yield single(table.PREFIX_HITS, counters.prefix_tokens_hit)
    yield single(table.DECODED, counters.decode_tokens)
    yield single(table.PREEMPTIONS, counters.preemptions)


def _edges(edges: Sequence[pb.EdgeStats]) -> Iterator[Metric]:
    def each(spec: MetricSpec, values: Sequence[float]) -> Metric:
        labels: list[Sequence[str]] = [
            (e.peer, e.transport, str(e.source_rank), str(e.destination_rank)) for e in edges
        ]
        return family(spec, list(zip(labels, values, strict=True)))

    yield each(table.EDGE_BYTES, [e.bytes for e in edges])
    yield each(table.EDGE_BLOCKS, [e.blocks for e in edges])
    yield each(table.EDGE_TIME, [e.seconds for e in edges])
    yield each(table.EDGE_RESENT, [e.resent_blocks for e in edges])
    yield each(table.EDGE_SLOW, [float(bool(e.detail)) for e in edges])


def _ranks(ranks: Sequence[pb.RankStats], expected: int) -> Iterator[Metric]:
    def each(spec: MetricSpec, values: Sequence[float]) -> Metric:
        labels: list[Sequence[str]] = [(str(rank.rank),) for rank in ranks]
        return family(spec, list(zip(labels, values, strict=True)))

    told = {rank.rank for rank in ranks}
    yield family(table.RANK_UP, [((str(i),), float(i in told)) for i in range(expected)])
    yield each(table.RANK_STEPS, [rank.steps for rank in ranks])
    yield each(table.RANK_BUSY, [rank.busy_s for rank in ranks])
    yield each(table.RANK_CPU, [rank.cpu_s for rank in ranks])
    yield each(table.RANK_MEMORY, [rank.resident_bytes for rank in ranks])
