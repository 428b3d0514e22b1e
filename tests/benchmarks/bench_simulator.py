"""How fast the simulator is, and how much memory it takes.

Replays a recorded trace (Mooncake's with its shared prefixes, Azure's or BurstGPT's CSV) on
workers about as fast as an H100 with a model of 8 billion parameters. With more ``--requests``
than the trace holds, copies of it run side by side, each shifted by a random part of a minute;
``--rate`` sets requests per second and worker then.

    PYTHONPATH=. python tests/benchmarks/bench_simulator.py mooncake_conversation.jsonl
    PYTHONPATH=. python tests/benchmarks/bench_simulator.py azure_2023_conv.csv \
        --requests 1000000 --workers 1000 --blocks 4096 --rate 0.5
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np

from core.latency_profile import EngineProfile, RowCurve, StepModel, TransferModel
from core.request import Role
from core.shards import ParallelShape
from tuner.load.traces import TraceEntry, read_trace
from tuner.simulate.cluster_model import ClusterModel, WorkerModel
from tuner.simulate.requests import RequestTrace
from tuner.simulate.result import SimulationResult
from tuner.simulate.simulator import simulate

MICROSECOND = 10**9
NANOSECOND = 10**6
BLOCK_SIZE = 64

# 6 ms to read the weights, 25 µs for a token of a prompt beyond what that time hides, 2 ns for a
# (query, key) pair, 10 ns for a token of context.
STEP = StepModel(
    RowCurve(
        (
            (0, 6_000 * MICROSECOND),
            (64, 6_200 * MICROSECOND),
            (16_448, 6_200 * MICROSECOND + 16_384 * 25 * MICROSECOND),
        )
    ),
    per_sampled=20 * MICROSECOND,
    per_prefill_pair=2 * NANOSECOND,
    per_decode_context=10 * NANOSECOND,
)
TRANSFER = TransferModel(300 * MICROSECOND, 2 * MICROSECOND)


def main() -> None:
    arguments = parse_arguments()
    trace = make_trace(arguments.trace, arguments.requests)
    if arguments.rate:
        per_second = len(trace) / max(trace.duration_s, 1e-9)
        trace = trace.faster(arguments.rate * arguments.workers / per_second)
    cluster = make_cluster(arguments.workers, arguments.prefill, arguments.blocks)
    start = time.process_time()
    result = simulate(trace, cluster, step_by_step=arguments.step_by_step, progress=show)
    report(result, time.process_time() - start)


def make_trace(path: Path, requests: int | None) -> RequestTrace:
    entries = read_trace(path)
    copies = 1 if requests is None else -(-requests // len(entries))
    random = np.random.default_rng(0)
    times = np.array([entry.stamp_s for entry in entries]) - entries[0].stamp_s
    shifts = [0.0, *random.uniform(0.0, 60.0, copies - 1)]
    arrivals = np.concatenate([times + shift for shift in shifts])
    order = np.argsort(arrivals, kind="stable")[:requests]
    which = order % len(entries)
    return RequestTrace(
        path.name,
        arrivals[order] - arrivals[order[0]],
        np.array([entry.prompt_tokens for entry in entries], dtype=np.int32)[which],
        np.array([entry.output_tokens for entry in entries], dtype=np.int32)[which],
        shared_parts(entries, which),
    )


def shared_parts(entries: list[TraceEntry], which: np.ndarray) -> list[np.ndarray]:
    parts = [np.array(entry.block_ids, dtype=np.int32) for entry in entries]
    return [parts[i] for i in which] if any(len(ids) for ids in parts) else []


def make_cluster(workers: int, prefill: int, blocks: int) -> ClusterModel:
    engine = EngineProfile(ParallelShape(), 1, 1.0, STEP, blocks * BLOCK_SIZE)

    def group(role: Role, count: int) -> WorkerModel:
        return WorkerModel(
            role, count, engine, blocks, max_num_seqs=256, max_num_batched_tokens=8192
        )

    groups = (
        (group(Role.PREFILL, prefill), group(Role.DECODE, workers - prefill))
        if prefill
        else (group(Role.MIXED, workers),)
    )
    return ClusterModel(groups, BLOCK_SIZE, TRANSFER, message_s=1e-4, request_s=1e-3, ttft_s=1.0)


def show(share: float) -> None:
    if sys.stderr.isatty():
        print(f"\r{share:4.0%}", end="", file=sys.stderr)


def report(result: SimulationResult, seconds: float) -> None:
    tokens = int(result.prompt_tokens.sum()) + int(result.output_tokens.sum())
    steps = sum(worker.steps for worker in result.workers)
    busy = np.mean([worker.busy_s for worker in result.workers]) / result.ended_s
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{len(result.arrivals_s)} requests in {seconds:.1f} s of CPU time, "
        f"{tokens / seconds / 1e6:.1f} million tokens/s; {steps} steps in "
        f"{result.decisions} events; {memory:.2f} GiB\n"
        f"simulated {result.ended_s:.0f} s, busy {busy:.0%}, {len(result.failures)} failures, "
        f"TTFT mean {np.nanmean(result.ttft_s):.3f}, p99 {np.nanpercentile(result.ttft_s, 99):.3f} "
        f"s, TPOT p50 {np.nanmedian(result.tpot_s) * 1e3:.2f} ms, "
        f"reused {result.cached_tokens.sum() / result.prompt_tokens.sum():.1%} of prompt tokens"
    )


def trace_and_cluster(description: str | None) -> argparse.ArgumentParser:
    """What `make_trace` and `make_cluster` want to know."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--requests", type=int, help="default: those of the trace")
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--prefill", type=int, default=0, help="how many of them only prefill")
    parser.add_argument("--blocks", type=int, default=16_384, help="of 64 tokens, per worker")
    return parser


def parse_arguments() -> argparse.Namespace:
    parser = trace_and_cluster(__doc__)
    parser.add_argument("--rate", type=float, help="requests per second and worker")
    parser.add_argument("--step-by-step", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
