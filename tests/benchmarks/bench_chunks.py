"""The engine alone: time of a prompt by the size of its chunks, on one core.

    python tests/benchmarks/bench_chunks.py MODEL_FOLDER [--dtype float32]

Prints one JSON object: milliseconds by prompt length and chunk size, the best of three.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

from core.step import Slice, StepPlan
from engine.runner import LoadedModel, load_runner

BLOCK_SIZE = 16
PROMPTS = (512, 1024)
CHUNKS = (128, 256, 512, 1024)
RUNS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    model = load_runner(
        options.model, dtype=options.dtype, device="cpu", num_blocks=64, block_size=BLOCK_SIZE
    )
    results = {
        f"{length} tokens": {
            f"chunks of {chunk}": round(min(prefill_ms(model, length, chunk) for _ in range(RUNS)))
            for chunk in CHUNKS
            if chunk <= length
        }
        for length in PROMPTS
    }
    print(json.dumps({"dtype": options.dtype, "milliseconds": results}, indent=2))
    return 0


def prefill_ms(model: LoadedModel, length: int, chunk: int) -> float:
    """Computes one prompt; its KV stays in the pool and is overwritten by the next run."""
    tokens = np.random.default_rng(0).integers(100, 40_000, length).astype(np.int32)
    table = np.arange(length // BLOCK_SIZE, dtype=np.int32)
    started = time.perf_counter()
    for start in range(0, length, chunk):
        piece = Slice(1, start, tokens[start : start + chunk], table)
        model.runner.execute(StepPlan((piece,)))
    return (time.perf_counter() - started) * 1000


if __name__ == "__main__":
    sys.exit(main())
