"""What the path adds: TTFT through router, P and D beside the engine's own prefill time.

    python tests/benchmarks/bench_path.py MODEL_FOLDER [--dtype float32] [--tokens 512] [--runs 20]

Starts a cluster, sends one prompt at a time (each of them new, so that no prefix is cached), and
prints one JSON object. The engine's own time is taken by P around its steps (first chunk started
to last chunk done). Times in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "system"))

from served_cluster import ServedCluster, served


def main() -> int:
    options = parse_arguments()
    with served(
        options.model, options.prefill, options.decode, "--dtype", options.dtype
    ) as cluster:
        generator = np.random.default_rng(0)
        rows = [
            measure(cluster, generator.integers(100, 40_000, options.tokens).tolist())
            for _ in range(options.runs + 2)
        ][2:]
    print(json.dumps(summary(options, rows), indent=2))
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--prefill", type=int, default=1)
    parser.add_argument("--decode", type=int, default=1)
    return parser.parse_args()


def measure(cluster: ServedCluster, prompt: list[int]) -> dict[str, float]:
    """One request of eight tokens, seen from the client and from the engine of P."""
    sent = time.monotonic()
    arrivals = [
        time.monotonic() for response in cluster.stream(prompt, 8) if response.chunk.token_ids
    ]
    role = "prefill" if cluster.stats("prefill") else "mixed"
    events = [e for stats in cluster.stats(role) for e in stats.events]
    newest = max(events, key=lambda e: e.at_s).attempt
    own = [e for e in events if e.attempt == newest]
    started = min(e.at_s for e in own if e.name == "chunk started")
    done = max(e.at_s for e in own if e.name == "chunk done")
    ttft, engine = arrivals[0] - sent, done - started
    return {
        "ttft": ttft * 1000,
        "engine_prefill": engine * 1000,
        "added": (ttft - engine) * 1000,
        "before_compute": (started - sent) * 1000,
        "after_compute": (arrivals[0] - done) * 1000,
        "second_token": (arrivals[1] - arrivals[0]) * 1000,
        "later_tokens": statistics.median(np.diff(arrivals[2:])) * 1000,
    }


def summary(options: argparse.Namespace, rows: list[dict[str, float]]) -> dict[str, object]:
    def spread(name: str) -> dict[str, float]:
        values = sorted(row[name] for row in rows)
        p90 = values[min(len(values) - 1, int(0.9 * len(values)))]
        return {"p50": round(statistics.median(values), 2), "p90": round(p90, 2)}

    return {
        "dtype": options.dtype,
        "prompt_tokens": options.tokens,
        "ratio": f"{options.prefill}:{options.decode}",
        "runs": len(rows),
        "milliseconds": {name: spread(name) for name in rows[0]},
    }


if __name__ == "__main__":
    sys.exit(main())
