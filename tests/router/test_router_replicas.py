"""Several routers with a real Redis between them, in this process, and fake workers behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from fake_worker import FakeRegistry, FakeWorker, sequence_output

from core.tenants import Tenant, TenantLimits
from crossdock.client import AsyncClient, RetryPolicy, ServerError
from crossdock.v1 import inference_pb2 as pb
from redis_server import RedisServer, needs_redis, redis_server
from router.access_rules import AccessRules
from router.placement import WorkerId
from router.server import RouterServer
from router.settings import RouterSettings

pytestmark = [needs_redis, pytest.mark.processes]

D0 = WorkerId("decode-0", 1)
PROMPT = list(range(2, 50))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a crowded machine Redis may not answer within the time that a request waits for it; what
    several routers decide together is tried without that."""
    monkeypatch.setattr("router.replication.redis_store.CALL_LIMIT_S", 5.0)


together = pytest.mark.usefixtures("patient")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


@dataclass
class Replica:
    """A router and a client of its own."""

    server: RouterServer
    client: AsyncClient

    @property
    def store(self) -> Any:
        return self.server.store_state

    @property
    def elsewhere(self) -> int:
        """Sequences that others have sent to the decode worker."""
        routing = self.server.dispatcher.routing
        return routing.loads.current(routing.number(D0)).waiting

    @property
    def here(self) -> int:
        return self.server.dispatcher.routing.in_flight()[D0].sequences

    def ask(self, **options: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(self.client.answer(token_ids=PROMPT, **options))


@dataclass
class Cluster:
    """Routers of one registry and one store."""

    registry: FakeRegistry
    worker: FakeWorker
    settings: dict[str, Any]
    replicas: list[Replica] = field(default_factory=list)

    async def add(self, *, shares: bool = True, **more: Any) -> Replica:
        server = RouterServer(RouterSettings(self.registry.address, **(self.settings | more)))
        grpc_address, _ = await server.start()
        client = AsyncClient(grpc_address, retries=RetryPolicy(max_tries=1))
        replica = Replica(server, client)
        self.replicas.append(replica)
        await until(lambda: server.dispatcher.pool.ready)
        if shares:
            await until(lambda: replica.store.is_shared)
        return replica

    async def end(self, replica: Replica) -> None:
        self.replicas.remove(replica)
        await replica.client.close()
        await replica.server.stop()


async def until(condition: Callable[[], bool]) -> None:
    """Pytest's timeout bounds it."""
    while not condition():  # noqa: ASYNC110 - a store has no event for "all others know"
        await asyncio.sleep(0.005)


async def all_know_each_other(*replicas: Replica) -> None:
    await until(lambda: all(r.store.peers == len(replicas) - 1 for r in replicas))


@pytest.fixture
async def cluster(redis: RedisServer, model_folder: Path) -> AsyncIterator[Cluster]:
    registry = await FakeRegistry().start()
    registry.secret = b"shared secret"
    worker = await FakeWorker("decode-0", "decode", num_blocks=256).start()
    await registry.list(worker.record())
    settings = {"model": model_folder, "max_model_len": 128, "drain_s": 0.1, "store": redis.url}
    cluster = Cluster(registry, worker, settings)
    yield cluster
    for replica in list(cluster.replicas):
        await cluster.end(replica)
    await worker.kill()
    await registry.stop()


def reason(error: ServerError) -> tuple[grpc.StatusCode, str | None]:
    return error.code, error.reason


def limited(**limits: Any) -> AccessRules:
    return AccessRules({"default": Tenant(limits=TenantLimits(**limits))})


async def finish(worker: FakeWorker, number: int) -> None:
    """The ``number``-th request that came to the worker."""
    opened = await worker.got("open", number)
    worker.step([sequence_output(opened.key, [9], "done", "stop")])


@together
async def test_an_id_that_runs_on_one_router_is_taken_on_all(cluster: Cluster) -> None:
    first, second = await cluster.add(), await cluster.add()
    running = first.ask(request_id="mine")
    await cluster.worker.got("open")
    with pytest.raises(ServerError) as caught:
        await second.ask(request_id="mine")
    assert reason(caught.value) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_TAKEN")
    await finish(cluster.worker, 1)
    assert (await running).text == "done"
    with pytest.raises(ServerError):
        await second.ask(request_id="mine"), "for a minute after it has ended"
    other = second.ask(request_id="other")
    await finish(cluster.worker, 2)
    assert (await other).text == "done"


async def test_what_one_router_has_sent_is_load_for_the_others(cluster: Cluster) -> None:
    first, second, third = [await cluster.add() for _ in range(3)]
    running = [first.ask(), first.ask(), second.ask()]
    await cluster.worker.got("open", 3)
    await until(lambda: (first.elsewhere, second.elsewhere, third.elsewhere) == (3, 3, 3))
    assert (first.here, second.here, third.here) == (2, 1, 0)
    for number in (1, 2, 3):
        await finish(cluster.worker, number)
    await asyncio.gather(*running)
    # What the fake worker tells of itself: one that runs, none that waits.
    await until(lambda: (first.elsewhere, second.elsewhere, third.elsewhere) == (0, 0, 0))


async def test_what_a_router_had_sent_is_forgotten_when_it_is_gone(cluster: Cluster) -> None:
    first, second = await cluster.add(), await cluster.add()
    running = first.ask()
    await cluster.worker.got("open")
    await until(lambda: second.elsewhere == 1)
    replication = first.server._replication
    assert replication is not None
    for task in replication._tasks:
        task.cancel()  # It says nothing any more, and no farewell either.
    await until(lambda: second.elsewhere == 0)
    assert second.store.peers == 0
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_a_request_is_aborted_by_way_of_any_router(
    cluster: Cluster, redis: RedisServer
) -> None:
    first, second = await cluster.add(), await cluster.add()
    running = first.ask(request_id="mine")
    await cluster.worker.got("open")
    await second.client.abort("mine")
    with pytest.raises(ServerError) as caught:
        await running
    assert caught.value.code is grpc.StatusCode.CANCELLED
    await cluster.worker.got("abort")
    await until(lambda: redis.ask("GET", _key(redis, "request:default:mine")) == "-")
    for unknown in ("mine", "other"):
        with pytest.raises(ServerError) as caught:
            await second.client.abort(unknown)
        assert caught.value.code is grpc.StatusCode.NOT_FOUND


async def test_tokens_are_relayed_by_way_of_any_router(cluster: Cluster) -> None:
    first, second = await cluster.add(), await cluster.add()
    running = first.ask(request_id="mine", by_ticket=True)
    opened = await cluster.worker.got("open")
    asked = pb.RelayTokensRequest(request_id="mine", attempt=opened.key.attempt, position=3)
    await second.client._stub.RelayTokens(asked)
    relay = await cluster.worker.got("relay")
    assert (relay.key, relay.position) == (opened.key, 3)
    asked.request_id = "other"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await second.client._stub.RelayTokens(asked)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    await finish(cluster.worker, 1)
    await running


@together
async def test_a_rate_holds_for_all_routers_together(cluster: Cluster) -> None:
    rules = limited(requests_per_second=2)
    replicas = [await cluster.add(access=rules) for _ in range(3)]
    calls = [replica.ask() for replica in replicas for _ in range(4)]
    for number in (1, 2):
        await finish(cluster.worker, number)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, ServerError)]
    assert len(answers) - len(refused) == 2
    assert {reason(error) for error in refused} == {
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "REQUESTS_PER_SECOND")
    }
    assert all(error.retry_after for error in refused)


@together
async def test_tokens_that_were_not_needed_are_given_back_for_all(cluster: Cluster) -> None:
    # Nearly all of it is for the first request: its prompt and an answer of the usual length.
    rules = limited(tokens_per_minute=130)
    first, second = await cluster.add(access=rules), await cluster.add(access=rules)
    running = first.ask(max_tokens=70)
    await cluster.worker.got("open")
    with pytest.raises(ServerError) as caught:
        await second.ask(max_tokens=20)
    assert caught.value.reason == "TOKENS_PER_MINUTE"
    await finish(cluster.worker, 1)
    await running
    calls = 1

    async def is_let_in() -> bool:
        nonlocal calls
        call = second.ask(max_tokens=5)
        opened = asyncio.create_task(cluster.worker.got("open", calls + 1))
        await asyncio.wait({call, opened}, return_when=asyncio.FIRST_COMPLETED)
        if not opened.done():
            opened.cancel()
            assert isinstance(call.exception(), ServerError)
            return False
        calls += 1
        await finish(cluster.worker, calls)
        await call
        return True

    while not await is_let_in():
        pass


@together
async def test_a_wiped_redis_refills_no_budget(cluster: Cluster, redis: RedisServer) -> None:
    rules = limited(tokens_per_minute=130)
    first, second = await cluster.add(access=rules), await cluster.add(access=rules)
    await all_know_each_other(first, second)
    running = first.ask(max_tokens=70)
    await cluster.worker.got("open")
    left = second.server.dispatcher.budgets_left
    await until(lambda: left("default").tokens < 100)
    redis.ask("FLUSHALL")
    with pytest.raises(ServerError) as caught:
        await second.ask(max_tokens=60)
    assert caught.value.reason == "TOKENS_PER_MINUTE"
    await finish(cluster.worker, 1)
    await running


@together
async def test_places_of_a_tenant_are_for_all_routers_together(cluster: Cluster) -> None:
    rules = limited(concurrent_sequences=2)
    replicas = [await cluster.add(access=rules) for _ in range(3)]
    calls = [replica.ask() for replica in replicas for _ in range(2)]
    for number in range(1, 7):
        await cluster.worker.got("open", number)
        # One ends for each that comes beyond the second: never more than two are there.
        if number >= 2:
            assert len(cluster.worker._of("open")) == number
            await finish(cluster.worker, number - 1)
    await finish(cluster.worker, 6)
    answers = await asyncio.gather(*calls)
    assert [answer.text for answer in answers] == ["done"] * 6


async def test_serving_goes_on_when_redis_hangs_and_all_is_shared_when_it_is_back(
    cluster: Cluster, redis: RedisServer
) -> None:
    rules = limited(requests_per_second=1000)
    first, second = await cluster.add(access=rules), await cluster.add(access=rules)
    await all_know_each_other(first, second)
    redis.stop()
    running = first.ask(request_id="mine")
    await cluster.worker.got("open")
    assert not first.store.is_shared
    assert "no answer" in first.store.why
    redis.go_on()
    await until(lambda: first.store.is_shared and second.store.is_shared)
    with pytest.raises(ServerError) as caught:
        await second.ask(request_id="mine")
    assert caught.value.reason == "REQUEST_ID_TAKEN", "the running one is told when it is back"
    await until(lambda: second.elsewhere == 1)
    await finish(cluster.worker, 1)
    assert (await running).text == "done"


async def test_a_slow_redis_holds_nobody_up(
    cluster: Cluster, redis: RedisServer, tmp_path: Path
) -> None:
    async with slowed(redis, tmp_path / "slow.sock", 0.2) as url:
        router = await cluster.add(shares=False, store=url)
        await until(lambda: "no answer within" in router.store.why)
        answers = [router.ask(request_id=str(number)) for number in range(3)]
        for number in range(3):
            await finish(cluster.worker, number + 1)
        assert [answer.text for answer in await asyncio.gather(*answers)] == ["done"] * 3
        assert not router.store.is_shared
        await cluster.end(router)


@asynccontextmanager
async def slowed(redis: RedisServer, socket: Path, delay_s: float) -> AsyncIterator[str]:
    """Its URL; what is said to it takes longer on its way."""
    tasks: set[asyncio.Task[None]] = set()

    async def carry(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wait_s: float
    ) -> None:
        while data := await reader.read(65536):
            await asyncio.sleep(wait_s)
            writer.write(data)
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(str(redis.socket))
        for way in (carry(reader, back, delay_s), carry(there, writer, 0.0)):
            tasks.add(asyncio.create_task(way))

    server = await asyncio.start_unix_server(connected, str(socket))
    async with server:
        yield f"unix://{socket}"
        for task in tasks:
            task.cancel()


async def test_each_router_has_its_part_of_a_limit_without_redis(
    cluster: Cluster, redis: RedisServer
) -> None:
    rules = limited(concurrent_sequences=4, requests_per_second=100)
    first, second = await cluster.add(access=rules), await cluster.add(access=rules)
    await all_know_each_other(first, second)
    redis.kill()
    await until(lambda: not first.store.is_shared and not second.store.is_shared)
    calls = [first.ask() for _ in range(3)]
    await cluster.worker.got("open", 2)
    await until(lambda: first.server.dispatcher.state.at_door == {"default": 1})
    await finish(cluster.worker, 1)
    await finish(cluster.worker, 2)
    await finish(cluster.worker, 3)
    assert [answer.text for answer in await asyncio.gather(*calls)] == ["done"] * 3


@together
async def test_what_is_shared_is_rebuilt_when_redis_starts_empty(
    cluster: Cluster, redis: RedisServer
) -> None:
    first, second = await cluster.add(), await cluster.add()
    running = first.ask(request_id="mine")
    await cluster.worker.got("open")
    await until(lambda: second.elsewhere == 1)
    redis.kill()
    await until(lambda: not first.store.is_shared and not second.store.is_shared)
    assert second.elsewhere == 0, "what nobody tells any more gets old"
    redis.start()
    await until(lambda: first.store.is_shared and second.store.is_shared)
    await until(lambda: second.elsewhere == 1)
    with pytest.raises(ServerError):
        await second.ask(request_id="mine")
    await until(lambda: "decode-0@1" in redis.ask("HKEYS", _key(redis, "workers")))
    await finish(cluster.worker, 1)
    await running


@together
async def test_a_wiped_redis_hurts_nobody(cluster: Cluster, redis: RedisServer) -> None:
    first, second = await cluster.add(), await cluster.add()
    running = first.ask()
    await cluster.worker.got("open")
    redis.ask("FLUSHALL")
    await until(lambda: bool(_key(redis, "news")))
    assert first.store.is_shared
    await until(lambda: second.elsewhere == 1)
    await finish(cluster.worker, 1)
    await running


def _key(redis: RedisServer, name: str) -> str:
    return redis.ask("--scan", "--pattern", f"*:{name}")


async def test_a_router_that_starts_without_a_controller_serves_by_leases(
    cluster: Cluster, redis: RedisServer
) -> None:
    first = await cluster.add()
    await until(lambda: bool(_key(redis, "workers")))
    await cluster.registry.stop()
    second = await cluster.add()
    answer = second.ask()
    await finish(cluster.worker, 1)
    assert (await answer).text == "done"
    salts = [replica.server._intake.salts.of("default") for replica in (first, second)]
    assert salts[0] == salts[1], "or neither would know what the other's prompts left in caches"


async def test_a_router_starts_and_serves_without_redis(
    cluster: Cluster, redis: RedisServer
) -> None:
    redis.kill()
    alone = await cluster.add(shares=False)
    answer = alone.ask(request_id="mine")
    await finish(cluster.worker, 1)
    assert (await answer).text == "done"
    assert not alone.store.is_shared
