"""Root-mean-square layer norm (Zhang and Sennrich, 2019) over the last axis."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kernels.compiled import by_dtype
from kernels.dispatch import implementation


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``weight * x / sqrt(mean(x²) + eps)`` for x [T, hidden]; computed in at least float32."""
    if implementation(x) == "triton":
        # Here and below, so that a machine without a GPU never loads Triton.
        from kernels.rms_norm_triton import launch_rms_norm

        return launch_rms_norm(x, weight, eps)
    if implementation(x) == "native":
        return _native(x.contiguous(), weight, eps)
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """``residual += x`` in place, and the norm of the sum; both [T, hidden]."""
    if implementation(x) == "triton":
        from kernels.rms_norm_triton import launch_add_rms_norm

        return launch_add_rms_norm(x, residual, weight, eps)
    if implementation(x) == "native":
        return _add_native(x.contiguous(), residual, weight, eps)
    return rms_norm(residual.add_(x), weight, eps)


def rms_norm_heads(x: torch.Tensor, weights: torch.Tensor, eps: float) -> None:
    """In place, x [T, heads, head_dim], each head with its own row of weights [heads, head_dim].

    A token's heads are contiguous, its row may stand beside others. Rounded to the dtype of ``x``
    before the weights come in, as transformers does.
    """
    if implementation(x) == "triton":
        from kernels.rms_norm_triton import launch_rms_norm_heads

        launch_rms_norm_heads(x, weights, eps)
        return
    if implementation(x) == "native":
        _heads_native(x, weights, eps)
        return
    x.copy_(F.rms_norm(x, (x.shape[-1],), None, eps).mul_(weights))


def _native(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    out = torch.empty_like(x)
    rows, width = x.shape
    norm = by_dtype("rms_norm", x.dtype, rows * width)
    norm(x.data_ptr(), weight.data_ptr(), out.data_ptr(), rows, width, eps)
    return out


def _add_native(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    out = torch.empty_like(x)
    rows, width = x.shape
    norm = by_dtype("add_rms_norm", x.dtype, rows * width)
    pointers = x.data_ptr(), residual.data_ptr(), weight.data_ptr(), out.data_ptr()
    norm(*pointers, rows, width, eps)
    return out


def _heads_native(x: torch.Tensor, weights: torch.Tensor, eps: float) -> None:
    rows, heads, width = x.shape
    norm = by_dtype("rms_norm_heads", x.dtype, rows * heads * width)
    norm(x.data_ptr(), weights.data_ptr(), rows, x.stride(0), heads, width, eps)


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The norm, written out, in the dtype of ``x``."""
    return weight * x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + eps)
