"""Which implementation of an operation runs: one rule for all of them.

Triton on CUDA tensors. On CPU tensors the compiled library (``native``), where it was built
for this machine and knows the dtype; else torch's own operations, which need no compiler and take
every dtype. All give the same values up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from native import library

Implementation = Literal["triton", "native", "torch"]

NATIVE_DTYPES = (torch.bfloat16, torch.float32)

_forced: Implementation | None = None


def implementation(x: torch.Tensor) -> Implementation:
    """What computes an operation whose activations are like ``x``."""
    if _forced is not None and _forced != "native":
        return _forced
    if x.is_cuda and _forced is None:
        return "triton"
    if x.is_cpu and x.dtype in NATIVE_DTYPES and library.is_available():
        return "native"
    return "torch"


def description(device: str, dtype: torch.dtype) -> str:
    """What computes on ``device``, for people: with the reason on a CPU."""
    if _forced is not None:
        return f"{_forced} (chosen)"
    if device.startswith("cuda"):
        return "triton"
    if dtype not in NATIVE_DTYPES:
        return f"torch (none is compiled for {str(dtype).removeprefix('torch.')})"
    return f"{'native' if library.is_available() else 'torch'} ({library.choice().reason})"


def force(choice: Implementation | None) -> None:
    """Has ``choice`` run in this process, and torch where "native" can't; None: the rule again.

    A model keeps weights in the layout of the implementation that was in force when it was made.
    """
    global _forced
    _forced = choice


@contextmanager
def forced(choice: Implementation | None) -> Iterator[None]:
    """`force` for a while."""
    before = _forced
    force(choice)
    try:
        yield
    finally:
        force(before)
