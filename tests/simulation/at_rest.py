"""What must be left of a cluster when all requests have ended: nothing but caches."""

from __future__ import annotations

from cluster_world import World
from simulated_routers import SimRouter
from simulated_workers import NUM_BLOCKS, SimWorker


def expect_rest(world: World) -> None:
    for worker in world.workers.values():
        expect_only_caches(worker)
    for router in world.routers.values():
        expect_nothing_under_way(router)
        expect_true_knowledge(router, world)


def expect_only_caches(worker: SimWorker) -> None:
    assert worker.is_at_rest, worker.life
    worker.brain.validate()
    pool = worker.brain.pool
    assert (pool.num_leased, pool.num_quarantined, worker.brain.num_leases) == (0, 0, 0)
    assert pool.num_free + pool.num_cached == NUM_BLOCKS
    assert worker.brain.num_orphans == 0


def expect_nothing_under_way(router: SimRouter) -> None:
    dispatcher = router.dispatcher
    assert dispatcher.idle.is_set()
    assert not dispatcher._running
    door = dispatcher._admission
    assert (door.queued, door._in, door._waiting.waiting, door._held) == (0, 0, 0, {})
    assert not any(line.waiting for line in door._waiting_of.values())
    for account in door._accounts.values():
        assert (account.sequences, account.blocks) == (0, 0)
    for ledger in filter(None, dispatcher.routing.loads._ledgers):
        assert not ledger.sent
        assert not ledger.late
        sums = (ledger.tokens, ledger.blocks, ledger.sequences, ledger.late_tokens)
        assert sums == (0, 0, 0, 0)


def expect_true_knowledge(router: SimRouter, world: World) -> None:
    """Of who is there, how busy they are, and what they cache."""
    routing, pool = router.dispatcher.routing, router.dispatcher.pool
    alive = {worker.id: worker for worker in world.workers.values()}
    assert {view.worker for view in routing.views} == set(alive)
    assert pool.excluded() == {}
    assert not routing.caches._expected
    for view in routing.views:
        worker = alive[view.worker]
        assert view.load == worker.brain.load
        cached = worker.brain.pool.snapshot().tolist()
        index = routing.caches.index
        assert index.num_held(view.worker) == len(cached)
        assert all(index.holds(view.worker, block) for block in cached)
