"""What the controller tells of the pools, and its own little HTTP door."""

from __future__ import annotations

import socket

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.admin import ClusterView
from cluster.metric_table import TABLE
from cluster.metrics import ControllerMetrics
from cluster.plan import Slot
from cluster.pool_messages import Member, MemberState
from cluster.wanted import Wanted
from core.errors import Unavailable
from core.shards import ONE_RANK
from wire.metrics_door import MetricsDoor

P0, D0 = Slot("prefill", 0, "prefill"), Slot("decode", 0, "decode")


def view(utilization: dict[str, float | None]) -> ClusterView:
    members = (
        Member(P0, MemberState.READY, 0.0),
        Member(D0, MemberState.DRAINING, 0.0),
    )
    shapes = {"prefill": ONE_RANK, "decode": ONE_RANK}
    wanted = Wanted(1, 2)
    return ClusterView("tiny", "", "", members, shapes, wanted, 3, False, utilization)


def told(text: bytes) -> dict[tuple[str, ...], float]:
    return {
        (sample.name.removeprefix("crossdock_"), *sample.labels.values()): sample.value
        for metric in text_string_to_metric_families(text.decode())
        for sample in metric.samples
    }


def test_what_is_wanted_there_used_and_paid() -> None:
    metrics = ControllerMetrics(lambda: view({"prefill": 0.75, "decode": 0.25}), {"prefill": 2.0})
    values = told(metrics.render())
    assert values["pool_wanted_workers", "decode"] == 2
    assert values["pool_members", "prefill", "ready"] == 1
    assert values["pool_members", "decode", "draining"] == 1
    assert values["pool_members", "decode", "ready"] == 0
    assert values["worker_restarts_total",] == 3
    assert values["cluster_settled",] == 0
    assert values["pool_utilization_ratio", "prefill"] == 0.75
    assert values["pool_ratio_imbalance",] == 0.5
    assert values["pool_hour_price", "prefill"] == 2.0
    assert ("pool_hour_price", "decode") not in values
    assert values["process_resident_memory_bytes", "controller"] > 0


def test_what_is_not_known_is_not_told() -> None:
    metrics = ControllerMetrics(lambda: view({"prefill": None, "decode": 0.25}), {})
    values = told(metrics.render())
    assert ("pool_ratio_imbalance",) not in values
    assert ("pool_utilization_ratio", "prefill") not in values
    families = {m.name for m in text_string_to_metric_families(metrics.render().decode())}
    assert families >= {spec.family for spec in TABLE}


async def hello() -> bytes:
    return b"hello\n"


async def test_a_door_takes_the_next_port_if_one_is_taken() -> None:
    doors = [MetricsDoor(hello), MetricsDoor(hello)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for door in doors:
        await door.start("127.0.0.1", port)
    assert doors[0].address == f"127.0.0.1:{port}"
    assert doors[1].address != doors[0].address
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://{doors[1].address}/metrics") as response,
    ):
        assert await response.text() == "hello\n"
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    for door in doors:
        await door.stop()


async def test_a_door_says_when_there_is_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wire.metrics_door._TRIED_PORTS", 1)
    first, second = MetricsDoor(hello), MetricsDoor(hello)
    await first.start("127.0.0.1", 0)
    with pytest.raises(Unavailable, match="no port for metrics is free"):
        await second.start("127.0.0.1", int(first.address.rpartition(":")[2]))
    await second.stop()
    await first.stop()
