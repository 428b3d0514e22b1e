"""The Triton kernels of ``kernels.rms_norm``. Loaded on GPUs only, and by tests.

A program holds a whole row (or some heads of one) in registers, so memory is read once and written
once. Sums never cross programs: a row's result does not depend on the other rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Elements of a tile for each thread: 16 bytes of bfloat16, the widest load there is.
_PER_THREAD = 8
_MOST_WARPS = 16
# Elements that a program of the heads' norm takes, as whole heads.
_HEADS_TILE = 1024


@triton.jit
def rms_norm_kernel(
    x,
    residual,
    weight,
    out,
    x_stride,
    residual_stride,
    eps,
    ADD: tl.constexpr,
    HIDDEN: tl.constexpr,
    TILE: tl.constexpr,
):
    """Program t norms row t; with ADD it first adds x to the residual's row, rounded, in place."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, TILE)
    inside = column < HIDDEN
    value = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        in_residual = residual + row * residual_stride + column
        value += tl.load(in_residual, mask=inside, other=0.0).to(tl.float32)
        total = value.to(residual.dtype.element_ty)
        tl.store(in_residual, total, mask=inside)
        value = total.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, axis=0) / HIDDEN + eps)
    weights = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    normed = value * scale * weights
    tl.store(out + row * HIDDEN + column, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def rms_norm_heads_kernel(
    x,
    weights,
    x_stride,
    eps,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEADS_TILE: tl.constexpr,
    DIM_TILE: tl.constexpr,
):
    """Program (t, i) norms heads i × HEADS_TILE … of token t where they lie."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS_TILE + tl.arange(0, HEADS_TILE)
    column = tl.arange(0, DIM_TILE)
    inside = (head < HEADS)[:, None] & (column < HEAD_DIM)[None, :]
    at = head[:, None] * HEAD_DIM + column[None, :]
    value = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, axis=1) / HEAD_DIM + eps)
    # Rounded before the weights come in, as the other paths do.
    normed = (value * scale[:, None]).to(x.dtype.element_ty).to(tl.float32)
    normed *= tl.load(weights + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(x + row * x_stride + at, normed.to(x.dtype.element_ty), mask=inside)


def launch_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``x`` [T, hidden], rows contiguous, to a new contiguous tensor; ``weight`` [hidden]."""
    return _launch_rows(x, None, weight, eps)


def launch_add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """``residual`` [T, hidden] += ``x`` in place; gives the norm of the (rounded) sum."""
    return _launch_rows(x, residual, weight, eps)


def launch_rms_norm_heads(x: torch.Tensor, weights: torch.Tensor, eps: float) -> None:
    """``x`` [T, heads, head_dim], a token's heads contiguous; ``weights`` [heads, head_dim]."""
    heads, head_dim = x.shape[1:]
    if not len(x):
        return
    heads_tile, dim_tile = heads_tiles(heads, head_dim)
    rms_norm_heads_kernel[(len(x), triton.cdiv(heads, heads_tile))](
        x,
        weights,
        x.stride(0),
        eps,
        HEADS=heads,
        HEAD_DIM=head_dim,
        HEADS_TILE=heads_tile,
        DIM_TILE=dim_tile,
        num_warps=warps(heads_tile * dim_tile),
    )


def heads_tiles(heads: int, head_dim: int) -> tuple[int, int]:
    """How many heads a program takes, and the power of two that holds a head."""
    dim_tile = triton.next_power_of_2(head_dim)
    most = max(1, _HEADS_TILE // dim_tile)
    return min(most, triton.next_power_of_2(heads)), dim_tile


def warps(elements: int) -> int:
    """Warps for a program that holds a tile of so many elements (a power of two)."""
    return max(1, min(_MOST_WARPS, elements // (32 * _PER_THREAD)))


def _launch_rows(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    rows, hidden = x.shape
    out = torch.empty((rows, hidden), dtype=x.dtype, device=x.device)
    if not rows:
        return out
    tile = triton.next_power_of_2(hidden)
    sums = x if residual is None else residual
    rms_norm_kernel[(rows,)](
        x,
        sums,
        weight,
        out,
        x.stride(0),
        sums.stride(0),
        eps,
        ADD=residual is not None,
        HIDDEN=hidden,
        TILE=tile,
        num_warps=warps(tile),
    )
    return out
