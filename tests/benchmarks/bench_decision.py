"""How long one whole routing decision takes: tokens in, hashes, lookup, pair chosen.

Half of the workers prefill, half decode, each about as fast as an H100 with a model of 8 billion
parameters; six of them hold parts of each prompt. Before each decision some workers report another
load, which is not timed.

    PYTHONPATH=.:protos python tests/benchmarks/bench_decision.py --workers 64
"""

from __future__ import annotations

import argparse
import time
from random import Random

import numpy as np
from bench_simulator import STEP, TRANSFER

from core.block_hash import HashArray, TokenArray, block_hashes
from core.outputs import Load
from core.request import Role
from router.placement import WorkerId
from router.routing.candidates import PromptShape
from router.routing.cost_model import ClusterCosts, EngineCosts
from router.routing.policies.policy import PolicyName
from router.routing.routing_rules import RoutingRules
from router.routing.routing_state import RoutedPrompt, RoutingState

BLOCK, SALT, NUM_BLOCKS = 16, 7, 65_536
ENGINE = EngineCosts(STEP, max_num_batched_tokens=8192)
COSTS = ClusterCosts(ENGINE, ENGINE, TRANSFER, message_s=1e-4)
# Of 1,000 requests per second, when each worker reports a load every 16 ms.
REPORTS_PER_DECISION = 4


def make_state(workers: int, policy: PolicyName, random: np.random.Generator) -> RoutingState:
    state = RoutingState(RoutingRules(policy=policy, costs=COSTS), Random(0))
    ids = [WorkerId(f"w{number}", 0) for number in range(workers)]
    for number, worker in enumerate(ids):
        role = Role.PREFILL if number % 2 else Role.DECODE
        state.attached(worker, role, NUM_BLOCKS, max_num_seqs=256)
        report(state, worker, random)
    state.use(ids)
    return state


def report(state: RoutingState, worker: WorkerId, random: np.random.Generator) -> None:
    """Up to 64 answers of 2,000 tokens each, and as much to compute as some prompts have."""
    answers = int(random.integers(64))
    used, waiting = answers * 2000 // BLOCK, int(random.integers(10_000))
    state.load_reported(worker, Load(answers, 0, NUM_BLOCKS - used, waiting), 0.0)


def store(state: RoutingState, hashes: HashArray, random: np.random.Generator) -> None:
    """A few workers hold parts of it."""
    ids = [view.worker for view in state.views]
    for number in random.choice(len(ids), size=min(len(ids), 6), replace=False):
        known = hashes[: random.integers(1, len(hashes) + 1)]
        state.caches.changed(ids[number], known, known[:0])


def decide(state: RoutingState, tokens: TokenArray) -> tuple[float, float]:
    """Seconds to hash, and for all of it."""
    began = time.perf_counter()
    hashes = block_hashes(tokens, BLOCK, SALT)
    hashed = time.perf_counter()
    state.place(RoutedPrompt(PromptShape(len(tokens), BLOCK), hashes), frozenset())
    return hashed - began, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--policy", default="kv_aware")
    parser.add_argument("--decisions", type=int, default=2000)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    state = make_state(arguments.workers, PolicyName(arguments.policy), random)
    ids = [view.worker for view in state.views]
    for length in (2048, 32_768):
        prompts = [random.integers(0, 49_000, length).astype(np.int32) for _ in range(40)]
        for prompt in prompts:
            store(state, block_hashes(prompt, BLOCK, SALT), random)
        count = arguments.decisions * 2048 // length + 100
        times = np.zeros((count, 2))
        for i in range(count):
            for number in random.integers(arguments.workers, size=REPORTS_PER_DECISION):
                report(state, ids[number], random)
            times[i] = decide(state, prompts[i % len(prompts)])
        times *= 1e6
        hashing, p99 = np.median(times[:, 0]), np.percentile(times[:, 1], 99)
        print(
            f"{arguments.workers} workers, {length} tokens: p50 {np.median(times[:, 1]):.0f} µs "
            f"(hashing {hashing:.0f}), p99 {p99:.0f} µs"
        )


if __name__ == "__main__":
    main()
