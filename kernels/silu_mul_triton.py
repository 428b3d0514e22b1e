"""The Triton kernel of ``kernels.silu_mul``. Loaded on GPUs only, and by tests."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_TILE = 1024
_WARPS = 4


@triton.jit
def silu_mul_kernel(gate_up, out, gate_up_stride, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """Program (t, i) takes columns i × TILE … of row t."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = column < WIDTH
    in_gate = gate_up + row * gate_up_stride + column
    gate = tl.load(in_gate, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(in_gate + WIDTH, mask=inside, other=0.0).to(tl.float32)
    product = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * WIDTH + column, product.to(out.dtype.element_ty), mask=inside)


def launch_silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """``gate_up`` [T, 2 × n], rows contiguous, to a new contiguous [T, n]."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device)
    if rows:
        silu_mul_kernel[(rows, triton.cdiv(width, _TILE))](
            gate_up, out, gate_up.stride(0), WIDTH=width, TILE=_TILE, num_warps=_WARPS
        )
    return out
