"""What serving adds beside the engine: the router and the doors, and a worker's own event loop.

A real mixed worker, a real router, requests over HTTP. Covers: how long a request is on its way to
a worker and its token on the way back, and how much CPU the worker's process takes for each step
outside of its engine (gRPC), which on a core that both share makes steps longer. Starts neighbours
for ``cluster.profiling.neighbours``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import grpc

from cluster.addresses import LOOPBACK
from cluster.plan import Slot
from cluster.pool_messages import Member, MemberState
from cluster.profiling.child import Child
from cluster.profiling.http_client import SHORT_PROMPT, Client
from cluster.profiling.neighbours import NeighbourWork, measure_neighbours
from cluster.profiling.tasks import ServedTask
from cluster.registry import Registry
from cluster.router_process import RouterProcess
from cluster.worker_stats import ask_worker
from core.request import Role
from core.worker_settings import WorkerSettings
from crossdock.v1 import registry_pb2_grpc
from router.placement import Disaggregation
from router.routing.routing_rules import RoutingRules
from router.settings import RouterSettings

_WARM_UP = 3
_ASK_LIMIT_S = 10.0
_NAME = "profiled"
_SLOT = Slot("decode", 0, Role.MIXED.value)


@dataclass(frozen=True, slots=True)
class ServingTimes:
    """Seconds. ``way_s``: a request's whole way to the worker and back, without its step.
    By number of sequences, for each step: ``beside_step_s``: CPU outside of the engine;
    ``step_s``: from one token of an answer to the next, at the client.
    ``neighbours_s``: as of `measure_neighbours`; empty if there is no other worker."""

    way_s: float
    beside_step_s: dict[int, float]
    step_s: dict[int, float]
    neighbours_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServingPlan:
    """``runs`` requests one after the other; then for each of ``batches`` that many answers at
    once, of as many tokens as ``work`` says; then ``work``, if there are neighbours."""

    vocab_size: int
    runs: int
    batches: tuple[int, ...]
    work: NeighbourWork


def measure_serving(workers: Sequence[WorkerSettings], plan: ServingPlan) -> ServingTimes:
    """Of the first of ``workers``; the others are its neighbours. Raises ``Unavailable`` or
    ``InternalError`` if something does not start."""
    named = [replace(worker, worker=_SLOT.name, role=_SLOT.role) for worker in workers]
    with ExitStack() as started:
        children = [
            started.enter_context(
                Child("cluster.profiling.served_child", ServedTask(worker), worker.threads)
            )
            for worker in named
        ]
        # Not in a thread of the loop's, which could not be interrupted while the model is loaded.
        places = [child.hear() for child in children]
        return asyncio.run(_measure(children, places, named, plan))


async def _measure(
    children: Sequence[Child],
    places: Sequence[dict[str, Any]],
    workers: Sequence[WorkerSettings],
    plan: ServingPlan,
) -> ServingTimes:
    steps = plan.work.answer_tokens
    async with AsyncExitStack() as opened:
        measured, *others = [
            await opened.enter_async_context(_client(worker, place, plan))
            for worker, place in zip(workers, places, strict=True)
        ]
        taken = [await measured.first_token() for _ in range(_WARM_UP + plan.runs)][_WARM_UP:]
        way_s = median(taken) - await _step_time(places[0]["endpoint"], plan.runs)
        taken_of = {b: await _beside(children[0], measured, b, steps) for b in plan.batches}
        neighbours = await measure_neighbours(measured, others, plan.work) if others else {}
    beside_s = {batch: beside for batch, (beside, _) in taken_of.items()}
    step_s = {batch: step for batch, (_, step) in taken_of.items()}
    return ServingTimes(max(0.0, way_s), beside_s, step_s, neighbours)


@asynccontextmanager
async def _client(
    worker: WorkerSettings, place: dict[str, object], plan: ServingPlan
) -> AsyncIterator[Client]:
    """Of a router of its own, so that it is clear who answers."""
    longest = max(SHORT_PROMPT, plan.work.prompt_tokens) + plan.work.answer_tokens
    async with _routed(worker, place, longest) as url, aiohttp.ClientSession(url) as http:
        yield Client(http, _NAME, plan.vocab_size)


async def _beside(child: Child, client: Client, batch: int, steps: int) -> tuple[float, float]:
    """Of each step of ``batch`` answers: CPU seconds of all threads but the engine's, and seconds
    from token to token."""
    before = await _busy(child)
    step_s = await client.answers(batch, steps)
    return (await _busy(child) - before) / steps, step_s


async def _busy(child: Child) -> float:
    child.tell("busy?")
    said = await asyncio.to_thread(child.hear)
    return float(said["other_s"])


async def _step_time(endpoint: str, runs: int) -> float:
    """Median of what the worker's last steps took, which were those of single prompts."""
    stats = await ask_worker(endpoint, _ASK_LIMIT_S)
    intervals = list(stats.ranks[0].intervals)[-runs:]
    return float(median(step.end_s - step.start_s for step in intervals))


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
    router = await RouterProcess.start(_router_settings(worker, port, max_model_len))
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


def _router_settings(
    worker: WorkerSettings, registry_port: int, max_model_len: int
) -> RouterSettings:
    return RouterSettings(
        registry=f"{LOOPBACK}:{registry_port}",
        model=Path(worker.model_folder),
        served_model_name=_NAME,
        max_model_len=max_model_len,
        block_size=worker.block_size,
        rules=RoutingRules(Disaggregation.PREFER),
        drain_s=1.0,
    )
