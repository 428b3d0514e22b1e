"""Three routers and 32 workers in seeded trouble: no request is lost, none has two answers.

The dispatchers, doors, flows, indexes, streams, schedulers and handoff rules are the production
ones; messages are lost, late and doubled, workers and routers die, hang and leave.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import pytest
from at_rest import expect_rest
from cluster_world import World
from simulated_network import Faults
from virtual_loop import VirtualLoop

from amounts import seeds
from core.errors import AlreadyExists
from core.request import Role
from core.tenants import DoorLimits, Tenant, TenantLimits
from router.access_rules import AccessRules
from router.placement import Disaggregation
from router.requests.answer_stream import AnswerEvent, Choice
from router.routing.policies.policy import PolicyName
from router.routing.routing_rules import RoutingRules

ROUTERS = 3
POOLS = (
    {Role.PREFILL: 20, Role.DECODE: 12},
    {Role.PREFILL: 4, Role.DECODE: 28},
    {Role.PREFILL: 12, Role.DECODE: 14, Role.MIXED: 6},
    {Role.MIXED: 32},
)
HEAVY = Faults(lose=0.05, double=0.1, late=0.1, damage=0.03, trouble=0.5)
ACCESS = AccessRules(
    tenants={
        "small": Tenant("small", limits=TenantLimits(concurrent_sequences=6)),
        "heavy": Tenant("heavy", weight=3.0),
    },
    door=DoorLimits(max_waiting=120, prefill_backlog=48, decode_backlog=0),
)


@pytest.fixture(autouse=True)
def no_defect_is_hidden(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Routers and workers catch what goes wrong in one request, and say so."""
    yield
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def tell(story: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(story())


def rules(
    disaggregation: Disaggregation = Disaggregation.PREFER,
    policy: PolicyName = PolicyName.KV_AWARE,
) -> RoutingRules:
    return RoutingRules(disaggregation, policy)


class Nobody:
    """Who gets no answer."""

    def choice(self, index: int) -> Choice:
        return Choice(self)

    def token(self, token_id: int, text: str) -> None:
        raise AssertionError

    def event(self, event: AnswerEvent) -> None:
        raise AssertionError


def ask_many(world: World, count: int, within_s: float) -> None:
    """Prompts with common beginnings, of several tenants; some have no patience."""
    draw = world.random
    shared = [draw.randrange(1, 900) for _ in range(24)]
    for _ in range(count):
        own = [draw.randrange(1, 900) for _ in range(draw.randrange(1, 60))]
        world.ask(
            shared[: draw.choice([0, 8, 16, 24])] + own,
            draw.randrange(1, 16),
            n=draw.choice([1, 1, 1, 2, 4]),
            tenant=draw.choice(["default", "small", "heavy"]),
            patience_s=draw.choice([None, None, None, 5.0]),
            after_s=draw.random() * within_s,
        )


@seeds(12)
def test_no_request_is_lost_or_answered_twice_whatever_dies(seed: int) -> None:
    shape = random.Random(seed)

    async def story() -> None:
        world = World(
            seed,
            routers=ROUTERS,
            pools=POOLS[seed % len(POOLS)],
            rules=rules(shape.choice([Disaggregation.PREFER, Disaggregation.AUTO])),
            access=ACCESS,
            faults=HEAVY,
        )
        ask_many(world, 120, within_s=8.0)
        await asyncio.sleep(10.0)
        world.network.faults = Faults()
        await world.until_all_have_ended()
        await world.come_to_rest()
        expect_rest(world)
        outcomes = Counter(client.outcome for client in world.clients)
        assert outcomes["finished"] > 60, outcomes
        assert set(outcomes) <= {"finished", "cut", "left", "expired"}

    tell(story)


@pytest.mark.thorough
def test_without_trouble_each_request_is_computed_once() -> None:
    async def story() -> None:
        world = World(1, routers=ROUTERS, pools=POOLS[0], rules=rules(), access=ACCESS)
        ask_many(world, 100, within_s=4.0)
        for client in world.clients:
            client.patience_s = None
        await world.until_all_have_ended()
        await world.come_to_rest()
        expect_rest(world)
        assert {client.outcome for client in world.clients} == {"finished"}
        decoded = sum(
            worker.brain.counters.decode_tokens
            for worker in world.workers.values()
            if worker.role is Role.DECODE
        )
        # P draws the first token of each answer.
        assert decoded == sum(c.params.n * (c.params.max_tokens - 1) for c in world.clients)

    tell(story)


@pytest.mark.thorough
def test_a_seed_has_one_story() -> None:
    journals = []

    async def story() -> None:
        pools = {Role.PREFILL: 3, Role.DECODE: 3}
        world = World(5, routers=ROUTERS, pools=pools, rules=rules(), faults=HEAVY)
        ask_many(world, 40, within_s=4.0)
        await world.until_all_have_ended()
        journals.append(world.network.journal)

    tell(story)
    tell(story)
    assert journals[0] == journals[1]
    assert len(journals[0]) > 40


def test_an_id_that_runs_is_refused_and_what_runs_goes_on() -> None:
    async def story() -> None:
        world = World(2, routers=1, pools={Role.MIXED: 2}, rules=rules())
        await asyncio.sleep(1.0)
        client = world.ask(list(range(1, 30)), max_tokens=12)
        await asyncio.sleep(0.05)
        assert client.call is not None
        assert not client.outcome
        with pytest.raises(AlreadyExists):
            client.call.router.start(client._prompt(), Nobody())
        await world.until_all_have_ended()
        assert client.outcome == "finished"

    tell(story)


@seeds(8)
def test_two_routers_with_the_same_id_answer_each_its_own(seed: int) -> None:
    """Nobody told one of the other's requests: all run at once on the same two workers."""

    async def story() -> None:
        pools = {Role.PREFILL: 1, Role.DECODE: 1}
        world = World(seed, routers=2, pools=pools, rules=rules(), faults=Faults(late=0.3))
        await asyncio.sleep(5.0)
        for number in range(10):
            for router in world.routers.values():
                prompt = [world.random.randrange(1, 900) for _ in range(20)]
                client = world.ask(prompt, max_tokens=8)
                client.routers = lambda router=router: [router]
                client.request_id = f"same-{number}"
        await world.until_all_have_ended()
        await world.come_to_rest()
        expect_rest(world)
        assert {client.outcome for client in world.clients} == {"finished"}

    tell(story)


@pytest.mark.thorough
def test_all_routers_die_and_everything_that_had_no_token_is_answered() -> None:
    async def story() -> None:
        world = World(3, routers=ROUTERS, pools=POOLS[2], rules=rules(), access=ACCESS)
        await asyncio.sleep(1.0)
        ask_many(world, 80, within_s=0.5)
        await asyncio.sleep(0.3)
        for name in list(world.routers):
            world.kill_router(name)
        await world.until_all_have_ended()
        await world.come_to_rest()
        expect_rest(world)
        for client in world.clients:
            assert client.outcome in ("finished", "expired") or client.answers

    tell(story)
