"""What this machine can do, measured: streaming reads and matrix products, as the engine has them.

Taken is the fastest run of the fastest way, so that a roofline made of it is not understated: of
reads several reductions over memory far larger than the last-level cache, in huge pages where the
system gives them; of products several shapes, the model's own among them, by the engine's linear
layer, by oneDNN with packed weights and by a plain matmul.
"""

from __future__ import annotations

import contextlib
import mmap
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from cluster.engine_bench.roofline import MachineRates
from cluster.engine_bench.system_memory import read_buffer_bytes
from engine.model_config import ModelConfig
from kernels.linear import Linear

_RUNS = 6

# (rows, inputs, outputs): large products beside the model's own.
_LARGE = ((512, 1024, 4096), (1024, 2048, 2048))


def measure_rates(config: ModelConfig, dtype: torch.dtype, rows: int) -> MachineRates:
    """With torch's present number of threads. ``rows``: tokens of a prefill chunk."""
    read, read_by = _read_rate(read_buffer_bytes())
    flops, product_by = _product_rate(config, dtype, rows)
    return MachineRates(read, flops, read_by, product_by)


def _read_rate(size: int) -> tuple[float, str]:
    values = _memory(size)
    ways: dict[str, Callable[[], object]] = {
        "vector_norm": lambda: torch.linalg.vector_norm(values),
        "sum": lambda: values.sum(),
        "integer maximum": lambda: values.view(torch.int32).amax(),
    }
    rates = {name: size / _fastest(way) for name, way in ways.items()}
    best = max(rates, key=rates.__getitem__)
    return rates[best], f"{best} over {size / 2**20:.0f} MiB"


def _memory(size: int) -> torch.Tensor:
    """float32 ones, every page touched."""
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # A kernel without huge pages.
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.from_numpy(np.frombuffer(memory, dtype=np.float32)).fill_(1.0)


def _product_rate(config: ModelConfig, dtype: torch.dtype, rows: int) -> tuple[float, str]:
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes = {(rows, hidden, 2 * inner), (rows, inner, hidden), *_LARGE}
    rates = {}
    for shape in sorted(shapes):
        count, inputs, outputs = shape
        x, weight = torch.ones(count, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype)
        for name, way in _products(x, weight):
            rate = 2 * count * inputs * outputs / _fastest(way)
            rates[f"{name}, {count} × {inputs} × {outputs}"] = rate
    best = max(rates, key=rates.__getitem__)
    return rates[best], best


def _products(x: torch.Tensor, weight: torch.Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    """x [T, in] times weight [out, in] transposed, by all implementations that are here."""
    linear = Linear(weight)
    yield "the engine's linear layer", lambda: linear(x)
    yield "matmul", lambda: x @ weight.T
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, len(x))
        torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    except (AttributeError, NotImplementedError, RuntimeError):
        return  # No oneDNN here, or not for this dtype.
    yield (
        "oneDNN with packed weights",
        lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""),
    )


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest run after a warm-up."""
    work()
    times = []
    for _ in range(_RUNS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
