"""Cache events over real streams: what a router asks for, and what it does without them."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from fake_worker import FakeWorker, cache_events

from crossdock.v1 import worker_pb2

SCRIPT = ((10, "hello"), (11, " world"))
PROMPT = list(range(2, 52))


def decode(name: str = "d0", **options: Any) -> FakeWorker:
    return FakeWorker(name, "decode", script=SCRIPT, **options)


def tell(worker: FakeWorker, sequence: int, *stored: int, **options: Any) -> None:
    events = cache_events(worker.epoch, sequence, stored, **options)
    worker.say(worker_pb2.WorkerMessage(cache=events))


def index_of(cluster: Any) -> Any:
    return cluster.router.dispatcher.routing.caches.index


async def answer(cluster: Any, prompt: list[int]) -> None:
    async for _ in cluster.client.generate(token_ids=prompt):
        pass


async def metric(cluster: Any, http: Any, name: str) -> str:
    async with http.get(f"{cluster.url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return next(line for line in lines if line.startswith(f"crossdock_{name}")).split()[-1]


async def test_missing_events_are_asked_for(start_cluster: Any, http: Any) -> None:
    worker = decode()
    cluster = await start_cluster(worker)
    tell(worker, 4, 9, parent=8)
    asked = await worker.got("cache_request")
    assert asked.after_sequence == 1
    for sequence, block, parent in ((2, 7, 0), (3, 8, 7), (4, 9, 8)):
        tell(worker, sequence, block, parent=parent)
    await cluster.until(lambda c: len(index_of(c)) == 3)
    assert await metric(cluster, http, "router_kv_event_gaps_total") == "1.0"
    assert await metric(cluster, http, "router_kv_cache_guessed") == "0.0"


async def test_a_lost_last_event_is_asked_for_when_a_later_step_tells_of_it(
    start_cluster: Any,
) -> None:
    worker = decode()
    await start_cluster(worker)
    worker.say(worker_pb2.WorkerMessage(step=worker_pb2.Step(cache_sequence=2)))
    assert (await worker.got("cache_request")).after_sequence == 1


async def test_after_a_broken_stream_only_news_are_wanted(start_cluster: Any) -> None:
    worker = decode(cached=[1, 2])
    cluster = await start_cluster(worker)
    tell(worker, 2, 3, parent=2)
    await cluster.until(lambda c: len(index_of(c)) == 3)
    odd = worker_pb2.BlocksStored(medium=worker_pb2.DEVICE, hashes=b"odd")
    worker.say(worker_pb2.WorkerMessage(cache=worker_pb2.CacheEvents(stored=[odd])))
    await cluster.until(lambda _: worker.attached == 2)
    first, second = worker.attaches
    assert (first.cache_epoch, first.cache_sequence) == (worker.epoch, 0)
    assert (second.cache_epoch, second.cache_sequence) == (worker.epoch, 2)
    # What was known stays known, and what the worker tells goes on from there.
    tell(worker, 3, 4, parent=3)
    await cluster.until(lambda c: len(index_of(c)) == 4)


async def test_a_worker_without_events_is_named_and_gets_prompts_by_what_it_was_sent(
    start_cluster: Any, http: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="router.workers.worker_news")
    workers = [FakeWorker(name, "prefill", tells_cache=False) for name in ("p0", "p1")]
    cluster = await start_cluster(*workers, decode())
    for worker in workers:
        assert (await worker.got("cache_fallback")).active
    assert "worker p0 tells nothing of its prefix cache" in caplog.text
    name = 'router_kv_cache_guessed{worker="p0"}'
    assert await metric(cluster, http, name) == "1.0"
    await answer(cluster, PROMPT)
    first = next(worker for worker in workers if worker._of("prefill"))
    for count in range(2, 6):
        await answer(cluster, [*PROMPT, 5])
        await first.got("prefill", count=count)


async def test_a_worker_that_falls_silent_is_found_out_and_heard_again(
    start_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.prefix_index.event_watch.SILENT_AFTER_S", 0.0)
    monkeypatch.setattr("router.prefix_index.event_watch.SILENT_AFTER_ANSWERS", 3)
    worker = decode()
    cluster = await start_cluster(worker)
    for number in range(3):
        await answer(cluster, [number + 2] * 20)
    assert (await worker.got("cache_fallback")).active
    assert len(index_of(cluster)) == 0
    tell(worker, 2, 7)
    assert (await worker.got("cache_request")).after_sequence == 0
    assert not (await worker.got("cache_fallback", count=2)).active
    tell(worker, 2, 7, cleared=True)
    await cluster.until(lambda c: len(index_of(c)) == 1)


async def test_siblings_of_a_burst_are_not_computed_one_by_one(start_cluster: Any) -> None:
    """Before any event: each prefill worker has their common beginning to compute once at most."""
    workers = [FakeWorker(name, "prefill") for name in ("p0", "p1")]
    cluster = await start_cluster(*workers, FakeWorker("d0", "decode"))
    calls = [asyncio.create_task(answer(cluster, [*PROMPT[:48], 3, n])) for n in range(3, 9)]
    await cluster.until(lambda _: sum(len(worker._of("prefill")) for worker in workers) == 6)
    loads = cluster.router.dispatcher.routing.loads
    assert loads.pending_prefill_tokens.sum() <= 2 * 50 + 4 * 2
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
