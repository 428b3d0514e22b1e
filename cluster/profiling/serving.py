"""What serving adds beside the engine: the router and the doors, and a worker's own event loop.

A real mixed worker, a real router, requests over HTTP. Covers: how long a request is on its way to
a worker and its token on the way back, and how much CPU the worker's process takes for each step
outside of its engine (gRPC), which on a core that both share makes steps longer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import aiohttp
import grpc
import numpy as np

from cluster.addresses import LOOPBACK
from cluster.plan import Slot
from cluster.pool_messages import Member, MemberState
from cluster.profiling.child import Child
from cluster.profiling.tasks import ServedTask
from cluster.registry import Registry
from cluster.router_process import RouterOptions, RouterProcess
from cluster.worker_stats import ask_worker
from core.errors import Unavailable
from core.request import Role
from core.worker_settings import WorkerSettings
from crossdock.v1 import registry_pb2_grpc

_PROMPT_TOKENS = 16
_WARM_UP = 3
_ASK_LIMIT_S = 10.0
_NAME = "profiled"
_SLOT = Slot("decode", 0, Role.MIXED.value)


@dataclass(frozen=True, slots=True)
class ServingTimes:
    """Seconds. ``way_s``: a request's whole way to the worker and back, without its step.
    ``beside_step_s``: CPU outside of the engine for each step, by number of sequences."""

    way_s: float
    beside_step_s: dict[int, float]


def measure_serving(
    worker: WorkerSettings, vocab_size: int, batches: Sequence[int], runs: int, steps: int
) -> ServingTimes:
    """``runs`` requests one after the other; then for each batch that many answers at once, of
    ``steps`` tokens. Raises ``Unavailable`` or ``InternalError`` if something does not start."""
    worker = replace(worker, worker=_SLOT.name, role=_SLOT.role)
    with Child("cluster.profiling.served_child", ServedTask(worker), worker.threads) as child:
        # Not in a thread of the loop's, which could not be interrupted while the model is loaded.
        place = child.hear()
        measuring = _measure(child, place, worker, vocab_size, batches, runs, steps)
        return asyncio.run(measuring)


async def _measure(
    child: Child,
    place: dict[str, Any],
    worker: WorkerSettings,
    vocab_size: int,
    batches: Sequence[int],
    runs: int,
    steps: int,
) -> ServingTimes:
    longest = _PROMPT_TOKENS + steps
    async with _routed(worker, place, longest) as url, aiohttp.ClientSession(url) as http:
        client = _Client(http, vocab_size)
        taken = [await client.first_token() for _ in range(_WARM_UP + runs)][_WARM_UP:]
        way_s = median(taken) - await _step_time(place["endpoint"], runs)
        beside = {batch: await _beside(child, client, batch, steps) for batch in batches}
    return ServingTimes(max(0.0, way_s), beside)


class _Client:
    """Sends prompts of random token ids: no cache knows them."""

    def __init__(self, http: aiohttp.ClientSession, vocab_size: int) -> None:
        self._http = http
        self._random = np.random.default_rng()
        self._vocab_size = vocab_size

    async def first_token(self) -> float:
        """Seconds until the only token of an answer."""
        started = time.perf_counter()
        async with self._http.post("/v1/completions", json=self._body(1)) as response:
            await _require_ok(response)
            await response.content.readany()
            taken = time.perf_counter() - started
            await response.read()
        return taken

    async def answers(self, count: int, tokens: int) -> None:
        """So many answers at the same time, to their end."""
        await asyncio.gather(*(self._answer(tokens) for _ in range(count)))

    async def _answer(self, tokens: int) -> None:
        async with self._http.post("/v1/completions", json=self._body(tokens)) as response:
            await _require_ok(response)
            await response.read()

    def _body(self, tokens: int) -> dict[str, object]:
        prompt = self._random.integers(0, self._vocab_size, _PROMPT_TOKENS).tolist()
        settings = {"temperature": 0, "ignore_eos": True, "stream": True}
        return {"model": _NAME, "prompt": prompt, "max_tokens": tokens, **settings}


async def _beside(child: Child, client: _Client, batch: int, steps: int) -> float:
    """CPU seconds of all threads but the engine's, for each step of ``batch`` answers."""
    before = await _busy(child)
    await client.answers(batch, steps)
    return (await _busy(child) - before) / steps


async def _busy(child: Child) -> float:
    child.tell("busy?")
    said = await asyncio.to_thread(child.hear)
    return float(said["other_s"])


async def _step_time(endpoint: str, runs: int) -> float:
    """Median of what the worker's last steps took, which were those of single prompts."""
    stats = await ask_worker(endpoint, _ASK_LIMIT_S)
    intervals = list(stats.ranks[0].intervals)[-runs:]
    return float(median(step.end_s - step.start_s for step in intervals))


async def _require_ok(response: aiohttp.ClientResponse) -> None:
    if response.status != 200:
        text = await response.text()
        raise Unavailable(f"the router answers {response.status}: {text}", reason="ROUTER_FAILED")


@asynccontextmanager
async def _routed(
    worker: WorkerSettings, place: dict[str, object], max_model_len: int
) -> AsyncIterator[str]:
    """The URL of a router in front of the worker at ``place``."""
    registry = Registry()
    server = grpc.aio.server()
    registry_pb2_grpc.add_RegistryServicer_to_server(registry, server)
    port = server.add_insecure_port(f"{LOOPBACK}:0")
    await server.start()
    registry.publish([_member(place)])
    router = await RouterProcess.start(_router_options(worker, port, max_model_len))
    try:
        await router.wait_ready()
        yield f"http://{router.http_address}"
    finally:
        await router.stop()
        await server.stop(None)


def _member(place: dict[str, object]) -> Member:
    return Member(
        _SLOT,
        MemberState.READY,
        0.0,
        endpoint=str(place["endpoint"]),
        epoch=int(str(place["epoch"])),
        pid=int(str(place["pid"])),
    )


def _router_options(
    worker: WorkerSettings, registry_port: int, max_model_len: int
) -> RouterOptions:
    return RouterOptions(
        registry=f"{LOOPBACK}:{registry_port}",
        model_folder=worker.model_folder,
        served_model_name=_NAME,
        host=LOOPBACK,
        grpc_port=0,
        http_port=0,
        max_model_len=max_model_len,
        block_size=worker.block_size,
        disaggregation="auto",
        drain_s=1.0,
    )
