"""Tenants over both doors, over real sockets, with fake workers behind."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import grpc
import pytest
from fake_worker import FakeWorker

from core.api_keys import api_key_sha256, new_api_key
from core.tenants import DoorLimits, Tenant, TenantLimits
from crossdock.client import AsyncClient, NotFound, RetryPolicy, ServerError
from crossdock.v1 import worker_pb2
from router.access_rules import AccessRules

SCRIPT = ((10, "hello"), (11, " world"))
ALICE, BOB = new_api_key(), new_api_key()
KEYS = {api_key_sha256(ALICE): "alice", api_key_sha256(BOB): "bob"}


def rules(door: DoorLimits | None = None, **limits: float) -> AccessRules:
    """Alice's ``limits``; Bob has none."""
    alice = Tenant("alice", limits=TenantLimits(**limits))  # type: ignore[arg-type]
    return AccessRules({"alice": alice, "bob": Tenant("bob")}, KEYS, True, door or DoorLimits())


def client(cluster: Any, key: str | None) -> AsyncClient:
    return AsyncClient(cluster.grpc_address, api_key=key, retries=RetryPolicy(max_tries=1))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def complete(
    http: aiohttp.ClientSession, url: str, key: str | None, prompt: object = "hi"
) -> Any:
    headers = {} if key is None else bearer(key)
    body = {"prompt": prompt}
    async with http.post(f"{url}/v1/completions", json=body, headers=headers) as response:
        return response.status, response.headers, await response.json()


async def metrics(http: aiohttp.ClientSession, url: str) -> str:
    async with http.get(f"{url}/metrics") as response:
        return await response.text()


async def test_a_key_lets_in_and_a_wrong_one_does_not(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    cluster = await start_cluster(FakeWorker("d0", "decode", script=SCRIPT), access=rules())
    status, _, body = await complete(http, cluster.url, ALICE)
    assert (status, body["choices"][0]["text"]) == (200, "hello world")
    for key, reason in ((None, "API_KEY_MISSING"), ("wrong", "WRONG_API_KEY")):
        status, headers, body = await complete(http, cluster.url, key)
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        assert (body["error"]["type"], body["error"]["code"]) == ("authentication_error", reason)
        async with client(cluster, key) as stranger:
            for call in (stranger.answer("hi"), stranger.abort("x"), stranger.model_info()):
                with pytest.raises(ServerError) as caught:
                    await call
                assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
                assert caught.value.reason == reason
    async with client(cluster, BOB) as bob:
        assert (await bob.answer("hi")).text == "hello world"
        assert (await bob.model_info()).model == "tiny"


async def test_refused_requests_are_counted_as_their_tenants_and_of_their_class(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    later = Tenant("bob", priority=5)
    access = AccessRules({"alice": Tenant("alice"), "bob": later}, KEYS, needs_key=True)
    cluster = await start_cluster(FakeWorker("d0", "decode", script=SCRIPT), access=access)
    url = f"{cluster.url}/v1/completions"
    bodies = (b"{no json", b"[]", b'{"prompt": "hi", "model": "x"}', b'{"prompt": "", "n": 1}')
    for body in bodies:
        headers = bearer(ALICE) | {"Content-Type": "application/json"}
        async with http.post(url, data=body, headers=headers) as response:
            assert 400 <= response.status < 500
    async with http.post(url, data=b"x", headers=bearer(ALICE)) as response:
        assert response.status == 415
    async with client(cluster, BOB) as bob:
        for sampling in ({"max_tokens": 0}, {"temperature": -1.0}):
            with pytest.raises(ServerError):
                await bob.answer("hi", **sampling)
        assert (await bob.answer("hi")).text == "hello world"
    assert (await complete(http, cluster.url, "wrong"))[0] == 401
    told = await metrics(http, cluster.url)
    refused = (("alice", "default", 5), ("bob", "priority-5", 2), ("default", "default", 1))
    for tenant, slo_class, count in refused:
        whose = f'outcome="refused",slo_class="{slo_class}",tenant="{tenant}"'
        assert f"crossdock_requests_total{{{whose}}} {count}.0" in told


async def test_a_call_of_more_prompts_than_a_second_allows_comes_when_the_budget_is_full(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    """And is paid off: else it would be told to come again for ever."""
    access = rules(requests_per_second=0.01)
    cluster = await start_cluster(FakeWorker("d0", "decode", script=SCRIPT), access=access)
    status, _, body = await complete(http, cluster.url, ALICE, ["a", "b", "c"])
    assert (status, len(body["choices"])) == (200, 3)
    status, headers, body = await complete(http, cluster.url, ALICE)
    assert (status, body["error"]["code"]) == (429, "REQUESTS_PER_SECOND")
    assert 290 <= int(headers["Retry-After"]) <= 300
    status, headers, _ = await complete(http, cluster.url, ALICE, ["a", "b", "c"])
    assert (status, int(headers["Retry-After"]) > 290) == (429, True)


async def test_everything_but_probes_and_metrics_needs_a_key(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    cluster = await start_cluster(FakeWorker("d0", "decode"), access=rules())
    for path in ("/health", "/ready", "/version", "/metrics", "/metrics/targets"):
        async with http.get(cluster.url + path) as response:
            assert response.status == 200, path
    for path in ("/v1/models", "/v1/models/tiny", "/tokenize", "/nothing", "//health", "/health/"):
        async with http.get(cluster.url + path) as response:
            assert response.status == 401, path
    async with http.get(f"{cluster.url}/v1/models", headers=bearer(BOB)) as response:
        assert response.status == 200


async def test_metrics_need_a_token_where_there_is_one(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    token = new_api_key()
    worker, hashes = FakeWorker("d0", "decode"), (api_key_sha256(token),)
    cluster = await start_cluster(worker, access=rules(), metrics_tokens=hashes)
    for path in ("/metrics", "/metrics/cluster", "/metrics/targets"):
        async with http.get(cluster.url + path) as response:
            body = await response.json()
            assert (response.status, body["error"]["code"]) == (401, "TOKEN_MISSING")
        async with http.get(cluster.url + path, headers=bearer(ALICE)) as response:
            body = await response.json()
            assert (response.status, body["error"]["code"]) == (401, "WRONG_TOKEN")
        async with http.get(cluster.url + path, headers=bearer(token)) as response:
            assert response.status == 200
    async with http.get(f"{cluster.url}/v1/models", headers=bearer(token)) as response:
        assert response.status == 401
    for path in ("/health", "/ready", "/version"):
        async with http.get(cluster.url + path) as response:
            assert response.status == 200


async def test_tenants_know_nothing_of_each_others_requests(start_cluster: Any) -> None:
    """The same id, the same prompt: other requests, and blocks with other hashes."""
    cluster = await start_cluster(FakeWorker("d0", "decode"), access=rules())
    worker = cluster["d0"]
    async with client(cluster, ALICE) as alice, client(cluster, BOB) as bob:
        tokens = list(range(40))
        first = asyncio.create_task(alice.answer(token_ids=tokens, request_id="mine"))
        one = await worker.got("open", 1)
        with pytest.raises(NotFound):
            await bob.abort("mine")
        second = asyncio.create_task(bob.answer(token_ids=tokens, request_id="mine"))
        other = await worker.got("open", 2)
        assert (one.key.tenant, other.key.tenant) == ("alice", "bob")
        assert one.salt != other.salt
        await alice.abort("mine")
        with pytest.raises(ServerError):
            await first
        assert (await worker.got("abort")).key.tenant == "alice"
        worker.output(other.key, [9], "bob's", "stop")
        assert (await second).text == "bob's"


async def test_a_limit_is_told_with_the_time_to_come_again(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    worker = FakeWorker("d0", "decode", script=SCRIPT)
    cluster = await start_cluster(worker, access=rules(requests_per_second=0.01))
    assert (await complete(http, cluster.url, ALICE))[0] == 200
    status, headers, body = await complete(http, cluster.url, ALICE)
    assert (status, body["error"]["code"]) == (429, "REQUESTS_PER_SECOND")
    assert 90 <= int(headers["Retry-After"]) <= 100
    async with client(cluster, ALICE) as alice:
        with pytest.raises(ServerError) as caught:
            await alice.answer("hi")
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.retry_after == pytest.approx(100, abs=10)
    assert (await complete(http, cluster.url, ALICE, ["two", "prompts"]))[0] == 429
    assert (await complete(http, cluster.url, BOB))[0] == 200
    told = await metrics(http, cluster.url)
    turned_away = 'requests_turned_away_total{reason="requests_per_second",tenant="alice"} 3.0'
    assert f"crossdock_{turned_away}" in told
    refused = 'requests_total{outcome="refused",slo_class="default",tenant="alice"} 3.0'
    assert f"crossdock_{refused}" in told


async def test_what_waits_at_the_door_goes_in_by_turns(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    """A worker of one sequence: Bob's request passes what Alice has piled up."""
    door = DoorLimits(max_waiting=50, prefill_backlog=1000, decode_backlog=0)
    worker = FakeWorker("m0", "mixed", max_num_seqs=1)
    cluster = await start_cluster(worker, access=rules(door))
    dispatcher = cluster.router.dispatcher
    async with client(cluster, ALICE) as alice, client(cluster, BOB) as bob:
        flood = [asyncio.create_task(alice.answer("hi")) for _ in range(4)]
        await worker.got("open")
        await cluster.until(lambda _: dispatcher.state.at_door == {"alice": 3})
        late = asyncio.create_task(bob.answer("hi"))
        await cluster.until(lambda _: dispatcher.state.at_door == {"alice": 3, "bob": 1})
        assert 'crossdock_requests_at_door{tenant="alice"} 3.0' in await metrics(http, cluster.url)
        order = []
        for number in range(1, 6):
            opened = await worker.got("open", number)
            order.append(opened.key.tenant)
            load = worker_pb2.Load(free_blocks=worker.num_blocks)
            worker.say(worker_pb2.WorkerMessage(step=worker_pb2.Step(load=load)))
            worker.output(opened.key, [9], "x", "stop")
            worker.say(worker_pb2.WorkerMessage(step=worker_pb2.Step(load=load)))
        await asyncio.gather(*flood, late)
    assert order.index("bob") <= 2
    assert dispatcher.state.at_door == {}


async def test_room_that_a_failed_attempt_leaves_is_used_at_once(start_cluster: Any) -> None:
    """No step of the worker has to tell of it first."""
    door = DoorLimits(max_waiting=50, prefill_backlog=1000, decode_backlog=0)
    cluster = await start_cluster(FakeWorker("m0", "mixed", max_num_seqs=1), access=rules(door))
    worker, dispatcher = cluster["m0"], cluster.router.dispatcher
    async with client(cluster, ALICE) as alice, client(cluster, BOB) as bob:
        first = asyncio.create_task(alice.answer("hi"))
        failing = await worker.got("open")
        second = asyncio.create_task(bob.answer("hi"))
        await cluster.until(lambda _: dispatcher.state.at_door == {"bob": 1})
        worker.fail(failing.key, "NO_ROOM")
        opened = await worker.got("open", 2)
        assert opened.key.tenant == "bob"
        worker.output(opened.key, [9], "x", "stop")
        again = await worker.got("open", 3)
        assert (again.key.tenant, again.key.attempt) == ("alice", failing.key.attempt + 1)
        worker.output(again.key, [9], "x", "stop")
        await asyncio.gather(first, second)


async def test_what_waits_can_be_given_up(start_cluster: Any) -> None:
    """By its client, by its deadline, by the end of the router: no worker ever hears of it."""
    door = DoorLimits(max_waiting=50, prefill_backlog=1000, decode_backlog=0)
    cluster = await start_cluster(FakeWorker("m0", "mixed", max_num_seqs=1), access=rules(door))
    worker, dispatcher = cluster["m0"], cluster.router.dispatcher
    async with client(cluster, ALICE) as alice:
        running = asyncio.create_task(alice.answer("hi"))
        opened = await worker.got("open")
        queued = asyncio.create_task(alice.answer("hi", request_id="waits"))
        await cluster.until(lambda _: dispatcher.state.at_door == {"alice": 1})
        await alice.abort("waits")
        with pytest.raises(ServerError) as caught:
            await queued
        assert caught.value.code is grpc.StatusCode.CANCELLED
        with pytest.raises(ServerError) as caught:
            await alice.answer("hi", timeout=0.05)
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        await cluster.until(lambda _: dispatcher.state.at_door == {})
        worker.output(opened.key, [9], "x", "stop")
        assert (await running).text == "x"
    assert len(worker.received) == 1


async def test_a_client_may_step_back_but_not_forward(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    batch = AccessRules({"alice": Tenant("alice", priority=3)}, KEYS, True)
    cluster = await start_cluster(FakeWorker("d0", "decode", script=SCRIPT), access=batch)
    async with client(cluster, ALICE) as alice:
        assert (await alice.answer("hi", priority=5)).text == "hello world"
        for priority in (2, 10):
            with pytest.raises(ServerError) as caught:
                await alice.answer("hi", priority=priority)
            assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert 'slo_class="priority-5",tenant="alice"' in await metrics(http, cluster.url)
