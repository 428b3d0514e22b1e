"""What `status --watch` makes of two scrapes, and how that looks."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cluster.admin import ClusterView
from cluster.cli.output import Output
from cluster.cli.watch import Watched, watch
from cluster.live.frame import Frame, make_frame
from cluster.live.scrape import Interval, Scrape
from cluster.live.tables import draw
from cluster.metrics import ControllerMetrics
from cluster.plan import Slot
from cluster.pool_messages import Member, MemberState
from cluster.wanted import Wanted
from core.block_pool import BlockPool
from core.errors import Unavailable
from core.handoff import LeaseTimes
from core.lifecycle import State
from core.metric_spec import counter, gauge, histogram
from core.peak_rates import DECLARED, PeakRates
from core.phase_clock import Phase
from core.request import FinishReason, Role
from core.step import Slice, StepPlan
from core.step_cost import CostModel
from core.worker_settings import WorkerSettings
from crossdock.v1 import admin_pb2
from crossdock.v1 import worker_pb2 as pb
from decode_worker.decoder import Decoder
from router.flow.messages import Finish
from router.metrics.metrics import EndedRequest, Metrics, RouterState
from router.placement import Forecast, Placement, WorkerId
from wire.exposition import merge
from worker.metrics import WorkerMetrics

SEEN = counter("seen", "How many", "kind")
LEVEL = gauge("level", "How high")
TIME = histogram("time_seconds", "How long", (0.1, 1.0))


def scrape(at: float, seen: int, *buckets: int) -> Scrape:
    """``buckets``: cumulative counts up to 0.1, 1 and infinity."""
    lines = ["# TYPE crossdock_seen_total counter", f'crossdock_seen_total{{kind="a"}} {seen}']
    lines += ['crossdock_seen_total{kind="b"} 1', "# TYPE crossdock_level gauge"]
    lines += [f"crossdock_level {seen}", "# TYPE crossdock_time_seconds histogram"]
    for bound, count in zip(("0.1", "1.0", "+Inf"), buckets, strict=True):
        lines.append(f'crossdock_time_seconds_bucket{{le="{bound}"}} {count}')
    lines += [f"crossdock_time_seconds_count {buckets[-1]}", "crossdock_time_seconds_sum 3.0"]
    return Scrape.parse("\n".join(lines) + "\n", at)


def test_rates_are_between_two_scrapes() -> None:
    interval = Interval(scrape(10.0, 5, 0, 0, 0), scrape(20.0, 25, 2, 3, 4))
    assert interval.rate(SEEN) == 2.0
    assert interval.rate(SEEN, kind="b") == 0.0
    assert interval.now(SEEN, kind="a") == 25
    assert interval.now(LEVEL) == 25
    assert interval.values(SEEN, "kind") == ["a", "b"]


def test_percentiles_lie_straight_within_their_bucket() -> None:
    interval = Interval(scrape(10.0, 5, 1, 1, 1), scrape(20.0, 5, 3, 5, 5))
    assert interval.quantile(0.25, TIME) == pytest.approx(0.05)
    assert interval.quantile(0.75, TIME) == pytest.approx(0.1 + 0.9 / 2)
    assert Interval(scrape(0, 0, 0, 0, 0), scrape(1, 0, 0, 0, 4)).quantile(0.5, TIME) == 1.0


def test_nothing_that_happened_has_no_percentile_and_no_mean() -> None:
    same = scrape(10.0, 5, 1, 1, 1)
    assert Interval(same, same).quantile(0.5, TIME) is None
    assert Interval(same, same).mean(TIME) is None
    assert Interval(same, same).rate(SEEN) == 0.0


def test_a_counter_that_fell_was_started_anew() -> None:
    assert Interval(scrape(10.0, 50, 0, 0, 0), scrape(20.0, 20, 0, 0, 0)).rate(SEEN) == 2.0


class Told:
    """A router, a decode worker and a controller, and the status of their cluster."""

    def __init__(self) -> None:
        self.router = Metrics()
        settings = WorkerSettings("decode-0", Role.DECODE, "", num_blocks=10)
        costs = CostModel(1000, 100, 8, 4, 2, ((None, 1),))
        self.worker = WorkerMetrics(settings, costs, PeakRates(1e4, 1e5, DECLARED))
        self.decoder = Decoder(
            BlockPool(10, 16),
            max_num_seqs=8,
            max_num_batched_tokens=8,
            eos=frozenset(),
            times=LeaseTimes(),
            new_lease_id=lambda: 1,
        )
        self.edge = pb.EdgeStats(peer="prefill-0", transport="tcp", detail="shm: other host")

    def scrape(self, at: float) -> Scrape:
        prices = {"prefill": 3.0, "decode": 5.0}
        utilization = {"prefill": 0.95, "decode": 0.25}
        members = tuple(Member(Slot(pool, 0, pool), MemberState.READY, 0.0) for pool in prices)
        view = ClusterView("tiny", "", "", members, {}, Wanted(1, 1), 0, True, utilization)
        worker = self.worker.render(self.worker.state(self.decoder, [self.edge], [], 1))
        router = self.router.render(RouterState(known=["decode-0"], running=3, streaming=2))
        controller = ControllerMetrics(lambda: view, prices).render()
        return Scrape.parse(merge([router, worker, controller]).decode(), at)

    def serve(self) -> None:
        decode, prefill = WorkerId("decode-0", 1), WorkerId("prefill-0", 1)
        placement = Placement(decode, prefill, Forecast(0.1, prefill_held=1, decode_held=2))
        self.router.placed(placement, blocks=4, seconds=0.0001)
        self.router.first_output(0.3, 0.2, placement)
        for seconds, tenant in ((0.3, "a"), (3.0, "b")):
            finish = Finish(FinishReason.STOP, 5, 16, 0.1, seconds, seconds + 0.1, placement, 1)
            self.router.generated(tenant, 30 if tenant == "a" else 10)
            self.router.ended(EndedRequest(tenant, State.FINISHED, 20, 16, [finish]))
        tokens = np.zeros(5, dtype=np.int32)
        self.worker.meter.planned(1.0)
        step = StepPlan((Slice(1, 0, tokens, np.zeros(1, dtype=np.int32)),))
        self.worker.meter.completed(step, 3.0)
        self.worker.meter.count()
        self.worker.observe_phase(Phase.RESERVE, 0.25)
        self.edge.bytes, self.edge.seconds = 20_000_000, 2.0
        self.decoder.pool.allocate(5)


STATUS: dict[str, Any] = {
    "model": "tiny",
    "settled": False,
    "restarts": 1,
    "prefill_wanted": 1,
    "decode_wanted": 1,
    "prefill_utilization": 0.95,
    "decode_utilization": 0.25,
    "workers": [
        {"worker": "decode-0", "state": "ready", "detail": "", "stats": {"role": "decode"}},
        {"worker": "prefill-0", "state": "starting", "detail": "lost", "stats": {"role": ""}},
    ],
}


@pytest.fixture
def frame() -> Frame:
    told = Told()
    before = told.scrape(10.0)
    told.serve()
    return make_frame(STATUS, Interval(before, told.scrape(20.0)))


def test_a_frame_tells_of_the_pools_and_what_they_serve(frame: Frame) -> None:
    assert frame["pools"]["prefill"] == {"wanted": 1, "ready": 0, "utilization": 0.95}
    assert frame["pools"]["imbalance"] == pytest.approx(0.7)
    serving = frame["serving"]
    assert (serving["requests_per_s"], serving["goodput_per_s"]) == (0.2, 0.1)
    assert serving["attainment"] == 0.5
    assert (serving["waiting"], serving["streaming"]) == (1, 2)
    assert serving["cached"] == 0.8
    assert frame["latency"]["ttft"]["p50_s"] == pytest.approx(0.375)
    assert frame["phases"]["decode"]["reserve"] == 0.25
    assert frame["phases"]["decode"]["queue"] is None


def test_a_frame_tells_of_workers_edges_router_and_tenants(frame: Frame) -> None:
    decode, prefill = frame["workers"]
    assert (decode["busy"], decode["kv_used"], decode["orphan_blocks"]) == (0.2, 0.5, 5)
    assert decode["mfu"] == pytest.approx((2 * 5 * 1000 + 4 * 15 * 8) / 10 / 1e4)
    assert (prefill["mfu"], prefill["kv_used"]) == (None, None)
    (edge,) = frame["edges"]
    assert (edge["from"], edge["to"], edge["slow"]) == ("prefill-0/0", "decode-0/0", True)
    assert (edge["bytes_per_s"], edge["copying_bytes_per_s"]) == (2e6, 1e7)
    assert frame["router"]["prefill_overlap"] == 0.25
    assert frame["router"]["ttft_actual_over_predicted"] == 1.75
    tenants = {told["tenant"]: told["attainment"] for told in frame["tenants"]}
    assert tenants == {"default": None, "a": 1.0, "b": 0.0}


def test_the_pools_cost_is_shared_by_what_tenants_took(frame: Frame) -> None:
    """Computed tokens: 4 of each; generated ones: 30 and 10."""
    costs = {told["tenant"]: told["cost_per_hour"] for told in frame["tenants"]}
    assert costs == {"default": 0.0, "a": 1.5 + 5.0 * 3 / 4, "b": 1.5 + 5.0 / 4}


def drawn(frame: Frame, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(draw(frame))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_it_fits_into_a_narrow_terminal(frame: Frame) -> None:
    """Of two digits more than usual, and with a worker that says why it is not ready."""
    frame["workers"][0] |= {"running": 128, "max_sequences": 256, "decode_tokens_per_s": 12345}
    frame["serving"] |= {"prompt_tokens_per_s": 123456, "generated_tokens_per_s": 12345}
    text = "\n".join(drawn(frame, 80))
    assert "…" not in text
    assert {"decode-0", "128/256", "12345", "123456", "prefill-0"} <= set(text.split())


def test_it_is_drawn_for_people(frame: Frame) -> None:
    lines = drawn(frame, 160)
    assert lines[0] == "tiny  changing  (last 10 s)"
    assert lines[1] == "prefill 0/1 95% used  decode 1/1 25% used  imbalance 70%  restarts 1"
    cells = [line.split() for line in lines]
    assert ["prefill-0/0", "decode-0/0", "tcp", "(slow)", "2.0", "10.0", "0"] in cells
    assert ["b", "0.1", "0", "0.0", "0%", "2.0", "1.0", "2.75"] in cells
    assert [cell for line in cells if line[:1] == ["TTFT"] for cell in line][:7] == [
        "TTFT",
        "375",
        "ms",
        "475",
        "ms",
        "498",
        "ms",
    ]


def test_an_idle_cluster_is_drawn_too() -> None:
    told = Told()
    before = told.scrape(10.0)
    assert drawn(make_frame(STATUS, Interval(before, told.scrape(20.0))), 160)


def test_without_a_router_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    status = admin_pb2.ClusterStatus(model="tiny")
    monkeypatch.setattr("cluster.cli.watch.fetch_status", lambda address: status)
    with pytest.raises(Unavailable, match="name one with --router"):
        watch(Watched("127.0.0.1:1", None, 1.0), 1, Output.JSON)


def test_a_router_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    status = admin_pb2.ClusterStatus(model="tiny", http_address="127.0.0.1:2")
    monkeypatch.setattr("cluster.cli.watch.fetch_status", lambda address: status)
    with pytest.raises(Unavailable, match=r"no metrics from http://127\.0\.0\.1:1/metrics/cluster"):
        watch(Watched("127.0.0.1:3", "127.0.0.1:1", 1.0), 1, Output.JSON)
