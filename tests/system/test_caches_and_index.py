"""A real worker under a real router: the index holds what the worker has cached, not more."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from cluster.plan import Slot
from cluster.pool_messages import Member, MemberState
from cluster.registry import Registry
from core.request import Role
from crossdock.client import AsyncClient
from crossdock.v1 import registry_pb2_grpc, worker_pb2, worker_pb2_grpc
from router.placement import WorkerId
from router.prefix_index.worker_caches import WorkerCaches
from router.server import RouterServer
from router.settings import RouterSettings

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

NUM_BLOCKS = 24
PROMPTS = [[5 + number % 3] * 40 + [number] * 60 for number in range(3, 15)]


@dataclass
class Served:
    router: RouterServer
    worker: WorkerId
    client: AsyncClient
    stub: worker_pb2_grpc.WorkerStub

    @property
    def caches(self) -> WorkerCaches:
        return self.router.dispatcher.routing.caches

    async def ask(self, prompt: list[int]) -> int:
        """The number of its tokens that were in the cache."""
        cached = 0
        async for response in self.client.generate(token_ids=prompt, max_tokens=4, ignore_eos=True):
            cached = max(cached, response.complete.cached_tokens)
        return cached

    async def stats(self) -> worker_pb2.WorkerStats:
        return await self.stub.GetStats(worker_pb2.GetStatsRequest(validate=True))

    async def until_told(self) -> worker_pb2.WorkerStats:
        """Waits until the router has the worker's last event; pytest's timeout bounds it."""
        while (stats := await self.stats()).cache_sequence != self.caches.sequence(self.worker):
            pass
        return stats


@asynccontextmanager
async def served(model: Path, **settings: Any) -> AsyncIterator[Served]:
    fields = {"worker": "mixed-0", "role": "mixed", "model_folder": str(model), **settings}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("piped_worker.py"))),
        json.dumps({"num_blocks": NUM_BLOCKS, **fields}),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    place = json.loads(await process.stdout.readline())
    registry, server = Registry(), grpc.aio.server()
    registry_pb2_grpc.add_RegistryServicer_to_server(registry, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    slot = Slot("decode", 0, Role.MIXED.value)
    registry.publish(
        [Member(slot, MemberState.READY, 0.0, place["endpoint"], place["epoch"], place["pid"])]
    )
    router = RouterServer(RouterSettings(f"127.0.0.1:{port}", model, max_model_len=256))
    address, _ = await router.start()
    while not router.dispatcher.pool.ready:  # noqa: ASYNC110 - the router has no event for it
        await asyncio.sleep(0.01)
    async with grpc.aio.insecure_channel(place["endpoint"]) as channel:
        stub = worker_pb2_grpc.WorkerStub(channel)
        client = AsyncClient(address)
        yield Served(router, WorkerId("mixed-0", place["epoch"]), client, stub)
        await client.close()
    await router.stop()
    await server.stop(None)
    process.stdin.close()
    assert await process.wait() == 0


async def test_the_index_follows_a_cache_that_evicts(tiny_model: Path) -> None:
    async with served(tiny_model) as cluster:
        await asyncio.gather(*(cluster.ask(prompt) for prompt in PROMPTS))
        stats = await cluster.until_told()
        assert stats.routers_without_events == 0
        assert 0 < stats.cached_blocks == len(cluster.caches.index)
        # All but the last one have been evicted at least in part.
        assert await cluster.ask(PROMPTS[0]) < len(PROMPTS[0])
        assert await cluster.ask(PROMPTS[0]) == 96
        stats = await cluster.until_told()
        assert stats.cached_blocks == len(cluster.caches.index)


async def test_without_events_the_router_guesses_and_says_so(tiny_model: Path) -> None:
    async with served(tiny_model, cache_events=False) as cluster:
        while (await cluster.stats()).routers_without_events != 1:
            pass
        assert cluster.caches.is_guessed(cluster.worker)
        assert await cluster.ask(PROMPTS[0]) == 0
        assert len(cluster.caches.index) == 6
        assert await cluster.ask(PROMPTS[0]) == 96
        assert (await cluster.stats()).cache_sequence == 0
