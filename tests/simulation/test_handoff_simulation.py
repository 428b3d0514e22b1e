"""Production schedulers and handoff rules in seeded trouble: no wrong token, no leak."""

from __future__ import annotations

import random

import pytest
from handoff_world import BLOCK_SIZE, Faults, World

from amounts import seeds

SOME_DEPTHS = pytest.mark.parametrize("depth", [1, 2, 3])


def ask_many(world: World, count: int, *, longest: int = 60, max_tokens: int = 12) -> None:
    """Prompts that share prefixes, so that both sides hold some of them already."""
    shared = [world.random.randrange(1, 900) for _ in range(24)]
    for number in range(count):
        own = [world.random.randrange(1, 900) for _ in range(world.random.randrange(1, longest))]
        prefix = shared[: world.random.choice([0, 8, 16, 24])]
        n = world.random.choice([1, 1, 1, 2, 5])
        world.ask(f"r{number}", prefix + own, world.random.randrange(1, max_tokens + 1), n)


def test_one_prompt_goes_through_prefill_handoff_and_decode() -> None:
    world = World(seed=1)
    request = world.ask("one", list(range(1, 31)), max_tokens=5)
    world.run()
    world.validate()
    assert request.outcome == "length"
    decode = world.decodes["D0"].brain
    assert decode.counters.prefill_tokens_computed == 0
    assert decode.counters.decode_tokens == 4


@SOME_DEPTHS
def test_every_stage_of_a_pipeline_gets_a_step_of_its_own(depth: int) -> None:
    world = World(seed=1, depths=(depth, depth))
    for number in range(4):
        world.ask(f"long-{number}", [number * 60 + i for i in range(1, 51)], max_tokens=30)
    world.run()
    world.validate()
    assert {r.outcome for r in world.requests.values()} == {"length"}
    assert world.prefills["P0"].engine.most_under_way == depth
    assert world.decodes["D0"].engine.most_under_way == depth


def test_only_blocks_that_decode_lacks_are_shipped() -> None:
    world = World(seed=2)
    prompt = list(range(1, 31))
    world.ask("first", prompt, max_tokens=2)
    world.run()
    moved = world.bytes_moved
    assert moved == 8 * BLOCK_SIZE * 8
    world.ask("second", prompt, max_tokens=2)
    world.run()
    world.validate()
    # Seven full blocks are held by D; the last, partial one is private and shipped again.
    assert world.bytes_moved - moved == 1 * BLOCK_SIZE * 8


def test_a_prompt_whose_full_blocks_decode_holds_ships_nothing() -> None:
    world = World(seed=3)
    prompt = list(range(1, 33))
    world.ask("first", prompt, max_tokens=2)
    world.run()
    moved = world.bytes_moved
    request = world.ask("second", prompt, max_tokens=3)
    world.run()
    world.validate()
    assert world.bytes_moved == moved
    assert request.outcome == "length"


@SOME_DEPTHS
@seeds(10)
def test_long_answers_preempt_each_other_and_stay_right(seed: int, depth: int) -> None:
    world = World(seed, depths=(depth, depth), decode_blocks=24)
    for number in range(8):
        prompt = [number * 40 + i for i in range(1, 21)]
        world.ask(f"long-{number}", prompt, max_tokens=50)
    world.run()
    world.validate()
    assert {r.outcome for r in world.requests.values()} == {"length"}
    assert world.decodes["D0"].brain.counters.preemptions > 0


@SOME_DEPTHS
@seeds(6)
def test_colocated_workers_prefill_beside_decoding(seed: int, depth: int) -> None:
    world = World(seed, depths=(depth, depth), prefills=0, decodes=2, decode_blocks=30)
    ask_many(world, 12)
    world.run()
    world.validate()
    assert {r.outcome for r in world.requests.values()} == {"length"}


@SOME_DEPTHS
@seeds(4)
def test_a_long_prompt_that_many_pass_keeps_its_lease(seed: int, depth: int) -> None:
    world = World(seed, depths=(depth, depth), prefill_blocks=140, decode_blocks=140)
    long = world.ask("long", list(range(1, 301)), max_tokens=2)
    for number in range(60):
        prompt = [1000 + 20 * number + i for i in range(world.random.randrange(1, 13))]
        world.ask(f"short-{number}", prompt, max_tokens=2)
        for _ in range(40):
            world.step()
    world.run()
    world.validate()
    assert {r.outcome for r in world.requests.values()} == {"length"}
    assert long.attempt == 1, world.log


@SOME_DEPTHS
@seeds(20)
def test_doubled_and_damaged_messages_change_nothing(seed: int, depth: int) -> None:
    world = World(
        seed, depths=(depth, depth), prefills=2, decodes=2, faults=Faults(double=0.3, damage=0.15)
    )
    ask_many(world, 12)
    world.run()
    world.validate()
    assert {r.outcome for r in world.requests.values()} == {"length"}


@SOME_DEPTHS
@seeds(20)
def test_lost_messages_cost_time_and_nothing_else(seed: int, depth: int) -> None:
    world = World(
        seed, depths=(depth, depth), prefills=2, decodes=2, faults=Faults(lose=0.05, double=0.1)
    )
    ask_many(world, 12)
    world.run()
    world.validate()
    assert {r.outcome for r in world.requests.values()} == {"length"}


@SOME_DEPTHS
@seeds(20)
def test_killed_workers_cost_no_request_that_had_no_token(seed: int, depth: int) -> None:
    world = World(
        seed, depths=(depth, depth), prefills=2, decodes=2, faults=Faults(kill=0.004, double=0.1)
    )
    ask_many(world, 12)
    world.run()
    world.faults = Faults()
    world.run()
    world.validate()
    for request in world.requests.values():
        assert request.outcome == "length" or request.tokens


@seeds(60)
def test_everything_at_once_leaks_nothing(seed: int) -> None:
    faults = Faults(double=0.1, damage=0.05, kill=0.002, abort=0.004, pause=0.004)
    shape = random.Random(seed)
    world = World(
        seed,
        prefills=shape.choice([1, 2, 3]),
        decodes=shape.choice([1, 2, 3]),
        prefill_blocks=shape.choice([30, 80]),
        decode_blocks=shape.choice([30, 80]),
        depths=(shape.choice([1, 2, 3]), shape.choice([1, 2, 3])),
        faults=faults,
    )
    ask_many(world, 16)
    world.run()
    world.faults = Faults()
    world.run()
    world.validate()
    assert all(r.outcome for r in world.requests.values())


@SOME_DEPTHS
@seeds(15)
def test_cancelled_requests_never_touch_the_blocks_of_others(seed: int, depth: int) -> None:
    world = World(
        seed, depths=(depth, depth), decodes=1, decode_blocks=26, faults=Faults(abort=0.04)
    )
    for burst in range(6):
        ask_many_named(world, f"burst-{burst}", 8)
        world.run()
    world.validate()


def ask_many_named(world: World, name: str, count: int) -> None:
    for number in range(count):
        prompt = [world.random.randrange(1, 900) for _ in range(world.random.randrange(4, 40))]
        n = world.random.choice([1, 1, 2, 4])
        world.ask(f"{name}-{number}", prompt, max_tokens=30, n=n)
