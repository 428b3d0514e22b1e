"""Routers agree in the end on what every worker caches, whatever happens to the messages."""

from __future__ import annotations

import pytest
from cache_world import NUM_BLOCKS, World

from amounts import seeds
from router.prefix_index.worker_caches import COMPLETE_AGAIN_S

ROUTERS, WORKERS = 3, 32


def heal(world: World) -> None:
    """From now on nothing is lost; the last questions are answered."""
    world.faults = 0.0
    world.run(1.0)
    world.resting = True
    world.run(3.0)


def expect_agreement(world: World) -> None:
    for worker in world.workers:
        truth = set(worker.pool.snapshot().tolist())
        for router in world.routers:
            assert router.held(worker) == truth, worker.id
    everything = {b for w in world.workers for b in w.pool.snapshot().tolist()}
    assert {len(router.caches.index) for router in world.routers} == {len(everything)}


@seeds(8)
def test_lost_late_and_doubled_events_and_restarts(seed: int) -> None:
    world = World(seed, ROUTERS, WORKERS, faults=0.2)
    for _ in range(12):
        world.run(world.random.random() * 0.4)
        worker = world.random.choice(world.workers)
        if world.random.random() < 0.5:
            worker.live()
            for router in world.routers:
                # Each hears of it in its own time; streams of the old life end before.
                world.after(world.random.random(), router.list, worker)
        else:
            router = world.random.choice(world.routers)
            if router in worker.routers:
                worker.routers.remove(router)
                world.after(world.random.random(), router.list, worker)
    world.run(1.5)
    heal(world)
    expect_agreement(world)


@pytest.mark.thorough
def test_a_router_that_was_away_for_long_gets_everything_at_once() -> None:
    world = World(1, routers=2, workers=1, faults=0.0)
    worker, router = world.workers[0], world.routers[0]
    world.run(1.0)
    worker.routers.remove(router)
    world.run(250.0)
    assert router.held(worker) != set(worker.pool.snapshot().tolist())
    router.attach(worker.name)
    heal(world)
    expect_agreement(world)


@pytest.mark.parametrize("max_blocks", [NUM_BLOCKS * 2, 40])
def test_an_index_that_is_too_small_never_claims_what_is_not_there(max_blocks: int) -> None:
    world = World(3, routers=1, workers=6, faults=0.1, max_blocks=max_blocks)
    router = world.routers[0]
    for _ in range(20):
        world.run(0.3)
        assert len(router.caches.index) <= max_blocks
    heal(world)
    assert router.caches.left_out
    for worker in world.workers:
        held = router.held(worker)
        assert held <= set(worker.pool.snapshot().tolist())
        # Nothing hangs in the air: with a block its beginning is there.
        assert all(block // 2 in held for block in held if block // 2 > 1)


def test_what_was_left_out_is_fetched_when_there_is_room() -> None:
    world = World(5, routers=1, workers=4, faults=0.0, max_blocks=NUM_BLOCKS * 2)
    router = world.routers[0]
    world.run(3.0)
    assert router.caches.left_out
    for worker in world.workers[1:]:
        router.caches.forget(worker.id)
    world.workers = world.workers[:1]
    world.run(COMPLETE_AGAIN_S)
    heal(world)
    expect_agreement(world)
