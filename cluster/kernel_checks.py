"""What the doctor says of kernels: which run here, why, and what others gain, measured now.

Does not cover: the engine as a whole, for which there is `crossdock bench engine`.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from kernels.dispatch import NATIVE_DTYPES, Implementation, description, forced
from kernels.linear import Linear
from kernels.native import library

# Together larger than most caches, as a model's weights are.
_WEIGHTS, _OUTPUTS, _INPUTS = 4, 3072, 1024
_MANY_ROWS = 256
_RUNS = 4


def kernels_here() -> tuple[bool, str]:
    """Whether CPU workers compute with the compiled kernels, and what to do if they don't."""
    said = description("cpu", torch.bfloat16)
    if library.is_available():
        return True, said
    has_compiler = any(shutil.which(name) for name in ("g++", "c++"))
    fix = "" if has_compiler else "; install g++ first"
    return False, f"{said}{fix}: slower, but all works"


def gpu_here() -> str:
    """Whether workers with ``engine.device: cuda`` would find a GPU, and Triton for it."""
    try:
        triton = f"Triton {importlib.metadata.version('triton')}"
    except importlib.metadata.PackageNotFoundError:
        triton = "no Triton"
    if not torch.cuda.is_available():
        return f"no CUDA device ({triton} is installed)" if triton[0] == "T" else "no CUDA device"
    return f"{torch.cuda.get_device_name()}, {triton}"


def native_gain() -> str:
    """How many times as fast the compiled products are as torch's, on one core; about a second."""
    with _one_thread():
        return "; ".join(_gain_of(dtype) for dtype in NATIVE_DTYPES)


def _gain_of(dtype: torch.dtype) -> str:
    native, other = _seconds("native", dtype), _seconds("torch", dtype)
    one, many = (other[i] / native[i] for i in range(2))
    name = str(dtype).removeprefix("torch.")
    return f"{name}: native is {one:.2f}× torch at one row, {many:.2f}× at {_MANY_ROWS}"


def _seconds(way: Implementation, dtype: torch.dtype) -> tuple[float, float]:
    """Of one row times all weights, and of many times one."""
    weight = torch.full((_OUTPUTS, _INPUTS), 0.01, dtype=dtype)
    x = torch.full((_MANY_ROWS, _INPUTS), 0.01, dtype=dtype)
    with torch.inference_mode(), forced(way):
        layers = [Linear(weight) for _ in range(_WEIGHTS)]
        row = x[:1]
        return _fastest(lambda: [layer(row) for layer in layers]), _fastest(lambda: layers[0](x))


def _fastest(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(_RUNS):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


@contextmanager
def _one_thread() -> Iterator[None]:
    """Of the compiled library one is the default, which nothing in this process changes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
