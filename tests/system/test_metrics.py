"""A real cluster under a little traffic: what its processes tell, and that nothing else is asked.

One prefill worker, one decode worker of two ranks, a tiny model, vLLM's names, a price, a store.
"""

from __future__ import annotations

import json
import socket
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from served_cluster import ServedCluster, served

from cluster.cli.main import main
from core.metric_spec import CERTIFICATE_EXPIRY
from promql_queries import alert_queries, dashboard_queries, selectors
from redis_server import needs_redis, redis_server
from router.metrics.vllm_names import ALIASES
from waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300), needs_redis]

# Their last blocks are partly filled: never cached, so always transferred.
PROMPTS = [list(range(5, 80)), list(range(3, 40))]
CONFIG: dict[str, Any] = {
    "metrics": {"vllm_names": True},
    "engine": {"peak": {"flops": 1e12, "memory_bandwidth": 1e10}},
    "pools": {"prefill": {"gpu_hour_price": 2.5}},
    "kv": {"num_blocks": 256},
    "router": {"disaggregation": "prefer"},
}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


@pytest.fixture(scope="module")
def worker_port() -> int:
    """One from which on some are free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(
    tiny_model: Path, worker_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedCluster]:
    folder = tmp_path_factory.mktemp("metrics")
    config = folder / "cluster.yaml"
    metrics = CONFIG["metrics"] | {"worker_port": worker_port}
    options = ("--config", str(config), "--decode-tp", "2")
    with redis_server(folder) as redis:
        config.write_text(yaml.safe_dump(CONFIG | {"metrics": metrics, "store": redis.url}))
        with served(tiny_model, 1, 1, *options, cwd=folder) as cluster:
            cluster.answers(PROMPTS, 20)
            cluster.answers(PROMPTS, 20)
            yield cluster
            cluster.assert_nothing_is_held()


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as response:
        return str(response.read().decode())


class Scraped:
    """``names`` of samples that there are, or would be if it came to them; ``samples``."""

    def __init__(self, text: str) -> None:
        families = list(text_string_to_metric_families(text))
        self.names = {f"{f.name}{end}" for f in families for end in SUFFIXES[f.type]}
        self.samples = [sample for family in families for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """Sum over all samples with these labels."""
        wanted = labels.items()
        fitting = [s.value for s in self.samples if s.name == name and wanted <= s.labels.items()]
        assert fitting, f"no {name} with {labels}"
        return sum(fitting)


@pytest.fixture(scope="module")
def scraped(cluster: ServedCluster) -> Scraped:
    """When the controller knows how full the pools are; the test's timeout bounds it."""
    wait_until(lambda: cluster.status().HasField("prefill_utilization"))
    status = cluster.status()
    assert 0 <= status.decode_utilization <= 1
    return Scraped(fetch(f"{cluster.http_url}/metrics/cluster"))


def test_dashboards_and_alerts_ask_only_for_what_is_told(scraped: Scraped) -> None:
    asked = {
        selector.metric
        for query in (*dashboard_queries(), *alert_queries())
        for selector in selectors(query)
    }
    # Told where there are certificates: tests/system/test_tls_cluster.py.
    assert asked - scraped.names == {CERTIFICATE_EXPIRY.family}


def test_all_processes_tell_their_part(scraped: Scraped) -> None:
    value = scraped.value
    assert value("crossdock_requests_total", outcome="finished") == 4
    assert value("crossdock_slo_requests_total") == 4
    assert value("crossdock_generation_tokens_total") == 80
    assert value("crossdock_router_decisions_total", mode="handoff") == 4
    assert value("crossdock_router_ttft_actual_over_predicted_count") == 4
    for worker in ("prefill-0", "decode-0"):
        assert value("crossdock_router_kv_events_total", worker=worker) > 0
        assert value("crossdock_router_kv_event_gaps_total", worker=worker) == 0
        assert value("crossdock_router_kv_cache_guessed", worker=worker) == 0
    assert value("crossdock_router_index_blocks") > 0
    assert value("crossdock_router_index_left_out_blocks_total") == 0
    for phase in ("queue", "prefill", "reserve", "transfer", "commit"):
        count = "crossdock_request_phase_seconds_count"
        assert value(count, phase=phase, worker="prefill-0") == 4
        shared = phase in ("reserve", "transfer", "commit")
        assert value(count, phase=phase, worker="decode-0") == (4 if shared else 0)
    assert value("crossdock_edge_bytes_total", peer="prefill-0", worker="decode-0") > 0
    assert value("crossdock_orphan_blocks") == 0
    assert value("crossdock_rank_up") == 3
    assert value("crossdock_rank_resident_memory_bytes", worker="decode-0", rank="1") > 2**20
    steps = [value("crossdock_rank_steps_total", worker="decode-0", rank=rank) for rank in "01"]
    assert steps[0] == steps[1] > 0
    carried = [
        value("crossdock_edge_bytes_total", worker="decode-0", destination_rank=rank)
        for rank in "01"
    ]
    assert carried[0] == carried[1] > 0
    assert value("crossdock_pool_hour_price", pool="prefill") == 2.5
    assert value("crossdock_scrape_success") == 3


def test_steps_cost_what_the_model_computes(scraped: Scraped) -> None:
    value = scraped.value
    for worker, ranks in (("prefill-0", 1), ("decode-0", 2)):
        assert value("crossdock_engine_busy_seconds_total", worker=worker) > 0
        assert value("crossdock_peak_flops", worker=worker, source="declared") == ranks * 1e12
    prefill, decode = (
        value("crossdock_model_flops_total", worker=worker) for worker in ("prefill-0", "decode-0")
    )
    # Two FLOPs for each weight of the layers and token, at least.
    layers = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
    assert prefill > 2 * layers * value("crossdock_prefill_tokens_computed_total")
    assert decode > 2 * layers * value("crossdock_decode_tokens_total")
    assert value("crossdock_model_read_bytes_total", worker="decode-0") > 0


def test_vllm_names_are_told_as_well(cluster: ServedCluster) -> None:
    told = Scraped(fetch(f"{cluster.http_url}/metrics"))
    assert told.value("vllm:generation_tokens_total", model_name=cluster.status().model) == 80
    assert told.value("vllm:time_to_first_token_seconds_count", engine="0") == 4
    assert all(any(n.startswith(f"vllm:{a.name}") for n in told.names) for a in ALIASES)


def test_each_process_tells_it_where_the_router_says(cluster: ServedCluster) -> None:
    targets = json.loads(fetch(f"{cluster.http_url}/metrics/targets"))
    told = {}
    for target in targets:
        (address,) = target["targets"]
        told[address] = (target["labels"]["process"], Scraped(fetch(f"http://{address}/metrics")))
    assert sorted(process for process, _ in told.values()) == [
        *("controller", "router", "worker", "worker"),
    ]
    workers = [scrape for process, scrape in told.values() if process == "worker"]
    # By this the chart's pods are ready.
    for address, (process, _) in told.items():
        assert process != "worker" or json.loads(fetch(f"http://{address}/health"))
    assert sorted(s.samples[0].labels["worker"] for s in workers) == ["decode-0", "prefill-0"]
    stats = [worker.stats for worker in cluster.status().workers]
    assert {s.metrics_address for s in stats} <= told.keys()
    assert cluster.status().metrics_address in told


def test_a_rank_that_does_not_lead_tells_its_process_on_a_port_that_monitors_know(
    cluster: ServedCluster, worker_port: int
) -> None:
    [decode] = cluster.stats("decode")
    [pid] = [rank.pid for rank in decode.ranks if rank.rank == 1]
    connections = psutil.Process(pid).net_connections("tcp")
    listening = {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}
    port = min(listening & set(range(worker_port, worker_port + 64)))
    told = Scraped(fetch(f"http://127.0.0.1:{port}/metrics"))
    labels = {"worker": "decode-0", "role": "decode", "rank": "1"}
    assert told.value("process_resident_memory_bytes", **labels) > 2**20


def test_status_shows_it_live(
    cluster: ServedCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def watch(*options: str) -> str:
        words = ["crossdock", "status", "--watch", "--interval", "0.2", "--refreshes", "2"]
        monkeypatch.setattr(sys, "argv", [*words, "--address", cluster.admin_address, *options])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return capsys.readouterr().out

    frames: list[dict[str, Any]] = [
        json.loads(line) for line in watch("--output", "json").splitlines()
    ]
    assert len(frames) == 2
    assert [worker["worker"] for worker in frames[1]["workers"]] == ["prefill-0", "decode-0"]
    assert frames[1]["window_s"] > frames[0]["window_s"] > 0
    assert frames[1]["pools"]["prefill"]["ready"] == 1
    assert "prefill 1/1" in watch("--router", cluster.http_url.removeprefix("http://"))
