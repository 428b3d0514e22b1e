"""What the device of a rank does at best: declared in the config, by its data sheet, or measured.

Measured is what this process reaches with its own threads, in a fraction of a second: the fastest
of a few runs, of the engine's linear layer and of torch's product, and of reading as much memory as
the model's weights take (at most 256 MiB). Beside others who compute it is understated.
Does not cover: the careful measurement of a machine (``cluster.engine_bench.machine_rates``).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from core.peak_rates import DATA_SHEET, MEASURED, PeakRates
from core.step_cost import CostModel
from core.worker_settings import WorkerSettings
from engine.dtypes import torch_dtype
from kernels.linear import Linear
from tuner.profile.hardware import BUILT_IN

_RUNS = 4
_ROWS, _WIDTH = 256, 1024
_MOST_BYTES = 256 * 2**20


def peak_rates(settings: WorkerSettings, costs: CostModel) -> PeakRates:
    """Of the rank that this process is; its threads are set."""
    if settings.peak is not None:
        return settings.peak
    if settings.device == "cuda":
        by_name = of_data_sheet(torch.cuda.get_device_name())
        if by_name is not None:
            return by_name
    weights = (costs.layer_weights + costs.head_weights) * costs.itemsize
    size = min(_MOST_BYTES, weights // settings.shape.num_ranks)
    device, dtype = torch.device(settings.device), torch_dtype(settings.dtype)
    return PeakRates(_product_rate(dtype, device), _read_rate(size, device), MEASURED)


def of_data_sheet(device_name: str) -> PeakRates | None:
    """``device_name``: as CUDA says it, such as "NVIDIA H100 80GB HBM3"."""
    words = device_name.lower().replace("-", " ").split()
    for name, hardware in BUILT_IN.items():
        if name in words:
            return PeakRates(hardware.flops, hardware.memory_bandwidth, DATA_SHEET)
    return None


def _product_rate(dtype: torch.dtype, device: torch.device) -> float:
    x = torch.ones(_ROWS, _WIDTH, dtype=dtype, device=device)
    weight = torch.ones(_WIDTH, _WIDTH, dtype=dtype, device=device)
    linear = Linear(weight)
    ways: tuple[Callable[[], object], ...] = (lambda: linear(x), lambda: x @ weight.T)
    return 2 * _ROWS * _WIDTH * _WIDTH / min(_fastest(way, device) for way in ways)


def _read_rate(size: int, device: torch.device) -> float:
    values = torch.ones(max(1, size // 4), dtype=torch.float32, device=device)
    return 4 * len(values) / _fastest(lambda: torch.linalg.vector_norm(values), device)


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest run after a warm-up."""
    work()
    times = []
    for _ in range(_RUNS):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - started)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
