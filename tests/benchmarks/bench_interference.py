"""What a long prompt does to running streams: colocated beside 1P+1D, on the same cores.

    python tests/benchmarks/bench_interference.py MODEL_FOLDER [--dtype bfloat16] [--streams 4]

Four clients stream answers; every two seconds a new prompt of 1,500 tokens arrives. Prints one
JSON object: the time between tokens of the streams (ITL) and the TTFT of the long prompts, in
milliseconds, for one mixed worker on all cores and for one prefill and one decode worker.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "system"))

from served_cluster import ServedCluster, served

LONG_PROMPT = 1500
LONG_PROMPTS = 6
PAUSE_S = 2.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--streams", type=int, default=4)
    options = parser.parse_args()
    results = {}
    for name, prefill, decode in [
        ("colocated, 1 mixed worker", 0, 1),
        ("1 prefill + 1 decode", 1, 1),
    ]:
        with served(options.model, prefill, decode, "--dtype", options.dtype) as cluster:
            results[name] = measure(cluster, options.streams)
    print(json.dumps({"dtype": options.dtype, "streams": options.streams, **results}, indent=2))
    return 0


def measure(cluster: ServedCluster, streams: int) -> dict[str, dict[str, float]]:
    """Streams run from before the first long prompt until after the last one."""
    generator = np.random.default_rng(0)
    stop = threading.Event()
    gaps: list[float] = []
    clients = [
        threading.Thread(
            target=keep_streaming,
            args=(cluster, generator.integers(100, 40_000, 100).tolist(), stop, gaps),
        )
        for _ in range(streams)
    ]
    for client in clients:
        client.start()
    ttfts = []
    for _ in range(LONG_PROMPTS):
        time.sleep(PAUSE_S)
        ttfts.append(
            time_to_first_token(cluster, generator.integers(100, 40_000, LONG_PROMPT).tolist())
        )
    stop.set()
    for client in clients:
        client.join()
    return {"itl_ms": spread(gaps), "ttft_ms": spread(ttfts)}


def keep_streaming(
    cluster: ServedCluster, prompt: list[int], stop: threading.Event, gaps: list[float]
) -> None:
    """Streams one long answer and notes the time between its tokens."""
    last = None
    call = cluster.stream(prompt, 1900)
    for response in call:
        now = time.monotonic()
        if last is not None and response.chunk.token_ids:
            gaps.append(now - last)
        last = now
        if stop.is_set():
            call.cancel()  # type: ignore[attr-defined]
            return


def time_to_first_token(cluster: ServedCluster, prompt: list[int]) -> float:
    sent = time.monotonic()
    arrivals = [time.monotonic() for r in cluster.stream(prompt, 4) if r.chunk.token_ids]
    return arrivals[0] - sent


def spread(seconds: list[float]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(np.array(seconds) * 1000, [50, 90, 99])
    return {"p50": round(p50, 1), "p90": round(p90, 1), "p99": round(p99, 1), "n": len(seconds)}


if __name__ == "__main__":
    sys.exit(main())
