"""Routers that share by a store which is late, away and emptied: nothing is lost, all is made good.

Routers with what they share (ids, budgets, places, loads, fair shares) are the production ones.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import pytest
from at_rest import expect_nothing_under_way
from cluster_world import World
from simulated_network import Faults
from simulated_routers import SimRouter
from virtual_loop import VirtualLoop

from amounts import seeds
from core.request import Role
from core.tenants import DoorLimits, Tenant, TenantLimits
from router.access_rules import AccessRules
from router.placement import Disaggregation
from router.replication.shared_load import BEAT_S
from router.routing.routing_rules import RoutingRules
from router.routing.worker_load import NOTHING_SENT

POOLS = {Role.PREFILL: 2, Role.DECODE: 3}
RULES = RoutingRules(Disaggregation.PREFER)
ACCESS = AccessRules(
    tenants={
        "small": Tenant("small", limits=TenantLimits(concurrent_sequences=6)),
        "rated": Tenant(
            "rated", limits=TenantLimits(requests_per_second=20, tokens_per_minute=60_000)
        ),
    },
    door=DoorLimits(max_waiting=120, prefill_backlog=48, decode_backlog=0),
)


@pytest.fixture(autouse=True)
def sharing_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five times a second instead of fifty, so that quiet seconds cost little."""
    monkeypatch.setattr("router.replication.replication.TELL_S", 0.2)


@pytest.fixture(autouse=True)
def no_defect_is_hidden(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def tell(story: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(story())


def ask_many(world: World, count: int, within_s: float) -> None:
    draw = world.random
    for _ in range(count):
        world.ask(
            [draw.randrange(1, 900) for _ in range(draw.randrange(1, 60))],
            draw.randrange(1, 16),
            n=draw.choice([1, 1, 2]),
            tenant=draw.choice(["default", "small", "rated"]),
            after_s=draw.random() * within_s,
        )


def expect_nothing_shared(world: World) -> None:
    """All routers know that nothing is under way anywhere, and agree on what was paid."""
    assert world.redis is not None
    routers = [router for router in world.routers.values() if router.is_alive]
    # What a dead one had is dropped when somebody asks again.
    for asked in world.redis.asked.values():
        assert not {router.name for router in routers} & set(asked)
    for router in routers:
        expect_nothing_under_way(router)
        assert router.replication is not None
        assert router.replication.state.peers == len(routers) - 1
        expected = router.dispatcher._admission._queue._expected
        assert all(abs(sum_) < 1e-6 for sum_ in expected.values()), expected
        for worker in world.workers.values():
            assert router.replication._load.elsewhere(worker.id) == NOTHING_SENT


@seeds(6)
def test_no_request_is_lost_or_answered_twice_whatever_the_store_does(seed: int) -> None:
    async def story() -> None:
        faults = Faults(late=0.1, trouble=0.1)
        world = World(
            seed, routers=3, pools=POOLS, rules=RULES, access=ACCESS, faults=faults, shares=True
        )
        redis = world.redis
        assert redis is not None
        ask_many(world, 60, within_s=8.0)
        for at, away, wiped in (
            (2.0, True, False),
            (3.5, False, seed % 2 == 0),
            (5.0, False, True),
        ):
            world.network.after(at, setattr, redis, "is_away", away)
            if wiped:
                world.network.after(at, redis.wipe)
        await asyncio.sleep(9.0)
        world.network.faults = Faults()
        await world.until_all_have_ended()
        await asyncio.sleep(20.0)
        expect_nothing_shared(world)
        outcomes = Counter(client.outcome for client in world.clients)
        assert outcomes["finished"] > 40, outcomes
        assert set(outcomes) <= {"finished", "cut", "left"}

    tell(story)


def is_shared(router: SimRouter) -> bool:
    return router.replication is not None and router.replication.state.is_shared


def test_an_id_is_given_to_one_request_of_all_that_come_at_once() -> None:
    async def story() -> None:
        world = World(1, routers=3, pools=POOLS, rules=RULES, shares=True)
        await asyncio.sleep(2.0)
        routers = list(world.routers.values())
        assert all(map(is_shared, routers))
        for number in range(10):
            for router in routers:
                client = world.ask([1, 2, 3, number], max_tokens=3)
                client.routers = lambda router=router: [router]
                client.request_id = f"same-{number}"
        await world.until_all_have_ended()
        assert Counter(c.outcome for c in world.clients) == {"finished": 10, "taken": 20}
        by_id = Counter(c.request_id for c in world.clients if c.outcome == "finished")
        assert set(by_id.values()) == {1}

    tell(story)


def test_a_store_that_was_emptied_soon_hears_of_the_ids_that_run() -> None:
    async def story() -> None:
        world = World(1, routers=2, pools=POOLS, rules=RULES, shares=True)
        assert world.redis is not None
        await asyncio.sleep(2.0)
        client = world.ask([1, 2, 3], max_tokens=240)
        client.request_id = "mine"
        await asyncio.sleep(0.2)
        [key] = world.redis.ids
        world.redis.wipe()
        await asyncio.sleep(1.5 * BEAT_S)
        assert not client.outcome
        assert world.redis.owner(key) in {router.name for router in world.routers.values()}
        await world.until_all_have_ended()

    tell(story)
