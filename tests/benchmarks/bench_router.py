"""What one router process costs: CPU for each request and streamed token, and what it adds to TTFT.

    PYTHONPATH=.:protos python tests/benchmarks/bench_router.py MODEL_FOLDER [--prefill 2]
        [--router-core 1 --load-core 0]

A real router with its own settings, before workers without an engine (`fake_fleet`) that speak the
real protocols in another process; prompts are token ids, so that nothing is tokenized. By HTTP and
by gRPC: answers of one token as fast as the clients ask; then long answers at given rates; then one
client at a time beside one that speaks to a worker without a router. CPU is that of the router's
process (user and system). Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import numpy as np
import psutil
import uvloop
from stream_load import (
    Client,
    DirectClient,
    GrpcClient,
    HttpClient,
    Prompts,
    Tally,
    run_while,
    split,
)

from cluster.router_process import RouterProcess
from router.placement import Disaggregation
from router.routing.policies.policy import PolicyName
from router.routing.routing_rules import RoutingRules
from router.settings import RouterSettings

WARM_UP_S = 1.5
LONG_ANSWER = 500
# Of the phases in which no rate is asked for.
SHORT_STEP_S = 0.002
# Of the phase in which one answer at a time is looked at.
TIMED_STEP_S, TIMED_ANSWER = 0.005, 8


@dataclass(frozen=True, slots=True)
class Fleet:
    process: asyncio.subprocess.Process
    registry: str
    workers: dict[str, str]

    async def set_step(self, seconds: float) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seconds}\n".encode())
        await self.process.stdin.drain()


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything that runs. ``clients``: at a time."""

    fleet: Fleet
    router: RouterProcess
    options: argparse.Namespace

    def clients(
        self, door: str, prompts: Prompts, count: int, tally: Tally, channel: grpc.aio.Channel
    ) -> list[Client]:
        if door == "http":
            address = self.router.http_address
            return [HttpClient(address, part, tally) for part in split(prompts.http(), count)]
        return [GrpcClient(channel, part, tally) for part in split(prompts.grpc(), count)]


@dataclass(slots=True)
class Window:
    """What happened in ``seconds``."""

    seconds: float
    cpu_s: float
    requests: int
    tokens: int


async def measure(stage: Stage, door: str, prompts: Prompts, clients: int) -> Window:
    """So many clients, each always asking, after a while of warming up."""
    tally, pid = Tally(), stage.router.pid
    windows: list[Window] = []

    async def watch() -> None:
        await asyncio.sleep(WARM_UP_S)
        began, cpu, requests, tokens = time.perf_counter(), cpu_s(pid), tally.requests, tally.tokens
        await asyncio.sleep(stage.options.seconds)
        taken = time.perf_counter() - began
        windows.append(
            Window(taken, cpu_s(pid) - cpu, tally.requests - requests, tally.tokens - tokens)
        )

    async with grpc.aio.insecure_channel(stage.router.grpc_address) as channel:
        await run_while(stage.clients(door, prompts, clients, tally, channel), watch)
    return windows[0]


async def measure_requests(stage: Stage, door: str) -> tuple[dict[str, float], float]:
    """Answers of one token; also the CPU seconds of one."""
    options = stage.options
    await stage.fleet.set_step(SHORT_STEP_S)
    window = await measure(stage, door, Prompts(options.prompt_tokens, 1), options.clients)
    each = window.cpu_s / window.requests
    return {
        "requests_per_s": round(window.requests / window.seconds),
        "cpu_share": round(window.cpu_s / window.seconds, 3),
        "cpu_us_per_request": round(1e6 * each, 1),
    }, each


async def measure_tokens(
    stage: Stage, door: str, rate: float, request_s: float
) -> dict[str, float]:
    """Long answers. ``request_s``: CPU seconds of a request with one token."""
    options = stage.options
    clients = options.sequences * options.decode
    await stage.fleet.set_step(clients / rate)
    window = await measure(stage, door, Prompts(options.prompt_tokens, LONG_ANSWER), clients)
    further = window.tokens - window.requests
    cpu = window.cpu_s - window.requests * request_s
    return {
        "wanted_tokens_per_s": rate,
        "tokens_per_s": round(window.tokens / window.seconds),
        "clients": clients,
        "cpu_share": round(window.cpu_s / window.seconds, 3),
        "cpu_us_per_token": round(1e6 * cpu / further, 2),
    }


async def measure_latency(stage: Stage) -> dict[str, dict[str, float]]:
    """One request at a time: through both doors, and without a router."""
    await stage.fleet.set_step(TIMED_STEP_S)
    prompts = Prompts(stage.options.prompt_tokens, TIMED_ANSWER)
    decode = next(name for name in stage.fleet.workers if not name.startswith("prefill"))
    tallies = {name: Tally(timed=True) for name in ("direct", "http", "grpc")}
    async with grpc.aio.insecure_channel(stage.router.grpc_address) as channel:
        # In turns, as the machine is not the same at all times.
        for name in [*tallies] * 3:
            tally = tallies[name]
            if name == "direct":
                clients: Sequence[Client] = [
                    DirectClient(stage.fleet.workers[decode], prompts, tally)
                ]
            else:
                clients = stage.clients(name, prompts, 1, tally, channel)
            await run_while(clients, lambda: asyncio.sleep(stage.options.seconds / 3))
    told = {name: spread(tally) for name, tally in tallies.items()}
    for name in ("http", "grpc"):
        for key in ("ttft_p50_ms", "itl_p50_ms", "itl_p99_ms"):
            told[name][f"added_{key}"] = round(told[name][key] - told["direct"][key], 3)
    return told


def spread(tally: Tally) -> dict[str, float]:
    def at(values: list[float], q: float) -> float:
        return round(1000 * float(np.percentile(values, q)), 3)

    ttft, gaps = tally.ttft_s, tally.gaps_s
    return {
        "answers": len(ttft),
        **{f"ttft_p{q}_ms": at(ttft, q) for q in (50, 99)},
        **{f"itl_p{q}_ms": at(gaps, q) for q in (50, 99)},
    }


async def run(options: argparse.Namespace) -> dict[str, object]:
    async with started(options) as stage:
        told: dict[str, object] = {}
        for door in options.doors:
            requests, each = await measure_requests(stage, door)
            rates = [await measure_tokens(stage, door, rate, each) for rate in options.rates]
            told[door] = {"requests": requests, "tokens": rates}
        told["one at a time"] = await measure_latency(stage)
    return told


@asynccontextmanager
async def started(options: argparse.Namespace) -> AsyncIterator[Stage]:
    fleet = await start_fleet(options)
    router = await start_router(options, fleet.registry)
    try:
        yield Stage(fleet, router, options)
    finally:
        await router.stop()
        assert fleet.process.stdin is not None
        fleet.process.stdin.close()
        await fleet.process.wait()


async def start_fleet(options: argparse.Namespace) -> Fleet:
    pin(options.load_core)
    program = Path(__file__).with_name("fake_fleet.py")
    workers = ("--prefill", str(options.prefill), "--decode", str(options.decode))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(program), *workers),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    return Fleet(process, **json.loads(await process.stdout.readline()))


async def start_router(options: argparse.Namespace, registry: str) -> RouterProcess:
    pin(options.router_core)
    # Prompts cost the workers nothing, so where they are computed is the option's to say.
    rules = RoutingRules(Disaggregation.PREFER, PolicyName(options.policy))
    settings = RouterSettings(
        registry, options.model, "fake", max_model_len=8192, rules=rules, drain_s=1.0
    )
    router = await RouterProcess.start(settings)
    pin(options.load_core)
    await router.wait_ready()
    return router


def pin(core: int | None) -> None:
    """This process, and those that it starts from now on."""
    if core is not None:
        os.sched_setaffinity(0, {core})


def cpu_s(pid: int) -> float:
    """User and system seconds of a process so far."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a model: its tokenizer and config")
    parser.add_argument("--prefill", type=int, default=2, help="0: mixed workers only")
    parser.add_argument("--decode", type=int, default=4)
    parser.add_argument("--sequences", type=int, default=32, help="of each message of a worker")
    parser.add_argument("--rates", type=float, nargs="*", default=[10_000, 50_000])
    parser.add_argument("--clients", type=int, default=32, help="that ask for one token at a time")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--doors", nargs="+", choices=("http", "grpc"), default=["http", "grpc"])
    parser.add_argument("--policy", default="kv_aware")
    parser.add_argument("--router-core", type=int, help="for the router's process alone")
    parser.add_argument("--load-core", type=int, help="for workers and clients")
    options = parser.parse_args()
    told = uvloop.run(run(options))
    shape = ("prefill", "decode", "sequences", "clients", "prompt_tokens", "policy")
    print(json.dumps({**{name: getattr(options, name) for name in shape}, **told}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
