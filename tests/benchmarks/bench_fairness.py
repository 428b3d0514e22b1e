"""What one tenant's flood does to another's TTFT, on a real cluster with a tiny model.

    python tests/benchmarks/bench_fairness.py [--requests 2000] [--pairs 2] [--prefill 1]

Starts `crossdock serve` with two tenants and random weights, finds how many requests per second it
serves, and then takes turns: the loud tenant asks for half of that, and for three times that. The
quiet tenant asks for a fifth of it in both, with the same prompts at the same moments. The model is
so large that the workers are what limits the cluster, and not the router. Prints one JSON object:
TTFT of the quiet tenant in milliseconds, what became of the loud one's requests, and, where some
failed otherwise than by a refusal, each with why and when, and the cluster's log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "system"))

from served_cluster import served
from tiny_model import make_tiny_model

from core.api_keys import api_key_sha256, new_api_key
from crossdock.client import AsyncClient, Overloaded, RetryPolicy, ServerError

KEYS = {"quiet": new_api_key(), "loud": new_api_key()}
ANSWER = 8
# Of the measured rate.
WITHIN, SHARE, FLOOD = 0.2, 0.5, 3.0
PROBE_S = 6.0
ONE_TRY = RetryPolicy(max_tries=1)


@dataclass
class Outcome:
    """``ttft_s`` of those that were answered. ``failed``: neither answered nor refused."""

    ttft_s: list[float] = field(default_factory=list)
    refused: int = 0
    failed: list[str] = field(default_factory=list)


async def ask(client: AsyncClient, prompt: list[int], outcome: Outcome) -> None:
    began, first = time.perf_counter(), 0.0
    try:
        async for _ in client.generate(token_ids=prompt, max_tokens=ANSWER, ignore_eos=True):
            first = first or time.perf_counter()
    except Overloaded:
        outcome.refused += 1
        return
    except ServerError as error:
        after, tokens = time.perf_counter() - began, "with" if first else "without"
        outcome.failed.append(
            f"{error.code.name} {error.reason} after {after:.3f} s {tokens} tokens: {error.message}"
        )
        return
    outcome.ttft_s.append(first - began)


async def send(client: AsyncClient, rate: float, seconds: float, seed: int) -> Outcome:
    """Poisson arrivals, each request in time whatever became of the ones before."""
    random, outcome = np.random.default_rng(seed), Outcome()
    began = time.perf_counter()
    at = random.exponential(1 / rate, int(2 * rate * seconds)).cumsum()
    async with asyncio.TaskGroup() as group:
        for moment in at[at < seconds]:
            prompt = random.integers(1, 200, int(random.integers(64, 256))).tolist()
            await asyncio.sleep(max(0.0, moment - (time.perf_counter() - began)))
            group.create_task(ask(client, prompt, outcome))
    return outcome


async def probe(client: AsyncClient) -> float:
    """Requests per second that are served while more come."""
    outcome = Outcome()
    deadline = time.perf_counter() + PROBE_S
    random = np.random.default_rng(0)

    async def one_after_the_other() -> None:
        while time.perf_counter() < deadline:
            prompt = random.integers(1, 200, int(random.integers(64, 256))).tolist()
            await ask(client, prompt, outcome)

    await asyncio.gather(*(one_after_the_other() for _ in range(32)))
    return len(outcome.ttft_s) / PROBE_S


async def run(address: str, requests: int, pairs: int) -> dict[str, Any]:
    async with (
        AsyncClient(address, api_key=KEYS["quiet"], retries=ONE_TRY) as quiet,
        AsyncClient(address, api_key=KEYS["loud"], retries=ONE_TRY) as loud,
    ):
        await quiet.wait_ready(60)
        rate = await probe(loud)
        seconds = requests / pairs / (rate * (2 * WITHIN + SHARE + FLOOD))
        told = []
        for pair in range(pairs):
            for name, share in (("share", SHARE), ("flood", FLOOD)):
                both = await asyncio.gather(
                    send(quiet, WITHIN * rate, seconds, seed=2 * pair),
                    send(loud, share * rate, seconds, seed=2 * pair + 1),
                )
                told.append({"loud tenant": name, **report(*both)})
    return {"served_per_s": round(rate, 1), "seconds_each": round(seconds, 1), "runs": told}


def report(quiet: Outcome, loud: Outcome) -> dict[str, object]:
    ttft = {
        f"ttft_p{q}_ms": round(1000 * float(np.percentile(quiet.ttft_s, q)), 1) for q in (50, 99)
    }
    return {
        "quiet": {"answered": len(quiet.ttft_s), "refused": quiet.refused, **ttft},
        "loud": {"answered": len(loud.ttft_s), "refused": loud.refused},
        "failed": quiet.failed + loud.failed,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--prefill", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny_model(Path(folder) / "model", heads=24, layers=48)
        tenants = {name: {"api_key_sha256": [api_key_sha256(key)]} for name, key in KEYS.items()}
        config = Path(folder) / "cluster.yaml"
        spec = {"tenants": tenants, "admission": {"max_waiting": 256}}
        config.write_text(yaml.safe_dump(spec), encoding="utf-8")
        with served(model, options.prefill, 1, "--config", str(config)) as cluster:
            result = asyncio.run(run(cluster.grpc_address, options.requests, options.pairs))
            log = cluster.notes
    if any(told["failed"] for told in result["runs"]):
        print("\n".join(log), file=sys.stderr)
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
