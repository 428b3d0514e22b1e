"""One variant of the compiled kernels beside torch with the same instruction sets, one thread.

    python tests/benchmarks/bench_variants.py avx2

Any variant that was built and that this machine can run: a lesser one stands in for a lesser CPU,
torch and oneDNN are held to its instruction sets too. Prints, for each operation of the shapes of
SmolLM2-135M, the fastest of several runs in milliseconds, both taking turns.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import torch

from kernels.dispatch import NATIVE_DTYPES, forced
from kernels.linear import Linear
from kernels.paged_attention import paged_attention
from kernels.paged_sequences import PagedSequences
from native import library

# What ONEDNN_MAX_CPU_ISA and ATEN_CPU_CAPABILITY call a variant's instruction sets.
ISAS = {
    "avx2": ("AVX2", "avx2"),
    "avx512": ("AVX512_CORE", "avx512"),
    "avx512bf16": ("AVX512_CORE_BF16", "avx512"),
}
WEIGHTS = [(960, 576), (576, 576), (3072, 576), (576, 1536)] * 2
ROWS = (1, 8, 32, 256)
HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE, BLOCKS = 9, 3, 64, 16, 600

Work = Callable[[], object]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variant", choices=sorted(ISAS))
    variant = parser.parse_args().variant
    # Read by torch at its first operation, not when it is imported.
    os.environ["ONEDNN_MAX_CPU_ISA"], os.environ["ATEN_CPU_CAPABILITY"] = ISAS[variant]
    torch.set_num_threads(1)
    found = library.load(variant, "for a benchmark")
    library.choice = lambda: found  # type: ignore[assignment]
    print(f"{'':34}{variant:>12}{'torch':>8}")
    for dtype in NATIVE_DTYPES:
        for name, native, other in [*products(dtype), *attentions(dtype)]:
            ours, theirs = fastest_ms(native, other)
            label = f"{str(dtype).removeprefix('torch.')}, {name}"
            print(f"{label:34}{ours:12.2f}{theirs:8.2f}   {theirs / ours:.2f}×", flush=True)
    return 0


def products(dtype: torch.dtype) -> list[tuple[str, Work, Work]]:
    weights = [torch.randn(shape).to(dtype) for shape in WEIGHTS]
    native = [Linear(weight) for weight in weights]
    with forced("torch"):
        other = [Linear(weight) for weight in weights]

    def of(layers: list[Linear], rows: int) -> Work:
        xs = [torch.randn(rows, columns).to(dtype) for _, columns in WEIGHTS]
        return lambda: [layer(x) for layer, x in zip(layers, xs, strict=True)]

    return [(f"products, {rows} rows", of(native, rows), of(other, rows)) for rows in ROWS]


def attentions(dtype: torch.dtype) -> list[tuple[str, Work, Work]]:
    pool = torch.randn(BLOCKS, 1, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM).to(dtype)

    def of(name: str, count: int, length: int, new: int) -> tuple[str, Work, Work]:
        q = torch.randn(count * new, HEADS, HEAD_DIM).to(dtype)
        tables = torch.randint(BLOCKS, (count, length // BLOCK_SIZE), dtype=torch.int32)
        lengths = torch.full((count,), length, dtype=torch.int32)
        first_rows = torch.arange(count + 1, dtype=torch.int32) * new
        decodes = count if new == 1 else 0
        sequences = PagedSequences(tables, lengths, first_rows, decodes, new, length)

        def other() -> None:
            with forced("torch"):
                paged_attention(q, pool, 0, sequences)

        return name, lambda: paged_attention(q, pool, 0, sequences), other

    return [of("attention, 512 new", 1, 512, 512), of("attention, 8 × 1 of 1024", 8, 1024, 1)]


def fastest_ms(*works: Work, runs: int = 12) -> list[float]:
    best = [float("inf")] * len(works)
    for _ in range(runs):
        for i, work in enumerate(works):
            start = time.perf_counter()
            work()
            best[i] = min(best[i], time.perf_counter() - start)
    return [1e3 * seconds for seconds in best]


if __name__ == "__main__":
    with torch.inference_mode():
        raise SystemExit(main())
