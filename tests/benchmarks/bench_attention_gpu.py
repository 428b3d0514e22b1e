"""The attention kernels on a GPU, beside what copies and matrix products reach in the same run.

    python tests/benchmarks/bench_attention_gpu.py [--heads 32 --kv-heads 8 --head-dim 128]

Prints one JSON object. Decode of 64 sequences with 4,096 tokens each: bytes of K and V over the
time of a launch, as a share of the rate of a device copy (bytes read and written). Prefill of one
prompt of 8,192 tokens: FLOPs of the causal half of both products, as a share of the rate of a
matrix product of 8,192³. All in bfloat16; medians of `triton.testing.do_bench`, which flushes the
L2 cache.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from kernels.paged_sequences import PagedSequences

BATCH, CONTEXT, PROMPT, BLOCK_SIZE = 64, 4096, 8192, 16
COPIED = 2 << 30
MATRIX = 8192


@dataclass(frozen=True, slots=True)
class Model:
    heads: int
    kv_heads: int
    head_dim: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    model = Model(**vars(parser.parse_args()))
    if not torch.cuda.is_available():
        print("no GPU", file=sys.stderr)
        return 1
    report = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    print(json.dumps(report | decode(model) | prefill(model), indent=2))
    return 0


def decode(model: Model) -> dict[str, object]:
    from kernels.decode_attention_triton import decode_kernel, launch_decode_attention

    pool, sequences = paged(model, BATCH, CONTEXT, new=1)
    q = torch.randn(BATCH, model.heads, model.head_dim, dtype=pool.dtype, device="cuda")
    out = torch.empty_like(q)
    seconds = median(lambda: launch_decode_attention(q, pool, 0, sequences, None, out))
    source = torch.empty(COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * COPIED / median(lambda: target.copy_(source))
    read = pool.numel() * pool.element_size() / seconds
    return {
        "decode_ms": 1e3 * seconds,
        "decode_config": str(decode_kernel.best_config),
        "decode_gb_per_s": read / 1e9,
        "copy_gb_per_s": copied / 1e9,
        "decode_share_of_copy": read / copied,
    }


def prefill(model: Model) -> dict[str, object]:
    from kernels.prefill_attention_triton import launch_prefill_attention, prefill_kernel

    pool, sequences = paged(model, 1, PROMPT, new=PROMPT)
    q = torch.randn(PROMPT, model.heads, model.head_dim, dtype=pool.dtype, device="cuda")
    out = torch.empty_like(q)
    seconds = median(lambda: launch_prefill_attention(q, pool, 0, sequences, None, out))
    a = torch.randn(MATRIX, MATRIX, dtype=pool.dtype, device="cuda")
    product = torch.empty_like(a)
    multiplied = 2 * MATRIX**3 / median(lambda: torch.mm(a, a, out=product))
    seen = PROMPT * (PROMPT + 1) // 2
    attended = 2 * 2 * seen * model.heads * model.head_dim / seconds
    return {
        "prefill_ms": 1e3 * seconds,
        "prefill_config": str(prefill_kernel.best_config),
        "prefill_tflops": attended / 1e12,
        "matmul_tflops": multiplied / 1e12,
        "prefill_share_of_matmul": attended / multiplied,
    }


def paged(model: Model, count: int, length: int, new: int) -> tuple[torch.Tensor, PagedSequences]:
    """A pool of one layer that ``count`` sequences fill, their blocks scattered."""
    blocks = length // BLOCK_SIZE
    shape = (count * blocks, 1, 2, model.kv_heads, BLOCK_SIZE, model.head_dim)
    pool = torch.randn(shape, dtype=torch.bfloat16, device="cuda")
    ids = torch.randperm(len(pool), device="cuda").to(torch.int32)
    sequences = PagedSequences(
        block_tables=ids.view(count, blocks),
        lengths=torch.full((count,), length, dtype=torch.int32, device="cuda"),
        first_rows=torch.arange(count + 1, dtype=torch.int32, device="cuda") * new,
        num_decodes=count if new == 1 else 0,
        longest_query=new,
        longest=length,
    )
    return pool, sequences


def median(launch: Callable[[], object]) -> float:
    """Seconds of a launch; the first one compiles and tunes."""
    from triton.testing import do_bench

    launch()
    return float(do_bench(launch, warmup=100, rep=500, return_mode="median")) / 1e3


if __name__ == "__main__":
    sys.exit(main())
