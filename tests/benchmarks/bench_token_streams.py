"""CPU time of each process per token, by the router and by ticket.

    python tests/benchmarks/bench_token_streams.py [--answers 16] [--tokens 400] [--rounds 3]

One router and one mixed worker as processes of their own, with a model so small that what is
measured is the way of tokens; the asyncio client in this process. Both ways in turns. A worker's
time has the engine's in it, which is the same on both.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "protos"), str(ROOT / "tests"), str(ROOT / "tests/system")]

from replica_processes import start_replica  # noqa: E402
from routed_workers import registry_of, start_router  # noqa: E402

from core.request import Role  # noqa: E402
from core.worker_settings import WorkerSettings  # noqa: E402
from crossdock.client import AsyncClient  # noqa: E402

WAYS = {"by the router": False, "by ticket": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=16, help="at a time")
    parser.add_argument("--tokens", type=int, default=400, help="of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    # Not above: the other processes import this file again, and need no transformers.
    from tiny_model import make_tiny_model

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        model = make_tiny_model(Path(folder))
        settings = WorkerSettings(
            worker="mixed-0",
            role=Role.MIXED,
            model_folder=str(model),
            num_blocks=2048,
            token_stream_port=0,
        )
        worker = stack.enter_context(start_replica(settings))
        registry = stack.enter_context(registry_of(worker.place))
        router = stack.enter_context(start_router(model, registry))
        processes = {
            "router": psutil.Process(router.process.pid),
            "worker": psutil.Process(worker.place.pid),
            "client": psutil.Process(),
        }
        asyncio.run(measure(asked, router.grpc_address, processes))


async def measure(
    asked: argparse.Namespace, address: str, processes: dict[str, psutil.Process]
) -> None:
    tokens = asked.answers * asked.tokens
    costs: dict[str, dict[str, list[float]]] = {
        way: {name: [] for name in processes} for way in WAYS
    }
    async with AsyncClient(address) as client:
        for number in range(asked.rounds + 1):
            for way, by_ticket in WAYS.items():
                before = {name: cpu_s(process) for name, process in processes.items()}
                await asyncio.gather(
                    *(answer(client, asked.tokens, by_ticket) for _ in range(asked.answers))
                )
                # The first round connects and warms up.
                for name, process in processes.items() if number else ():
                    costs[way][name].append((cpu_s(process) - before[name]) / tokens * 1e6)
    print(f"CPU µs per token, {asked.answers} answers of {asked.tokens} tokens at a time, median")
    for way, of_processes in costs.items():
        told = "  ".join(f"{name} {median(times):6.1f}" for name, times in of_processes.items())
        print(f"{way:14} {told}")


async def answer(client: AsyncClient, tokens: int, by_ticket: bool) -> None:
    got = await client.answer(
        "Once upon a time",
        by_ticket=by_ticket,
        max_tokens=tokens,
        temperature=0,
        ignore_eos=True,
        timeout=120,
    )
    assert len(got.token_ids) == tokens


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
