"""What a GPU can do, measured: copies within its memory, and large matrix products.

Does not cover: CPUs (``cluster.engine_bench.machine_rates``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cluster.engine_bench.roofline import MachineRates

_RUNS = 6
# Launches that are timed together: the one wait after them is then next to nothing.
_LAUNCHES = 10


@dataclass(frozen=True, slots=True)
class RateSizes:
    """``copied``: bytes of a copy, far more than any cache; ``matrix``: rows and columns."""

    copied: int = 2 << 30
    matrix: int = 8192

    @property
    def held_bytes(self) -> int:
        """Of device memory, at most, with numbers of 4 bytes."""
        return max(2 * self.copied, 3 * 4 * self.matrix**2)


SIZES = RateSizes()


def measure_device_rates(
    dtype: torch.dtype, device: torch.device, sizes: RateSizes = SIZES
) -> MachineRates:
    """Copies count what they read and what they write. Gives the memory back."""
    rates = MachineRates(
        _copy_rate(sizes.copied, device),
        _product_rate(sizes.matrix, dtype, device),
        f"a copy of {sizes.copied / 2**20:.0f} MiB, read and written",
        f"matmul, {sizes.matrix} × {sizes.matrix} × {sizes.matrix}",
    )
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return rates


def _copy_rate(size: int, device: torch.device) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _fastest(lambda: target.copy_(source), device)


def _product_rate(size: int, dtype: torch.dtype, device: torch.device) -> float:
    # Not ones: with numbers that hardly change their bits a GPU draws less power, and is faster.
    a = torch.randn(size, size, device=device).to(dtype)
    product = torch.empty_like(a)
    return 2 * size**3 / _fastest(lambda: torch.mm(a, a, out=product), device)


def _fastest(launch: Callable[[], object], device: torch.device) -> float:
    """Seconds of one launch in the fastest run after a warm-up."""
    launch()
    return min(_timed(launch, device) for _ in range(_RUNS)) / _LAUNCHES


def _timed(launch: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    for _ in range(_LAUNCHES):
        launch()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    """Until all that was enqueued there is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
