"""What choosing the tokens of a step costs beside the model: milliseconds for a batch.

    python tests/benchmarks/bench_sampling.py [--logits FILE.npy] [--rows 32] [--vocab 49152]

Without a file of real logits (float32 [rows, vocab]) it makes rows with a few hundred likely tokens
over a long tail. Prints one JSON object: for every way of sampling and every implementation of this
machine the median over steps in which only the positions change. One thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from core.request import SamplingParams
from core.step import SampleSpec, Slice
from engine.sampler import Sampler
from engine.vocabulary import Logits
from kernels.dispatch import Implementation, forced, implementation

WAYS: dict[str, dict[str, float]] = {
    "greedy": {},
    "temperature 0.8, top_p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "temperature 0.8, top_p 0.95, top_k 50": {"temperature": 0.8, "top_p": 0.95, "top_k": 50},
    "temperature 1": {"temperature": 1.0},
    "greedy, repetition_penalty 1.1 over 500 tokens": {"repetition_penalty": 1.1},
}


def main() -> int:
    options = parse_arguments()
    logits = load(options)
    paths: set[Implementation] = {"torch", implementation(torch.from_numpy(logits))}
    rows = {
        way: {path: median_ms(logits, settings, path, options.steps) for path in sorted(paths)}
        for way, settings in WAYS.items()
    }
    print(json.dumps({"rows": len(logits), "vocabulary": logits.shape[1], "ms": rows}, indent=2))
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logits", type=Path)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--vocab", type=int, default=49_152)
    parser.add_argument("--steps", type=int, default=21)
    return parser.parse_args()


def load(options: argparse.Namespace) -> npt.NDArray[np.float32]:
    if options.logits is not None:
        real: npt.NDArray[np.float32] = np.load(options.logits)
        return real
    generator = np.random.default_rng(0)
    shape = (options.rows, options.vocab)
    likely = generator.exponential(3.0, shape) * (generator.random(shape) < 5e-3)
    return (generator.normal(0, 1, shape) + likely).astype(np.float32)


def median_ms(
    logits: npt.NDArray[np.float32], settings: dict[str, float], path: Implementation, steps: int
) -> float:
    sampler, tokens = Sampler(), np.arange(500, dtype=np.int32)
    params = [SamplingParams(9, seed=i, **settings) for i in range(len(logits))]  # type: ignore[arg-type]
    times = []
    with forced(path):
        for position in range(500, 500 + steps):
            slices = [
                Slice(i, 0, tokens[:1], tokens[:1], (SampleSpec(p, position, tokens, 400),))
                for i, p in enumerate(params)
            ]
            started = time.perf_counter()
            sampler.draw(Logits(torch.from_numpy(logits)), sampler.prepare(slices)).read()
            times.append(time.perf_counter() - started)
    return round(1e3 * statistics.median(times), 3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main())
