"""What the prefix index takes: blocks stored, looked up and hashed per second, bytes per block.

    PYTHONPATH=.:protos python tests/benchmarks/bench_prefix_index.py

Workers hold chains of prompts with common beginnings, a million blocks of 16 tokens in all. A
lookup is what a routing decision asks: the leading blocks that every worker holds of one prompt.
Rates are by CPU time, from the bytes of the stream to the index.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator

import numpy as np
import psutil

from core.block_hash import HashArray, block_hashes
from core.cache_events import NO_HASHES, NO_PARENT, CacheChange, StoredBlocks
from core.request import AttemptKey, RequestKey
from crossdock.v1 import worker_pb2 as pb
from router.placement import WorkerId
from router.prefix_index.worker_caches import WorkerCaches
from wire.cache_events import change_from_wire, change_to_wire

BLOCK_SIZE = 16
EVENT_BLOCKS = 16
PROMPT_BLOCKS = 128
SHARED_BLOCKS = 32
LOOKUPS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[64, 512])
    options = parser.parse_args()
    print(json.dumps({"hashing": hashing()}))
    for workers in options.workers:
        print(json.dumps({"workers": workers, **index(workers, options.blocks)}))


def hashing() -> dict[str, float]:
    """Million tokens per second of one prompt."""
    found = {}
    for tokens in (2_048, 32_768):
        prompt = np.random.default_rng(0).integers(0, 50_000, tokens, dtype=np.int32)
        seconds = median_s(lambda prompt=prompt: block_hashes(prompt, BLOCK_SIZE, 1), 50)
        found[f"mtokens_per_s_{tokens}"] = round(tokens / seconds / 1e6, 1)
    return found


def index(count: int, blocks: int) -> dict[str, float]:
    workers = [WorkerId(f"w{number}", 1) for number in range(count)]
    caches = WorkerCaches(2 * blocks)
    for worker in workers:
        caches.attached(worker, blocks)
    prompts = make_prompts(blocks)
    events = [
        (workers[number % count], change)
        for number, prompt in enumerate(prompts)
        for change in changes(prompt)
    ]
    sequences = dict.fromkeys(workers, 0)
    wire = []
    for worker, change in events:
        sequences[worker] += 1
        numbered = CacheChange(sequences[worker], change.stored, change.removed)
        wire.append((worker, change_to_wire(1, numbered).SerializeToString()))
    gc.collect()
    before, began = psutil.Process().memory_info().rss, time.process_time()
    for worker, message in wire:
        events_of_step = pb.CacheEvents.FromString(message)
        caches.take(worker, 1, change_from_wire(events_of_step), 0.0)
    seconds = time.process_time() - began
    gc.collect()
    size = psutil.Process().memory_info().rss - before
    stored = sum(len(change.stored) for _, change in events)
    return {
        "different_blocks": len(caches.index),
        "events_per_s": round(len(wire) / seconds),
        "blocks_per_s": round(stored / seconds),
        "bytes_per_block": round(size / len(caches.index)),
        **lookups(caches, prompts, count),
        **burst(caches, workers),
    }


def make_prompts(blocks: int) -> list[HashArray]:
    """A 2k-token prompt each, a quarter of which some others begin with, too."""
    generator = np.random.default_rng(1)
    beginnings = generator.integers(1, 2**64, (64, SHARED_BLOCKS), dtype=np.uint64)
    own = generator.integers(
        1, 2**64, (blocks // (PROMPT_BLOCKS - SHARED_BLOCKS), PROMPT_BLOCKS - SHARED_BLOCKS),
        dtype=np.uint64,
    )  # fmt: skip
    return [np.concatenate([beginnings[n // 7 % 64], rest]) for n, rest in enumerate(own)]


def changes(prompt: HashArray) -> Iterator[CacheChange]:
    parents = np.concatenate([np.array([NO_PARENT], np.uint64), prompt[:-1]])
    for start in range(0, len(prompt), EVENT_BLOCKS):
        part = slice(start, start + EVENT_BLOCKS)
        yield CacheChange(0, StoredBlocks.of(prompt[part], parents[part]), NO_HASHES)


def lookups(caches: WorkerCaches, prompts: list[HashArray], count: int) -> dict[str, float]:
    """Of prompts that are held, of 2k tokens and, with what nobody has behind them, of 32k."""
    generator = np.random.default_rng(2)
    rest = generator.integers(1, 2**64, 2048 - PROMPT_BLOCKS, dtype=np.uint64)
    chosen = [prompts[n] for n in generator.integers(0, len(prompts), LOOKUPS)]
    found = {}
    for name, asked in (("2k", chosen), ("32k", [np.concatenate([p, rest]) for p in chosen])):
        times = [timed(lambda p=p: caches.overlaps(p, count)) for p in asked]
        for percent in (50, 99):
            found[f"lookup_{name}_p{percent}_us"] = round(float(np.percentile(times, percent)), 1)
    return found


def burst(caches: WorkerCaches, workers: list[WorkerId]) -> dict[str, float]:
    """Microseconds to expect the blocks of a 2k-token prompt and to settle them."""
    prompt = np.random.default_rng(3).integers(1, 2**64, PROMPT_BLOCKS, dtype=np.uint64)

    def once(number: int) -> None:
        key = AttemptKey(RequestKey("default", str(number)), 1)
        caches.expect(key, workers[0], prompt, 0, 0.0)
        caches.settled(key, workers[0])

    return {"expect_2k_us": round(median_s(lambda: once(1), 500) * 1e6, 1)}


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e6


def median_s(call: Callable[[], object], times: int) -> float:
    return float(np.median([timed(call) for _ in range(times)])) / 1e6


if __name__ == "__main__":
    main()
