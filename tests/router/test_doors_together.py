"""Several doors that share what tenants have and pay: limits and shares are those of the cluster.

The doors are the production ones, without sockets; what they share goes through the news of
routers, and places through a real Redis.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from core.errors import CrossdockError
from core.request import RequestKey
from core.store_url import redis_place
from core.tenants import Tenant, TenantLimits
from redis_server import RedisServer, needs_redis, redis_server
from router.admission.admission import Admission
from router.admission.door import Door
from router.admission.messages import Arrived, Ended
from router.admission.shared_tenants import NO_PLACES, SharedTenants
from router.replication.redis_store import RedisStore
from router.replication.router_news import news_from_text, news_to_text
from router.replication.shared_load import SharedLoad


@dataclass
class SharedDoor:
    """One of several: its workers run ``slots`` requests of its own."""

    name: str
    slots: int = 100
    limits: TenantLimits = field(default_factory=TenantLimits)
    decode_blocks: int = 1000
    now: float = 0.0
    running: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tenants = SharedTenants(is_shared=True)
        self.load = SharedLoad(self.name)
        self.admission = Admission(self._tenant, self, 1000, 16, self.tenants)
        self.door = Door(self.admission, self._admit, self._refuse)

    def _tenant(self, name: str) -> Tenant:
        return Tenant(name, limits=self.limits)

    def has_room(self, prompt_tokens: int) -> bool:
        return len(self.running) < self.slots

    def _admit(self, key: RequestKey) -> None:
        self.running.append(key.request_id)

    def _refuse(self, key: RequestKey, error: CrossdockError) -> None:
        self.refused[key.request_id] = error.reason

    def arrive(self, name: str, *, answers: int = 1) -> None:
        event = Arrived(key(name), 0, 0.0, 10, answers, max_tokens=20)
        self.door.tell(event, self.now)

    def finish(self, name: str) -> None:
        self.running.remove(name)
        self.door.tell(Ended(key(name), 10, 20), self.now)

    def tell(self, *others: SharedDoor) -> None:
        """What it has to say to the others now."""
        self.now += 1.0
        news = self.load.news({}, self.tenants.paid, self.tenants.charged, self.now)
        assert news is not None
        for other in others:
            heard = other.load.take(news_from_text(news_to_text(news)), self.now)
            for share, paid in heard.paid.items():
                other.admission.paid_elsewhere(share, paid)
            for tenant, charged in heard.charged.items():
                other.admission.charged_elsewhere(tenant, charged, self.now)


def key(name: str) -> RequestKey:
    return RequestKey(name.rstrip("0123456789"), name)


def serve(door: SharedDoor, names: list[str]) -> None:
    for name in names:
        door.arrive(name)
        door.finish(name)


def order_of(door: SharedDoor) -> list[str]:
    """Tenants in the order in which they get their turn, after the one that runs."""
    order = []
    while door.running:
        [name] = door.running
        door.finish(name)
        order += [key(name).tenant for name in door.running]
    return order


def two_doors(**how: Any) -> tuple[SharedDoor, SharedDoor]:
    first, second = SharedDoor("first", **how), SharedDoor("second", **how)
    first.tell(second)
    second.tell(first)
    return first, second


def test_who_has_had_more_at_another_door_is_behind_at_this_one() -> None:
    first, second = two_doors(slots=1)
    second.arrive("quiet0")
    for name in ("loud0", "loud1", "quiet1", "quiet2"):
        second.arrive(name)
    serve(first, [f"loud{number}" for number in range(10, 14)])
    first.tell(second)
    assert order_of(second) == ["quiet", "quiet", "loud", "loud"]


def test_who_has_much_under_way_at_another_door_is_behind_at_this_one() -> None:
    """Nothing of it has ended yet."""
    first, second = two_doors()
    second.slots = 1
    second.arrive("quiet0")
    for name in ("loud0", "loud1", "quiet1", "quiet2"):
        second.arrive(name)
    for number in range(10, 14):
        first.arrive(f"loud{number}")
    first.tell(second)
    assert order_of(second) == ["quiet", "quiet", "loud", "loud"]


def test_without_the_other_s_news_it_would_be_first() -> None:
    _, second = two_doors(slots=1)
    second.arrive("quiet0")
    for name in ("loud0", "loud1", "quiet1", "quiet2"):
        second.arrive(name)
    assert order_of(second)[0] == "loud"


def test_what_was_had_while_nobody_else_wanted_it_is_no_debt() -> None:
    first, second = two_doors(slots=1)
    serve(first, [f"loud{number}" for number in range(20)])
    first.tell(second)
    second.arrive("third0")
    for name in ("quiet1", "quiet2", "loud0", "loud1"):
        second.arrive(name)
    order = order_of(second)
    assert sorted(order[:2]) == sorted(order[2:]) == ["loud", "quiet"]


def test_all_doors_know_what_is_left_of_a_tenant_s_budgets() -> None:
    """So a store that was emptied, and gets it from whichever asks first, fills no budget."""
    doors = first, second = two_doors(limits=TenantLimits(tokens_per_minute=60))

    def left() -> list[float]:
        first.tell(second)
        second.tell(first)
        return [door.admission.budgets_left("a", door.now).tokens for door in doors]

    assert left() == [60, 60]
    # Each of a prompt of 10 tokens and an expected answer of 20; a token a second comes again.
    first.arrive("a0")
    second.arrive("a1")
    assert left() == [1, 1]
    first.running.remove("a0")
    first.door.tell(Ended(key("a0"), 0, 5), first.now)
    assert left() == [1 + 25 + 1] * 2


def test_without_a_store_a_door_lets_its_part_in() -> None:
    door = SharedDoor("first", limits=TenantLimits(concurrent_sequences=6, requests_per_second=4))
    door.tenants.is_shared = False
    door.admission.allow(0.5, door.now)
    for number in range(4):
        door.arrive(f"a{number}")
    assert (len(door.running), door.refused) == (
        2,
        {f"a{n}": "REQUESTS_PER_SECOND" for n in (2, 3)},
    )
    door.now += 1.0
    door.arrive("a4")
    door.arrive("a5")
    assert (len(door.running), door.admission.queued) == (3, 1)
    door.admission.allow(1.0, door.now)
    door.door.room_changed(door.now)
    assert len(door.running) == 4


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


async def ask(door: SharedDoor, store: RedisStore, *, beat: bool = False) -> None:
    """What a router does every 20 ms."""
    for asked in door.tenants.places_asked(all_of_them=beat):
        if await store.places(door.name, asked) and asked.wants != NO_PLACES:
            door.tenants.granted(asked.tenant, asked.wants)
            door.door.room_changed(door.now)


@pytest.mark.thorough
@needs_redis
@pytest.mark.parametrize("seed", range(12))
async def test_never_more_than_the_limit_and_all_have_their_turn(
    redis: RedisServer, tmp_path: Path, seed: int
) -> None:
    """Three doors whose requests come, end and are told of in any order, and a Redis that may be
    emptied when nobody runs."""
    redis.ask("FLUSHALL")
    chance = Random(seed)
    most = chance.choice((1, 3, 5))
    limits = TenantLimits(concurrent_sequences=most, cache_share=chance.choice((None, 0.02)))
    place = redis_place(redis.url)
    assert place is not None
    store = RedisStore(place, "tiny")
    doors = [SharedDoor(name, limits=limits) for name in ("a", "b", "c")]
    left = [f"x{number}" for number in range(40)]
    served: list[str] = []
    while len(served) < 40:
        door = chance.choice(doors)
        what = chance.choice(("arrive", "finish", "ask", "ask", "beat"))
        if what == "arrive" and left:
            door.arrive(left.pop(), answers=chance.randint(1, min(2, most)))
        elif what == "finish" and door.running:
            served.append(chance.choice(door.running))
            door.finish(served[-1])
        else:
            await ask(door, store, beat=what == "beat")
        held = [door.tenants._tenants["x"].runs for door in doors if door.tenants._tenants]
        assert sum(places.sequences for places in held) <= most
        if limits.cache_share is not None and sum(places.sequences > 0 for places in held) > 1:
            assert sum(places.blocks for places in held) <= 20
    assert sorted(served) == sorted(f"x{number}" for number in range(40))
    for door in doors:
        await ask(door, store)
    assert redis.ask("--scan", "--pattern", "*places*") == "", "nobody has anything"
    await store.close()
