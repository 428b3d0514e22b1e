"""What a worker tells: totals of steps, state of blocks, edges, and who it is on every sample."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from core.block_pool import BlockPool
from core.handoff import LeaseTimes
from core.peak_rates import DECLARED, PeakRates
from core.phase_clock import Phase
from core.request import Role
from core.shards import ParallelShape
from core.step import Slice, StepPlan
from core.step_cost import CostModel
from core.worker_settings import WorkerSettings
from crossdock.v1 import worker_pb2 as pb
from decode_worker.decoder import Decoder
from worker.metric_table import TABLE
from worker.metrics import WorkerMetrics

COSTS = CostModel(1000, 100, 8, 4, 2, ((None, 1),))
SETTINGS = WorkerSettings("d0", Role.DECODE, "", num_blocks=10, shape=ParallelShape(2, 1))
EDGE = pb.EdgeStats(
    peer="p0", transport="tcp", bytes=100, blocks=3, seconds=0.5, detail="shm: no", source_rank=1
)
RANK = pb.RankStats(rank=1, steps=3, busy_s=0.5, cpu_s=0.75, resident_bytes=100)


def new_metrics() -> WorkerMetrics:
    return WorkerMetrics(SETTINGS, COSTS, PeakRates(1e12, 1e10, DECLARED))


def new_decoder() -> Decoder:
    return Decoder(
        BlockPool(10, 16),
        max_num_seqs=8,
        max_num_batched_tokens=8,
        eos=frozenset(),
        times=LeaseTimes(),
        new_lease_id=lambda: 1,
    )


def plan(start: int, count: int) -> StepPlan:
    tokens = np.zeros(count, dtype=np.int32)
    return StepPlan((Slice(1, start, tokens, np.zeros(1, dtype=np.int32)),))


def told(metrics: WorkerMetrics, decoder: Decoder) -> dict[tuple[str, ...], float]:
    """By name and the labels beside those of the worker."""
    text = metrics.render(metrics.state(decoder, [EDGE], [RANK], 2)).decode()
    values = {}
    for metric in text_string_to_metric_families(text):
        for sample in metric.samples:
            labels = dict(sample.labels)
            assert (labels.pop("worker"), labels.pop("role")) == ("d0", "decode"), sample
            values[sample.name.removeprefix("crossdock_"), *labels.values()] = sample.value
    return values


def test_every_metric_of_the_table_is_told() -> None:
    names = {name for name, *_ in told(new_metrics(), new_decoder())}
    for spec in TABLE:
        assert {name.removeprefix("crossdock_") for name in spec.samples} <= names


def test_steps_are_timed_one_after_the_other_and_cost_what_they_compute() -> None:
    metrics = new_metrics()
    meter = metrics.meter
    meter.planned(1.0)
    meter.planned(1.5)
    meter.completed(plan(0, 2), 2.0)
    meter.completed(plan(2, 1), 2.25)
    assert meter.steps == 0
    meter.count()
    values = told(metrics, new_decoder())
    assert values["engine_steps_total",] == 2
    assert values["engine_busy_seconds_total",] == pytest.approx(1.25)
    assert values["engine_step_seconds_count",] == 2
    assert values["model_flops_total",] == 2 * 3 * 1000 + 4 * (3 + 3) * 8
    assert values["model_read_bytes_total",] == 2 * (2 * 1000 + 4 * (2 + 1 + 2))
    # Of both ranks.
    assert values["peak_flops", DECLARED] == 2e12
    assert values["peak_memory_bytes", DECLARED] == 2e10


def test_blocks_edges_and_phases() -> None:
    metrics, decoder = new_metrics(), new_decoder()
    decoder.pool.allocate(3)
    metrics.observe_phase(Phase.RESERVE, 0.5)
    values = told(metrics, decoder)
    assert values["kv_blocks", "leased"] == 3
    assert values["kv_blocks", "free"] == 7
    assert values["orphan_blocks",] == 3
    # Labels in their order.
    edge = ("0", "p0", "1", "tcp")
    assert values["edge_bytes_total", *edge] == 100
    assert values["edge_slow", *edge] == 1
    assert values["request_phase_seconds_sum", "reserve"] == 0.5
    assert values["request_phase_seconds_count", "commit"] == 0
    assert values["worker_routers",] == 2


def test_every_rank_tells_its_part_or_is_missed() -> None:
    values = told(new_metrics(), new_decoder())
    assert (values["rank_up", "0"], values["rank_up", "1"]) == (0, 1)
    assert values["rank_busy_seconds_total", "1"] == 0.5
    assert values["rank_cpu_seconds_total", "1"] == 0.75
    assert values["rank_resident_memory_bytes", "1"] == 100
    assert ("rank_steps_total", "0") not in values
