"""What routers do with a real Redis: ids, budgets, places, leases, news."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from certificates import make_authority, make_worker

from core.request import RequestKey
from core.store_url import RedisPlace, redis_place
from core.tenants import Tenant, TenantLimits
from redis_server import RedisServer, needs_redis, redis_server
from router.admission.shared_tenants import NO_PLACES, Places, PlacesAsked
from router.admission.tenant_sums import BudgetsLeft
from router.placement import WorkerId
from router.replication.redis_store import CALL_LIMIT_S, Claim, ClaimResult, RedisStore
from router.replication.registry_mirror import LeaseChange
from router.replication.router_news import RouterNews
from router.replication.store_calls import StoreLost
from router.routing.worker_load import InFlight

pytestmark = needs_redis

KEY = RequestKey("alice", "first")
ALLOWED = ClaimResult(None, 0.0, 0.0)
# Of all budgets here.
FULL = BudgetsLeft(1, 60)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
async def store(redis: RedisServer) -> AsyncIterator[RedisStore]:
    redis.ask("FLUSHALL")
    store = new_store(redis.url)
    await store.probe()
    yield store
    await store.close()


def new_store(url: str, model: str = "tiny") -> RedisStore:
    place = redis_place(url)
    assert isinstance(place, RedisPlace)
    return RedisStore(place, model)


async def taken(store: RedisStore, router: str, key: RequestKey = KEY, kept_s: float = 60) -> bool:
    result = await store.claim(router, Claim(Tenant(key.tenant), [key], 1, 0, FULL), kept_s)
    return result.taken == key


async def waits(store: RedisStore, limits: TenantLimits, tokens: int = 0) -> tuple[float, float]:
    alice = Tenant("alice", limits=limits)
    left = BudgetsLeft(limits.requests_per_second or 0.0, limits.tokens_per_minute or 0.0)
    left = BudgetsLeft(max(1.0, left.requests), left.tokens)
    result = await store.claim("a", Claim(alice, [], 1, tokens, left), 60)
    return result.requests_wait_s, result.tokens_wait_s


async def test_an_id_is_for_one_router_and_one_tenant(store: RedisStore) -> None:
    assert not await taken(store, "a")
    assert await taken(store, "b")
    assert not await taken(store, "b", RequestKey("bob", "first"))


async def test_an_id_may_come_again_when_its_time_is_over(store: RedisStore) -> None:
    await store.keep("a", {KEY: True}, 60)
    assert await taken(store, "b")
    await store.keep("a", {KEY: False}, 0.01)
    while await taken(store, "b"):  # noqa: ASYNC110 - ids end without a word
        await asyncio.sleep(0.01)


async def test_of_several_at_once_each_gets_its_own_answer(store: RedisStore) -> None:
    keys = [RequestKey("alice", str(number % 3)) for number in range(6)]
    answers = await asyncio.gather(*(taken(store, "a", key) for key in keys))
    assert answers == [False] * 3 + [True] * 3


async def test_a_call_that_is_refused_takes_nothing(store: RedisStore) -> None:
    keys = [RequestKey("alice", str(number)) for number in range(3)]
    alice = Tenant("alice", limits=TenantLimits(tokens_per_minute=60))
    assert not await taken(store, "a", keys[2])
    refused = await store.claim("b", Claim(alice, keys, 3, 60, FULL), 60)
    assert refused.taken == keys[2]
    assert (await store.claim("b", Claim(alice, keys[:1], 2, 60, FULL), 60)).taken is None
    refused = await store.claim("b", Claim(alice, keys[1:2], 1, 60, FULL), 60)
    assert refused.tokens_wait_s > 50
    assert not await taken(store, "c", keys[1])
    assert await taken(store, "c", keys[0])


async def test_a_store_that_was_restarted_has_to_be_probed_first(store: RedisStore) -> None:
    await store._redis.script_flush()
    with pytest.raises(StoreLost, match="NoScript"):
        await taken(store, "a")
    await store.probe()
    assert not await taken(store, "a")


async def test_who_runs_a_request_is_known_while_it_runs(store: RedisStore) -> None:
    assert await store.owner(KEY) is None
    await taken(store, "a")
    assert await store.owner(KEY) == "a"
    await store.keep("a", {KEY: False}, 60)
    assert await store.owner(KEY) is None


async def test_of_two_models_none_meets_the_other(redis: RedisServer, store: RedisStore) -> None:
    other = new_store(redis.url, "other")
    assert not await taken(store, "a")
    assert not await taken(other, "b")
    await other.close()


async def test_a_second_s_worth_of_requests_may_come_at_once_from_all_routers(
    store: RedisStore,
) -> None:
    limits = TenantLimits(requests_per_second=0.5)
    assert await waits(store, limits) == (0, 0)
    wait, _ = await waits(store, limits)
    assert 1.5 < wait <= 2.0
    again, _ = await waits(store, limits)
    assert again <= wait, "who is refused pays nothing"


async def test_tokens_are_paid_off_and_given_back(store: RedisStore) -> None:
    limits = TenantLimits(tokens_per_minute=60)
    assert await waits(store, limits, 1000) == (0, 0), "what is larger than the bucket may come"
    _, wait = await waits(store, limits, 1)
    assert 930 < wait <= 941
    await store.give_back({"alice": 990, "nobody": 5})
    assert await waits(store, limits, 40) == (0, 0)


async def test_what_is_paid_off_for_long_is_not_forgotten_before(
    redis: RedisServer, store: RedisStore
) -> None:
    def kept_s() -> int:
        return int(redis.ask("TTL", redis.ask("KEYS", "*budget:alice")))

    limits = TenantLimits(tokens_per_minute=60)
    await waits(store, limits, 10)
    assert 590 < kept_s() <= 600
    await waits(store, limits, 50)
    await store.give_back({"alice": -1000})
    assert 1590 < kept_s() <= 1600
    _, wait = await waits(store, limits, 1)
    assert wait > 1000
    await store.give_back({"alice": 900})
    redis.ask("DEL", redis.ask("KEYS", "*budget:alice"))
    await waits(store, limits, 2000)
    assert 1990 < kept_s() <= 2000


async def test_a_budget_that_is_not_there_has_left_what_the_router_knows(
    redis: RedisServer, store: RedisStore
) -> None:
    alice = Tenant("alice", limits=TenantLimits(tokens_per_minute=60))
    for _ in range(2):
        redis.ask("FLUSHALL")
        refused = await store.claim("a", Claim(alice, [], 1, 20, BudgetsLeft(0, 10)), 60)
        assert refused.tokens_wait_s == 10.0
        assert (await store.claim("a", Claim(alice, [], 1, 10, BudgetsLeft(0, 10)), 60)) == ALLOWED
        refused = await store.claim("a", Claim(alice, [], 1, 60, BudgetsLeft(0, 60)), 60)
        assert 50 < refused.tokens_wait_s <= 60, "where there is one it alone counts"


async def test_what_one_budget_refuses_costs_nothing_of_the_other(store: RedisStore) -> None:
    limits = TenantLimits(requests_per_second=0.001, tokens_per_minute=600)
    assert await waits(store, limits, 100) == (0, 0)
    for _ in range(20):
        requests_wait, tokens_wait = await waits(store, limits, 100)
        assert requests_wait > 0
        assert tokens_wait == 0


def ask(has: int, wants: int, most: int = 2) -> PlacesAsked:
    return PlacesAsked("alice", Places(has, 10 * has), Places(wants, 10 * wants), Places(most, -1))


async def test_places_of_all_routers_together_are_limited(store: RedisStore) -> None:
    assert await store.places("a", ask(0, 1))
    assert await store.places("b", ask(0, 1))
    assert not await store.places("a", ask(1, 1))
    assert not await store.places("b", ask(0, 0)), "it gives its own back"
    assert await store.places("a", ask(1, 1))


async def test_who_waits_longest_for_a_place_gets_it(store: RedisStore) -> None:
    assert await store.places("a", ask(0, 1, most=1))
    assert not await store.places("b", ask(0, 1, most=1))
    assert not await store.places("a", ask(0, 1, most=1)), "b was first"
    assert await store.places("b", ask(0, 1, most=1))
    assert not await store.places("a", ask(0, 1, most=1))
    assert not await store.places("b", ask(0, 0, most=1))
    assert await store.places("a", ask(0, 1, most=1))


async def test_a_tenant_without_any_place_always_gets_one(store: RedisStore) -> None:
    big = PlacesAsked("alice", NO_PLACES, Places(1, 1000), Places(-1, 10))
    assert await store.places("a", big)
    assert not await store.places("b", big)


async def test_blocks_are_limited_as_sequences_are(store: RedisStore) -> None:
    def want(has: int, wants: int) -> PlacesAsked:
        return PlacesAsked("alice", Places(1, has), Places(1, wants), Places(-1, 100))

    assert await store.places("a", want(40, 20))
    assert not await store.places("b", want(30, 20))
    assert await store.places("b", want(30, 10))


async def test_leases_hold_what_was_written_byte_by_byte(store: RedisStore) -> None:
    record = bytes(range(256))
    await store.renew(LeaseChange(True, {"w@1": record, "v@2": b"v"}), b"\x00secret\xff")
    leased = await store.leased()
    assert sorted(leased.records) == sorted([record, b"v"])
    assert leased.secret == b"\x00secret\xff"
    await store.renew(LeaseChange(True, {"w@1": record}, ["v@2"]), b"")
    assert list((await store.leased()).records) == [record]


async def test_who_goes_by_leases_renews_them_and_changes_nothing(store: RedisStore) -> None:
    await store.renew(LeaseChange(True, {"w@1": b"draining"}), b"right")
    await store.renew(LeaseChange(False, {"w@1": b"ready", "v@1": b"new"}), b"wrong")
    leased = await store.leased()
    assert (sorted(leased.records), leased.secret) == ([b"draining", b"new"], b"right")


async def test_leases_end_by_themselves(
    redis: RedisServer, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.replication.redis_store.LEASE_S", 0.01)
    await store.renew(LeaseChange(True, {"w@1": b"w"}), b"")
    while (await store.leased()).records:  # noqa: ASYNC110 - so do leases
        await asyncio.sleep(0.005)
    await store.renew(LeaseChange(True), b"")
    assert redis.ask("--scan", "--pattern", "*workers") == "", "the next renewal drops them"


async def test_news_reach_everybody_in_order(redis: RedisServer, store: RedisStore) -> None:
    other = new_store(redis.url)
    news = [RouterNews("a", False, {WorkerId("w", 1): InFlight(n, 0, 0, 0)}) for n in range(1, 4)]
    await store.tell(news[0])
    assert await other.hear() == news[:1]
    waiting = asyncio.create_task(other.hear())
    await store.tell(news[1])
    assert await waiting == news[1:2]
    await store.tell(news[2])
    redis.ask("XADD", "{crossdock:tiny}:news", "*", "news", "nonsense")
    assert await other.hear() == news[2:], "nonsense is left out"
    assert await store.hear() == news, "who comes late hears what was said lately"
    await other.close()


async def test_a_store_that_does_not_answer_is_waited_for_once(
    redis: RedisServer, store: RedisStore
) -> None:
    await store.probe()
    loop = asyncio.get_running_loop()
    redis.stop()
    try:
        began = loop.time()
        with pytest.raises(StoreLost, match=r"no answer within 0\.05 s"):
            await taken(store, "a")
        assert loop.time() - began >= CALL_LIMIT_S
    finally:
        redis.go_on()
    await store.probe()


async def test_a_store_that_is_not_there_is_told_without_addresses(tmp_path: Path) -> None:
    store = new_store(f"unix://{tmp_path}/nothing.sock")
    with pytest.raises(StoreLost) as caught:
        await store.probe()
    assert str(tmp_path) not in str(caught.value)
    await store.close()


async def test_a_password_is_needed_where_there_is_one(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--requirepass", "secret") as server:
        stranger, friend = new_store(server.url), new_store(f"unix://:secret@{server.socket}")
        with pytest.raises(StoreLost, match="Authentication required"):
            await stranger.probe()
        await friend.probe()
        await stranger.close()
        await friend.close()


async def test_why_it_is_lost_is_told_without_keys(redis: RedisServer, store: RedisStore) -> None:
    assert not await taken(store, "a")
    request = redis.ask("KEYS", "*request:alice:first")
    redis.ask("SET", request.replace("request:alice:first", "budget:alice"), "not a hash")
    with pytest.raises(StoreLost) as caught:
        await waits(store, TenantLimits(tokens_per_minute=60), 1)
    assert "wrong kind of value" in str(caught.value)
    assert "alice" not in str(caught.value)


async def test_over_tls_both_sides_show_a_certificate(tmp_path: Path) -> None:
    make_authority(tmp_path)
    files = make_worker(tmp_path, "redis", tmp_path, "localhost")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ("--tls-port", str(port), "--bind", "127.0.0.1", "--tls-cert-file", files.cert)
    options += ("--tls-key-file", files.key, "--tls-ca-cert-file", files.ca)
    with redis_server(tmp_path, *options):
        own = f"ca={files.ca}&cert={files.cert}&key={files.key}"
        member = new_store(f"rediss://localhost:{port}?{own}")
        await member.probe()
        assert not await taken(member, "a")
        for url in (
            f"rediss://localhost:{port}?ca={files.ca}",
            f"rediss://127.0.0.1:{port}?{own}",
            f"rediss://localhost:{port}",
            f"redis://localhost:{port}",
        ):
            stranger = new_store(url)
            with pytest.raises(StoreLost):
                await stranger.probe()
            await stranger.close()
        await member.close()
