"""The engine alone: prefill by prompt length and decode by batch, beside what the machine could do.

    python tests/benchmarks/bench_engine.py MODEL_FOLDER [--dtype bfloat16] [--threads 1]

Prints one JSON object, milliseconds as medians. "floor": bytes of all weights and of the KV that is
read, at the read rate measured in this run; or the FLOPs of all matrix products at the rate of a
matrix product measured in this run; whichever is more. Prompts in chunks of 256 as when serving.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from core.request import SamplingParams
from core.step import SampleSpec, Slice, StepPlan
from engine.runner import LoadedModel, load_runner

BLOCK_SIZE = 16
CHUNK = 256
PROMPTS = (128, 512, 1024, 1900)
BATCHES = (1, 4, 8, 16, 32)
CONTEXTS = (128, 1024)
RUNS = 5
GREEDY = SamplingParams(max_tokens=1)


@dataclass(frozen=True, slots=True)
class Machine:
    """Rates measured in this run."""

    read_bytes_per_s: float
    flops_per_s: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[-options.threads :]
    os.sched_setaffinity(0, set(cores))
    torch.set_num_threads(options.threads)
    blocks = max(BATCHES) * (max(CONTEXTS) // BLOCK_SIZE + 1)
    model = load_runner(
        options.model, dtype=options.dtype, device="cpu", num_blocks=blocks, block_size=BLOCK_SIZE
    )
    machine = measure_machine(getattr(torch, options.dtype))
    report = {
        "dtype": options.dtype,
        "threads": options.threads,
        "read GB/s": round(machine.read_bytes_per_s / 1e9, 1),
        "matrix product GFLOP/s": round(machine.flops_per_s / 1e9),
        "prefill": {f"{n} tokens": prefill(model, machine, n) for n in PROMPTS},
        "decode": {
            f"context {context}": {
                f"batch {batch}": decode(model, machine, batch, context) for batch in BATCHES
            }
            for context in CONTEXTS
        },
    }
    print(json.dumps(report, indent=2))
    return 0


def measure_machine(dtype: torch.dtype) -> Machine:
    """Reading 400 MB, and a product of the shape that the MLP of a chunk has."""
    many = torch.ones(100 << 20, dtype=torch.float32)
    read = many.numel() * 4 / seconds(lambda: many.sum())
    x, w = torch.ones(CHUNK, 576, dtype=dtype), torch.ones(3072, 576, dtype=dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(w, CHUNK)
    flops = 2 * CHUNK * 576 * 3072
    product = flops / seconds(
        lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    )
    return Machine(read, product)


def seconds(work: Callable[[], object]) -> float:
    """Median of five runs after a warm-up."""
    work()
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return median(times)


def prefill(model: LoadedModel, machine: Machine, length: int) -> dict[str, float]:
    tokens = np.random.default_rng(0).integers(100, 40_000, length).astype(np.int32)
    table = np.arange(-(-length // BLOCK_SIZE), dtype=np.int32)

    def run() -> None:
        for start in range(0, length, CHUNK):
            piece = tokens[start : start + CHUNK]
            last = start + len(piece) == length
            spec = SampleSpec(GREEDY, length)
            part = Slice(1, start, piece, table, (spec,) if last else ())
            model.runner.execute(StepPlan((part,)))

    taken = seconds(run)
    floor = flops_of(model, length, length / 2) / machine.flops_per_s
    return told(taken, floor) | {"tokens/s": round(length / taken)}


def decode(model: LoadedModel, machine: Machine, batch: int, context: int) -> dict[str, float]:
    per_sequence = context // BLOCK_SIZE + 1
    parts = tuple(
        Slice(
            i,
            context,
            np.array([100 + i], dtype=np.int32),
            np.arange(i * per_sequence, (i + 1) * per_sequence, dtype=np.int32),
            (SampleSpec(GREEDY, context + 1),),
        )
        for i in range(batch)
    )
    taken = seconds(lambda: model.runner.execute(StepPlan(parts)))
    kv = batch * context * model.pool.layout.block_bytes / BLOCK_SIZE
    read = (weight_bytes(model) + kv) / machine.read_bytes_per_s
    compute = flops_of(model, batch, context) / machine.flops_per_s
    return told(taken, max(read, compute))


def told(taken: float, floor: float) -> dict[str, float]:
    return {
        "ms": round(taken * 1e3, 1),
        "floor ms": round(floor * 1e3, 1),
        "share of the floor": round(floor / taken, 2),
    }


def num_weights(model: LoadedModel) -> int:
    """Of all matrices that multiply every token, the head included once."""
    c = model.config
    attention = c.hidden_size * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
    mlp = 3 * c.hidden_size * c.intermediate_size
    return c.num_layers * (attention + mlp) + c.vocab_size * c.hidden_size


def weight_bytes(model: LoadedModel) -> float:
    return num_weights(model) * model.runner.model.dtype.itemsize


def flops_of(model: LoadedModel, tokens: int, context: float) -> float:
    """Products with weights (the head for one token of a prompt counts as for none), attention."""
    c = model.config
    head = c.vocab_size * c.hidden_size
    attention = 4 * context * c.num_heads * c.head_dim * c.num_layers
    return tokens * (2 * (num_weights(model) - head) + attention)


if __name__ == "__main__":
    sys.exit(main())
