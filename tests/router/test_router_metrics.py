"""What the router counts of requests, SLOs and its own decisions, and under which names."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import make_mocked_request
from fake_worker import FakeWorker
from prometheus_client.parser import text_string_to_metric_families

from core.lifecycle import State
from core.outputs import Load
from core.request import FinishReason, Role
from router.doors.cluster_metrics import ClusterMetricsDoor
from router.flow.messages import Finish
from router.metrics.metric_table import TABLE
from router.metrics.metrics import EndedRequest, Metrics, RouterState
from router.metrics.tenant_metrics import MAX_TENANTS
from router.metrics.vllm_names import ALIASES
from router.placement import Forecast, Placement, WorkerId, WorkerView
from router.slo import TPOT, TTFT, SloTargets, tpot_s
from router.store_state import StoreState

P, D = WorkerId("p0", 1), WorkerId("d0", 1)
TARGETS = SloTargets(ttft_s=1.0, tpot_s=0.05)
FORESEEN = Placement(D, P, Forecast(ttft_s=0.4, tpot_s=0.02, prefill_held=2, decode_held=1))


def finish(ttft_s: float = 0.5, total_s: float = 0.9, tokens: int = 11, index: int = 0) -> Finish:
    reason = FinishReason.LENGTH
    return Finish(reason, tokens, 16, 0.1, ttft_s, total_s, Placement(D, P), 1, index)


def ended(*finishes: Finish, tenant: str = "default", expected_cached: int = 0) -> EndedRequest:
    return EndedRequest(tenant, State.FINISHED, 20, expected_cached, finishes)


def read(text: bytes) -> dict[str, float]:
    """Values by name and labels, as ``name{label="value"}`` with labels in order."""
    values = {}
    for metric in text_string_to_metric_families(text.decode()):
        for sample in metric.samples:
            labels = ",".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items()))
            values[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return values


def rendered(metrics: Metrics, state: RouterState | None = None) -> dict[str, float]:
    return read(metrics.render(state or RouterState()))


# SLOs


def test_a_token_that_is_alone_has_no_tpot() -> None:
    assert tpot_s(finish(tokens=1)) is None
    assert tpot_s(finish(ttft_s=0.5, total_s=1.0, tokens=11)) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("finishes", "met"),
    [
        ([finish(1.0, 1.5)], {TTFT, TPOT}),
        ([finish(1.01, 1.5)], {TPOT}),
        ([finish(1.0, 1.6)], {TTFT}),
        ([finish(0.5, 5.0, tokens=1)], {TTFT, TPOT}),
        ([finish(2.0, 2.1), finish(0.5, 0.6, index=1)], {TTFT, TPOT}),
        ([finish(0.5, 0.6), finish(0.5, 1.6, index=1)], {TTFT}),
    ],
    ids=["both", "late", "slow", "one token", "its first answer counts", "one of two is slow"],
)
def test_which_slos_a_request_met(finishes: list[Finish], met: set[str]) -> None:
    assert TARGETS.met(finishes) == met


def test_goodput_counts_what_met_both_and_a_failure_meets_none() -> None:
    metrics = Metrics(slo=TARGETS)
    metrics.ended(ended(finish(0.5, 0.9)))
    metrics.ended(ended(finish(1.5, 1.9)))
    metrics.ended(EndedRequest("default", State.FAILED))
    metrics.ended(EndedRequest("default", State.CANCELLED))
    metrics.refused()
    values = rendered(metrics)
    whose = 'slo_class="default",tenant="default"'
    assert {
        "requests": values[f"crossdock_slo_requests_total{{{whose}}}"],
        "good": values[f"crossdock_goodput_requests_total{{{whose}}}"],
        "ttft": values[f'crossdock_slo_met_total{{slo="ttft",{whose}}}'],
        "tpot": values[f'crossdock_slo_met_total{{slo="tpot",{whose}}}'],
    } == {"requests": 3, "good": 1, "ttft": 1, "tpot": 2}


def test_tenants_beyond_the_bound_are_counted_together() -> None:
    metrics = Metrics()
    # The default one is counted from the start.
    for number in range(MAX_TENANTS - 1 + 3):
        metrics.generated(f"tenant-{number}", 2)
        metrics.ended(ended(finish(), tenant=f"tenant-{number}"))
    values = rendered(metrics)
    tokens = {name: v for name, v in values.items() if name.startswith("crossdock_generation")}
    assert len(tokens) == MAX_TENANTS + 1
    assert values['crossdock_generation_tokens_total{tenant="other"}'] == 6
    assert values['crossdock_prompt_tokens_total{tenant="other"}'] == 60


# Decisions


def test_what_was_predicted_is_held_against_what_came() -> None:
    metrics = Metrics()
    metrics.placed(FORESEEN, blocks=5, seconds=0.0001)
    metrics.first_output(0.7, 0.6, FORESEEN)
    metrics.ended(ended(finish(), expected_cached=32))
    metrics.placed(Placement(D, None, Forecast(0.1, decode_held=3)), blocks=4, seconds=0.0001)
    metrics.placed(Placement(D, is_direct=True), blocks=0, seconds=0.0001)
    values = rendered(metrics)
    assert values["crossdock_router_ttft_actual_over_predicted_sum"] == pytest.approx(1.5)
    assert values["crossdock_router_predicted_ttft_seconds_sum"] == pytest.approx(0.4)
    assert values["crossdock_router_predicted_cached_tokens_total"] == 32
    assert values['crossdock_cached_tokens_total{tenant="default"}'] == 16
    assert values['crossdock_router_decisions_total{mode="handoff"}'] == 1
    assert values['crossdock_router_decisions_total{mode="local"}'] == 1
    assert values['crossdock_router_decisions_total{mode="direct"}'] == 1
    assert values["crossdock_router_prompt_blocks_total"] == 9
    assert values['crossdock_router_overlap_blocks_total{role="prefill"}'] == 2
    assert values['crossdock_router_overlap_blocks_total{role="decode"}'] == 4


def test_what_an_answer_took_is_held_against_its_prediction() -> None:
    metrics = Metrics()
    predicted = replace(finish(ttft_s=0.5, total_s=1.0, tokens=11), placement=FORESEEN)
    metrics.ended(ended(predicted))
    metrics.ended(ended(finish()))
    values = rendered(metrics)
    assert values["crossdock_router_predicted_tpot_seconds_sum"] == pytest.approx(0.02)
    assert values["crossdock_router_tpot_actual_over_predicted_sum"] == pytest.approx(2.5)
    assert values["crossdock_router_tpot_actual_over_predicted_count"] == 1


def test_a_placement_without_a_forecast_is_no_error_of_the_cost_model() -> None:
    metrics = Metrics()
    metrics.first_output(0.7, 0.6, Placement(D))
    assert rendered(metrics)["crossdock_router_ttft_actual_over_predicted_count"] == 0


def test_the_state_of_the_pools() -> None:
    views = [
        WorkerView(P, Role.PREFILL, 10, Load(0, 0, 0, 0)),
        WorkerView(D, Role.DECODE, 40, Load(0, 0, 30, 0)),
    ]
    metrics = Metrics()
    metrics.kv_event("d0")
    metrics.kv_event("gone")
    excluded = ("not attached", "draining", "its block size is 8, here it is 16")
    state = RouterState(views, excluded, ["d0", "p0"], 7, running=3, streaming=1)
    values = rendered(metrics, state)
    assert values["crossdock_kv_cache_usage_ratio"] == 0.25
    assert values['crossdock_excluded_workers{reason="differs"}'] == 1
    assert values["crossdock_requests_waiting"] == 2
    events = {name: v for name, v in values.items() if "kv_events" in name}
    assert events == {
        'crossdock_router_kv_events_total{worker="d0"}': 1,
        'crossdock_router_kv_events_total{worker="p0"}': 0,
    }


# Names


def test_vllm_names_tell_the_same_numbers() -> None:
    metrics = Metrics(vllm_model="tiny")
    metrics.generated("a", 3)
    metrics.generated("b", 4)
    metrics.first_output(0.7, 0.6, None)
    metrics.ended(ended(finish(), tenant="a"))
    metrics.ended(ended(finish(tokens=30), tenant="b"))
    values = rendered(metrics, RouterState(running=3, streaming=1))
    model = 'model_name="tiny"'
    whose = f'engine="0",{model}'
    success = f'vllm:request_success_total{{engine="0",finished_reason="length",{model}}}'
    bucket = f'vllm:time_to_first_token_seconds_bucket{{engine="0",le="0.75",{model}}}'
    assert values[f"vllm:generation_tokens_total{{{whose}}}"] == 7
    assert values[success] == 2
    assert values[f"vllm:num_requests_running{{{whose}}}"] == 1
    assert values[f"vllm:num_requests_waiting{{{whose}}}"] == 2
    assert values[f"vllm:time_to_first_token_seconds_sum{{{whose}}}"] == pytest.approx(0.7)
    assert values[bucket] == 1
    assert values[f"vllm:prefix_cache_queries_total{{{whose}}}"] == 40
    assert values[f"vllm:prefix_cache_hits_total{{{whose}}}"] == 32
    families = {name.partition("{")[0] for name in values if name.startswith("vllm:")}
    assert all(any(f.startswith(f"vllm:{alias.name}") for f in families) for alias in ALIASES)


# As vLLM 0.32 has them (vllm/v1/metrics/loggers.py): kind, and first and last edge.
SHORT, LONG, TOKENS = ("0.001", "2560.0"), ("0.3", "7680.0"), ("1.0", "50000.0")
VLLM: dict[str, tuple[str, tuple[str, ...]]] = {
    "num_requests_running": ("gauge", ()),
    "num_requests_waiting": ("gauge", ()),
    "kv_cache_usage_perc": ("gauge", ()),
    "cache_config_info": ("gauge", ()),
    "prefix_cache_queries": ("counter", ()),
    "prefix_cache_hits": ("counter", ()),
    "prompt_tokens": ("counter", ()),
    "prompt_tokens_cached": ("counter", ()),
    "generation_tokens": ("counter", ()),
    "request_success": ("counter", ()),
    "request_prompt_tokens": ("histogram", TOKENS),
    "request_generation_tokens": ("histogram", TOKENS),
    "request_max_num_generation_tokens": ("histogram", TOKENS),
    "request_prefill_kv_computed_tokens": ("histogram", TOKENS),
    "time_to_first_token_seconds": ("histogram", SHORT),
    "inter_token_latency_seconds": ("histogram", ("0.01", "80.0")),
    "request_time_per_output_token_seconds": ("histogram", ("0.01", "80.0")),
    "e2e_request_latency_seconds": ("histogram", LONG),
    "request_queue_time_seconds": ("histogram", LONG),
    "request_inference_time_seconds": ("histogram", LONG),
    "request_prefill_time_seconds": ("histogram", LONG),
    "request_decode_time_seconds": ("histogram", LONG),
}
# Told for dashboards that were made for it before.
OLDER_VLLM = {"gpu_cache_usage_perc", "time_per_output_token_seconds"}


def test_vllm_names_kinds_and_edges_are_those_of_vllm() -> None:
    assert {alias.name for alias in ALIASES} == VLLM.keys() | OLDER_VLLM
    metrics = Metrics(vllm_model="tiny")
    metrics.ended(ended(finish()))
    text = metrics.render(RouterState(block_size=16)).decode()
    found = {f.name: f for f in text_string_to_metric_families(text) if f.name.startswith("vllm:")}
    for name, (kind, edges) in VLLM.items():
        told = found[f"vllm:{name}"]
        assert told.type == kind, name
        assert set(edges) <= {s.labels.get("le") for s in told.samples}, name
        assert all({"model_name", "engine"} <= s.labels.keys() for s in told.samples), name
    reasons = {s.labels["finished_reason"] for s in found["vllm:request_success"].samples}
    assert reasons == {"stop", "length"}
    [info] = found["vllm:cache_config_info"].samples
    assert (info.labels["block_size"], info.labels["num_gpu_blocks"]) == ("16", "0")


def test_without_the_setting_there_are_no_such_names() -> None:
    assert not [name for name in rendered(Metrics()) if name.startswith("vllm:")]


def test_every_metric_of_the_table_is_there_and_no_other() -> None:
    metrics = Metrics()
    metrics.store_state = lambda: StoreState(True, "", 0, 0)
    families = {
        metric.name
        for metric in text_string_to_metric_families(metrics.render(RouterState()).decode())
        if metric.name.startswith("crossdock_")
    }
    assert families == {spec.family for spec in TABLE if spec.name != "scrape_success"}


# Through the router


async def fetch(http: aiohttp.ClientSession, url: str) -> str:
    async with http.get(url) as response:
        assert response.status == 200
        return await response.text()


TOLD = """# HELP crossdock_x_total Some
# TYPE crossdock_x_total counter
crossdock_x_total{{worker="{}"}} 1.0
"""


async def test_all_processes_are_scraped_through_one_router(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    cluster = await start_cluster(
        FakeWorker("p0", "prefill", metrics=TOLD.format("p0").encode()),
        FakeWorker("d0", "decode"),
    )
    cluster.registry.metrics = TOLD.format("controller").encode()
    values = read((await fetch(http, f"{cluster.url}/metrics/cluster")).encode())
    assert values['crossdock_x_total{worker="p0"}'] == 1
    assert values['crossdock_x_total{worker="controller"}'] == 1
    assert values['crossdock_workers{role="decode"}'] == 1
    scraped = {name: v for name, v in values.items() if "scrape_success" in name}
    assert scraped == {
        'crossdock_scrape_success{process="p0"}': 1,
        'crossdock_scrape_success{process="d0"}': 0,
        'crossdock_scrape_success{process="controller"}': 1,
    }


async def test_prometheus_finds_every_process_by_the_router(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    cluster = await start_cluster(
        FakeWorker("p0", "prefill", metrics=b"told"), FakeWorker("d0", "decode")
    )
    cluster.registry.metrics_address = "127.0.0.1:9"
    await cluster.registry.list(*cluster.registry.records)
    await cluster.until(lambda c: bool(c.router._directory.metrics_address))
    async with http.get(f"{cluster.url}/metrics/targets") as response:
        targets = await response.json()
    router = cluster.url.removeprefix("http://")
    assert targets == [
        {"targets": [router], "labels": {"process": "router"}},
        {"targets": ["127.0.0.1:9"], "labels": {"process": "controller"}},
        {"targets": ["127.0.0.1:2"], "labels": {"process": "worker"}},
    ]
    cluster.registry.metrics_address = "0.0.0.0:9"
    await cluster.registry.list(*cluster.registry.records)
    await cluster.until(lambda c: c.router._directory.metrics_address == "0.0.0.0:9")
    async with http.get(f"{cluster.url}/metrics/targets") as response:
        assert (await response.json())[1]["targets"] == ["127.0.0.1:9"]


@pytest.mark.parametrize(
    ("registry", "metrics", "reached"),
    [
        ("127.0.0.1:5", "0.0.0.0:9", "router:9"),
        ("controller:5", "0.0.0.0:9", "controller:9"),
        ("controller:5", "10.0.0.7:9", "10.0.0.7:9"),
    ],
)
async def test_a_controller_on_all_addresses_is_where_its_registry_is(
    registry: str, metrics: str, reached: str
) -> None:
    directory: Any = SimpleNamespace(address=registry, metrics_address=metrics)
    nobody: Any = SimpleNamespace(pool=SimpleNamespace(attached_workers=list))
    door = ClusterMetricsDoor(nobody, Metrics(), directory)
    handlers: dict[str, Any] = {route.path: route.handler for route in door.routes()}
    asked = make_mocked_request("GET", "/metrics/targets", headers={"Host": "router:8000"})
    response = await handlers["/metrics/targets"](asked)
    assert json.loads(response.body)[1]["targets"] == [reached]
