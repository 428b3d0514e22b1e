"""Streams to workers that end while messages go both ways leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from fake_worker import FakeWorker

from crossdock.client import AsyncClient
from crossdock.v1 import worker_pb2
from router.placement import WorkerId

M0 = WorkerId("m0", 1)


async def end_by_kill(cluster: Any, worker: FakeWorker) -> None:
    await worker.kill()


async def end_by_drain(cluster: Any, worker: FakeWorker) -> None:
    """The registry drops it first, then it closes its streams."""
    await cluster.registry.list()
    await worker.kill()


async def end_by_a_message_that_makes_no_sense(cluster: Any, worker: FakeWorker) -> None:
    """This stream ends, and a new one comes up."""
    odd = worker_pb2.BlocksStored(medium=worker_pb2.DEVICE, hashes=b"odd")
    worker.say(worker_pb2.WorkerMessage(cache=worker_pb2.CacheEvents(stored=[odd])))
    await cluster.until(lambda _: worker.attached == 2)


async def end_by_stopping_the_router(cluster: Any, worker: FakeWorker) -> None:
    cluster.router.dispatcher.cancel_all()
    await cluster.router.dispatcher.pool.close()


@pytest.mark.parametrize(
    "end",
    [end_by_kill, end_by_drain, end_by_a_message_that_makes_no_sense, end_by_stopping_the_router],
)
async def test_a_stream_that_ends_in_the_middle_of_traffic_leaves_nothing_behind(
    start_cluster: Any, end: Any
) -> None:
    seen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
    worker = FakeWorker("m0", "mixed")
    cluster = await start_cluster(worker)
    calls = [asyncio.create_task(collect(cluster.client)) for _ in range(8)]
    for number in range(1, 9):
        opened = await worker.got("open", number)
        for _ in range(50):
            worker.output(opened.key, [9], "a")
    await end(cluster, worker)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await cluster.until(lambda _: not link_tasks("link to m0") or end in STILL_LISTED)
    gc.collect()
    # What the collector finds is told by callbacks of the loop.
    await asyncio.sleep(0)
    assert [context for context in seen if not is_of_an_earlier_test(context)] == []
    assert not link_tasks("_consume_request_iterator")


def is_of_an_earlier_test(context: dict[str, Any]) -> bool:
    """gRPC has one poller in a process: on any loop it may find events of loops that are closed."""
    closed = "Event loop is closed" in str(context.get("exception"))
    return closed and "PollerCompletionQueue" in context["message"]


STILL_LISTED = (end_by_kill, end_by_a_message_that_makes_no_sense)


async def collect(client: AsyncClient) -> None:
    async for _ in client.generate("hello", max_tokens=60):
        pass


def link_tasks(part: str) -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if part in repr(task)]


async def test_what_is_said_in_one_turn_goes_in_one_message(start_cluster: Any) -> None:
    cluster = await start_cluster(worker := FakeWorker("m0", "mixed"))
    ids = [f"r{number}" for number in range(10)]
    for request_id in ids:
        key = worker_pb2.AttemptKey(request_id=request_id)
        cluster.router.dispatcher.pool.send(
            M0, worker_pb2.RouterMessage(abort=worker_pb2.Abort(key=key))
        )
    await worker.got("abort", len(ids))
    assert [message.abort.key.request_id for message in worker.received] == ids
    assert worker.written <= 2


async def test_large_messages_go_one_by_one(start_cluster: Any) -> None:
    cluster = await start_cluster(worker := FakeWorker("m0", "mixed"))
    ids = bytes(1024 * 1024)
    for _ in range(4):
        cluster.router.dispatcher.pool.send(
            M0, worker_pb2.RouterMessage(prefill=worker_pb2.Prefill(token_ids=ids))
        )
    await worker.got("prefill", 4)
    assert worker.written == 4
