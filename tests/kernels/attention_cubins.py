"""Every head size × dtype × configuration of the attention kernels, compiled for GPUs.

For processes in which kernels are compiled (``cubin.run_python``).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
import triton
from attention_cases import HEAD_DIMS
from cubin import POINTERS, compile_kernel

from kernels.autotune import decode_configs, fitting_decode, fitting_prefill, prefill_configs

# Bytes of registers of a thread that may go to local memory: little beside what a tile loads.
MOST_SPILLED = 512
# Not every product with these is compiled: they take turns.
GROUPS = (1, 3, 4, 7, 8)
BLOCK_SIZES = (16, 32, 5, 64)

_INTEGERS = ("layer", "table_stride", "block_stride", "window")


@dataclass(frozen=True, slots=True)
class Variant:
    """A kernel as it is launched: ``number`` says whose turn it is of what else can vary."""

    kernel: str
    dtype: str
    head_dim: int
    config: dict[str, int]
    options: dict[str, int]
    number: int

    def __str__(self) -> str:
        sizes = " ".join(f"{name}={value}" for name, value in (self.config | self.options).items())
        return f"{self.kernel} {self.dtype} {self.head_dim} {sizes}"


def all_variants() -> list[Variant]:
    return [variant for dtype in POINTERS for variant in variants_of(dtype)]


def variants_of(dtype: str) -> list[Variant]:
    numbers = itertools.count()
    return [
        Variant(kernel, dtype, head_dim, config, options, next(numbers))
        for head_dim in HEAD_DIMS
        for kernel, config, options in _configurations(dtype, head_dim)
    ]


def few_variants() -> list[Variant]:
    """Each head size, dtype and kernel at least once."""
    every = all_variants()
    chosen, seen = [], set[object]()
    for variant in every[::7] + every:
        names = {variant.head_dim, variant.dtype, variant.kernel}
        if not names <= seen:
            chosen.append(variant)
            seen |= names
    return chosen


def _configurations(
    dtype: str, head_dim: int
) -> Iterator[tuple[str, dict[str, int], dict[str, int]]]:
    arguments = {"pool": torch.empty(0, dtype=getattr(torch, dtype))}
    padded = triton.next_power_of_2(head_dim)
    for kernel, fitting, configs in (
        ("decode", fitting_decode, decode_configs()),
        ("prefill", fitting_prefill, prefill_configs()),
    ):
        for config in fitting(configs, arguments, PADDED_DIM=padded):
            options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
            yield kernel, config.kwargs, options
    yield "combine", {}, {}


def compile_variants(variants: list[Variant], capabilities: tuple[int, ...]) -> None:
    """Prints a line for each; AssertionError where one does not fit the GPU or spills much."""
    jobs = list(itertools.product(variants, capabilities))
    workers = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for line in pool.map(_compile, jobs, chunksize=4):
            print(line)


def _compile(job: tuple[Variant, int]) -> str:
    variant, capability = job
    kernel, signature, constants = _LAUNCHES[variant.kernel](variant)
    made = compile_kernel(
        kernel, capability, signature, constants, ["block_stride"], **variant.options
    )
    line = (
        f"sm{capability} {variant}: {made.shared} bytes of shared memory, "
        f"{made.registers} registers, {made.spilled} bytes spilled"
    )
    assert made.spilled <= MOST_SPILLED, line
    return line


def _decode(variant: Variant) -> tuple[Any, dict[str, str], dict[str, object]]:
    from kernels.decode_attention_triton import decode_kernel

    parts = dict.fromkeys(("part_values", "part_sums"), "*fp32")
    integers = dict.fromkeys((*_INTEGERS, "splits"), "i32")
    constants = _constants(variant) | {"SPLIT": variant.number % 3 > 0}
    constants["ROWS"] = max(16, triton.next_power_of_2(constants["GROUP"]))
    return decode_kernel, _tensors(variant) | parts | integers | {"scale": "fp32"}, constants


def _prefill(variant: Variant) -> tuple[Any, dict[str, str], dict[str, object]]:
    from kernels.prefill_attention_triton import prefill_kernel

    names = (*_INTEGERS, "kv_heads", "first_sequence", "sequences")
    signature = _tensors(variant) | {"first_rows": "*i32"} | dict.fromkeys(names, "i32")
    return prefill_kernel, signature | {"scale": "fp32"}, _constants(variant)


def _combine(variant: Variant) -> tuple[Any, dict[str, str], dict[str, object]]:
    from kernels.decode_attention_triton import combine_kernel

    signature = {"out": POINTERS[variant.dtype], "splits": "i32"}
    signature |= dict.fromkeys(("part_values", "part_sums"), "*fp32")
    padded = triton.next_power_of_2(variant.head_dim)
    sizes = {"HEAD_DIM": variant.head_dim, "PADDED_DIM": padded, "MOST": 128, "CHUNK": 8}
    return combine_kernel, signature, sizes


_LAUNCHES = {"decode": _decode, "prefill": _prefill, "combine": _combine}


def _tensors(variant: Variant) -> dict[str, str]:
    of_dtype = dict.fromkeys(("q", "pool", "out"), POINTERS[variant.dtype])
    return of_dtype | dict.fromkeys(("block_tables", "lengths"), "*i32")


def _constants(variant: Variant) -> dict[str, Any]:
    return {
        "HEAD_DIM": variant.head_dim,
        "PADDED_DIM": triton.next_power_of_2(variant.head_dim),
        "GROUP": GROUPS[variant.number % len(GROUPS)],
        "BLOCK_SIZE": BLOCK_SIZES[variant.number % len(BLOCK_SIZES)],
        "WINDOWED": variant.number % 2 == 1,
        **variant.config,
    }
