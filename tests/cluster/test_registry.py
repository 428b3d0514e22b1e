"""The registry over real gRPC on loopback: the full list at once and again on each change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from cluster.plan import Slot
from cluster.pool_messages import Member, MemberState
from cluster.registry import Registry
from crossdock.v1 import registry_pb2, registry_pb2_grpc


def member(name: str, epoch: int) -> Member:
    slot = Slot(name, 0, name)
    return Member(slot, MemberState.READY, 0.0, endpoint=f"127.0.0.1:{epoch}", epoch=epoch)


@pytest.fixture
async def registry() -> Registry:
    return Registry()


@pytest.fixture
async def stub(registry: Registry) -> AsyncIterator[registry_pb2_grpc.RegistryStub]:
    server = grpc.aio.server()
    registry_pb2_grpc.add_RegistryServicer_to_server(registry, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield registry_pb2_grpc.RegistryStub(channel)
    await server.stop(0)


def epochs(workers: registry_pb2.WorkerList) -> dict[str, int]:
    return {record.worker: record.epoch for record in workers.workers}


async def test_a_watcher_gets_the_list_at_once_even_if_it_is_empty(stub) -> None:
    assert epochs(await stub.Watch(registry_pb2.WatchRequest()).read()) == {}


async def test_a_record_says_who_where_and_which_life(registry: Registry, stub) -> None:
    registry.publish([member("prefill", 7)])
    [record] = (await stub.Watch(registry_pb2.WatchRequest()).read()).workers
    assert (record.worker, record.role) == ("prefill-0", "prefill")
    assert (record.endpoint, record.epoch, record.draining) == ("127.0.0.1:7", 7, False)


async def test_a_draining_worker_stays_listed_and_is_marked(registry: Registry, stub) -> None:
    draining = Member(Slot("decode", 0, "decode"), MemberState.DRAINING, 0.0)
    registry.publish([member("prefill", 7), draining])
    listed = (await stub.Watch(registry_pb2.WatchRequest()).read()).workers
    assert [(record.worker, record.draining) for record in listed] == [
        ("prefill-0", False),
        ("decode-0", True),
    ]


async def test_watchers_are_counted_while_they_watch(registry: Registry, stub) -> None:
    watch = stub.Watch(registry_pb2.WatchRequest())
    await watch.read()
    assert registry.num_watchers == 1
    watch.cancel()
    while registry.num_watchers:  # noqa: ASYNC110 - nobody waits for it but this test
        await asyncio.sleep(0)


async def test_every_watcher_hears_of_every_change(registry: Registry, stub) -> None:
    watches = [stub.Watch(registry_pb2.WatchRequest(router_id=name)) for name in "ab"]
    for watch in watches:
        await watch.read()
    registry.publish([member("prefill", 1), member("decode", 2)])
    for watch in watches:
        assert epochs(await watch.read()) == {"prefill-0": 1, "decode-0": 2}
    registry.publish([member("decode", 2)])
    for watch in watches:
        assert epochs(await watch.read()) == {"decode-0": 2}


async def test_reports_of_routers_are_kept_for_a_while(
    registry: Registry, stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for router, degraded in (("b", ""), ("a", "no answer"), ("b", "refused")):
        await stub.ReportRouter(registry_pb2.RouterReport(router_id=router, degraded=degraded))
    told = [(report.router_id, report.degraded) for report in registry.router_reports]
    assert told == [("a", "no answer"), ("b", "refused")]
    monkeypatch.setattr("cluster.registry.REPORT_KEPT_S", -1.0)
    assert registry.router_reports == []
