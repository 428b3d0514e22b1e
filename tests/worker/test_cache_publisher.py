"""A worker's cache events: numbered, told to all routers, and again to those that missed some."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np

from core.block_pool import BlockPool
from crossdock.v1 import worker_pb2 as pb
from wire.cache_events import change_from_wire
from worker import router_streams
from worker.cache_publisher import CachePublisher
from worker.router_streams import RouterStreams

EPOCH = 5


def publish(pool: BlockPool, *values: int) -> None:
    """One prompt with these hashes, given back at once."""
    blocks = pool.allocate(len(values))
    assert blocks is not None
    tokens = np.array(values, dtype=np.int32)
    pool.publish(blocks, np.array(values, dtype=np.uint64), tokens, None)
    pool.release(blocks)


def missing(publisher: CachePublisher, epoch: int, sequence: int) -> list[pb.CacheEvents]:
    """For a router that comes while nothing is left to tell."""
    drained, events = publisher.catch_up(epoch, sequence)
    assert drained is None
    return events


def test_changes_carry_the_epoch_a_number_and_the_parents() -> None:
    pool = BlockPool(8, 1)
    publisher = CachePublisher(pool, EPOCH)
    publish(pool, 1, 2, 3)
    events = publisher.drain()
    assert events is not None
    assert (events.epoch, events.sequence, events.cleared) == (EPOCH, 1, False)
    assert [*change_from_wire(events).stored.chains()] == [(0, [1, 2, 3])]
    assert publisher.drain() is None
    assert publisher.sequence == 1


def test_a_block_below_an_earlier_one_names_it() -> None:
    pool = BlockPool(8, 1)
    publisher = CachePublisher(pool, EPOCH)
    publish(pool, 1, 2)
    publisher.drain()
    blocks = pool.match_prefix(np.array([1, 2], np.uint64), np.array([1, 2], np.int32))
    pool.acquire(blocks)
    new = pool.allocate(1)
    assert new is not None
    pool.publish(new, np.array([9], np.uint64), np.array([9], np.int32), parent=2)
    events = publisher.drain()
    assert events is not None
    assert [*change_from_wire(events).stored.chains()] == [(2, [9])]


def test_a_router_gets_what_it_missed_or_everything() -> None:
    pool = BlockPool(8, 1)
    publisher = CachePublisher(pool, EPOCH)
    for values in ((1, 2), (5,), (7,)):
        publish(pool, *values)
        publisher.drain()
    assert [e.sequence for e in missing(publisher, EPOCH, 1)] == [2, 3]
    assert missing(publisher, EPOCH, 3) == []
    # A number of another life, and one that this life has not reached.
    for epoch, sequence in ((EPOCH - 1, 2), (EPOCH, 4)):
        [everything] = missing(publisher, epoch, sequence)
        assert everything.cleared
        assert everything.sequence == 3
        assert set(change_from_wire(everything).stored.hashes.tolist()) == {1, 2, 5, 7}


def test_what_came_just_before_a_router_and_goes_just_after_is_told_as_gone() -> None:
    pool = BlockPool(2, 1)
    publisher = CachePublisher(pool, EPOCH)
    publish(pool, 1, 2)
    drained, [everything] = publisher.catch_up(EPOCH - 1, 7)
    assert drained is not None
    assert (drained.sequence, everything.sequence) == (1, 1)
    known = set(change_from_wire(everything).stored.hashes.tolist())
    publish(pool, 3, 4)
    events = publisher.drain()
    assert events is not None
    change = change_from_wire(events)
    known = known - set(change.removed.tolist()) | set(change.stored.hashes.tolist())
    assert known == set(pool.snapshot().tolist()) == {3, 4}


def test_evicted_blocks_are_told_as_removed() -> None:
    pool = BlockPool(2, 1)
    publisher = CachePublisher(pool, EPOCH)
    publish(pool, 1, 2)
    publisher.drain()
    publish(pool, 3)
    events = publisher.drain()
    assert events is not None
    change = change_from_wire(events)
    assert change.removed.tolist() == [2]
    assert change.stored.hashes.tolist() == [3]


def test_blocks_on_a_medium_that_nobody_computes_in_are_not_taken_in() -> None:
    stored = pb.BlocksStored(medium=2, hashes=b"\1" * 8, starts=b"\0" * 4, parents=b"\0" * 8)
    assert len(change_from_wire(pb.CacheEvents(sequence=1, stored=[stored]))) == 0


class Handler:
    """A worker of which only the cache is of interest."""

    def __init__(self) -> None:
        self.missed: list[int] = []

    def on_router_message(self, message: pb.RouterMessage) -> None: ...

    def on_router_lost(self, attempts: Any) -> None: ...

    def greet(self, attach: pb.Attach) -> Sequence[pb.WorkerMessage]:
        return [pb.WorkerMessage(welcome=pb.Welcome(epoch=EPOCH))]

    def missed_changes(self, after: int) -> Sequence[pb.CacheEvents]:
        self.missed.append(after)
        return [pb.CacheEvents(sequence=after + 1)]


async def asking(*messages: pb.RouterMessage) -> AsyncIterator[pb.RouterMessage]:
    yield pb.RouterMessage(attach=pb.Attach(router_id="r"))
    for message in messages:
        yield message
    yield pb.RouterMessage(cache_fallback=pb.CacheFallback(active=True))
    await asyncio.Event().wait()


async def test_a_router_that_asks_gets_what_it_missed() -> None:
    handler = Handler()
    streams = RouterStreams(handler)
    ask = pb.RouterMessage(cache_request=pb.CacheRequest(after_sequence=3))
    told = streams.attach(asking(ask))
    assert (await anext(told)).welcome.epoch == EPOCH
    assert (await anext(told)).cache.sequence == 4
    assert handler.missed == [3]
    assert streams.num_lacking_events == 1
    await told.aclose()
    assert streams.num_lacking_events == 0


async def test_a_slow_router_misses_events_and_hears_that_it_did(monkeypatch: Any) -> None:
    monkeypatch.setattr(router_streams, "_SLOW_AT", 2)
    streams = RouterStreams(Handler())
    stream = streams.attach(asking())
    await anext(stream)
    for sequence in range(1, 4):
        changed = pb.CacheEvents(epoch=EPOCH, sequence=sequence)
        streams.send_step(pb.Load(), sequence, changed)
    told = [(await anext(stream)).step for _ in range(3)]
    assert [step.cache.sequence for step in told] == [1, 2, 0]
    assert told[2].cache_sequence == 3
    await stream.aclose()


def test_a_worker_that_is_to_tell_nothing_keeps_nothing_either() -> None:
    pool = BlockPool(8, 1)
    publisher = CachePublisher(pool, EPOCH, enabled=False)
    publish(pool, 1, 2)
    assert publisher.drain() is None
    assert pool.drain_events()[0].tolist() == []
    assert publisher.catch_up(EPOCH, 0) == (None, [])
