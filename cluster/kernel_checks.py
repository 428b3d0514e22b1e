"""What the doctor says of kernels: which run here, why, and what the compiled ones gain.

Does not cover: measuring that (``cluster.kernel_gain``).
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Sequence
from itertools import groupby

import torch

from cluster.kernel_gain import Gain
from core.config import EngineSpec
from kernels.dispatch import NATIVE_DTYPES, description, forced
from native import library

# By docs/PERFORMANCE.md, over all instruction sets; said where nothing can be measured.
_TYPICAL = "products 1 to 4×, attention 1.5 to 6×, sampling 2 to 18×"


def dtypes_of(engine: EngineSpec) -> tuple[torch.dtype, ...]:
    """Those that may be computed in: "auto" is the model's."""
    if engine.dtype == "auto":
        return NATIVE_DTYPES
    return (getattr(torch, engine.dtype),)


def kernels_here(engine: EngineSpec) -> tuple[bool, str]:
    """Whether workers compute with what is best here (or what was chosen), and what to do if they
    don't."""
    dtype = dtypes_of(engine)[0]
    if engine.kernels == "torch":
        with forced("torch"):
            return True, f"{description(engine.device, dtype)}: engine.kernels"
    said = description(engine.device, dtype)
    if engine.device == "cuda":
        return True, said
    if library.is_available() or dtype not in NATIVE_DTYPES:
        return not library.choice().damaged, said
    has_compiler = any(shutil.which(name) for name in ("g++", "c++"))
    fix = "" if has_compiler else "; install g++ first"
    gain = f"compiled ones typically gain: {_TYPICAL} (docs/PERFORMANCE.md, not measured here)"
    return False, f"{said}{fix}: slower, but all works; {gain}"


def can_gain(engine: EngineSpec) -> bool:
    """Whether there are compiled kernels to measure for workers like this."""
    natives = all(dtype in NATIVE_DTYPES for dtype in dtypes_of(engine))
    return engine.device == "cpu" and natives and library.is_available()


def gains_said(engine: EngineSpec, gains: Sequence[Gain]) -> tuple[bool, str]:
    """Whether the compiled kernels lose nowhere, or are not used; and the factors."""
    parts = []
    for subject, group in groupby(gains, key=lambda gain: gain.subject):
        numbers = ", ".join(f"{gain.operation} {gain.factor:.2f}×" for gain in group)
        parts.append(f"{subject}: {numbers}")
    said = f"times as fast as torch's: {'; '.join(parts)}"
    losses = [f"{gain.subject}, {gain.operation}" for gain in gains if gain.loses]
    if engine.kernels == "torch":
        return True, f"{said} (not used: engine.kernels is torch)"
    if losses:
        advice = "where that is most of the work, set `engine.kernels: torch`"
        return False, f"{said}. The compiled ones lose in {'; '.join(losses)}: {advice}"
    return True, said


def gpu_here() -> str:
    """Whether workers with ``engine.device: cuda`` would find a GPU, and Triton for it."""
    try:
        triton = f"Triton {importlib.metadata.version('triton')}"
    except importlib.metadata.PackageNotFoundError:
        triton = "no Triton"
    if not torch.cuda.is_available():
        return f"no CUDA device ({triton} is installed)" if triton[0] == "T" else "no CUDA device"
    return f"{torch.cuda.get_device_name()}, {triton}"
