"""The gate of a Llama MLP: silu(gate) * up, both from one fused projection."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kernels.compiled import by_dtype
from kernels.dispatch import implementation


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """[T, 2 * n], gate first, to [T, n], in the dtype given."""
    if implementation(gate_up) == "triton":
        # Here, so that a machine without a GPU never loads Triton.
        from kernels.silu_mul_triton import launch_silu_mul

        return launch_silu_mul(gate_up)
    if implementation(gate_up) == "native":
        return _native(gate_up.contiguous())
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def _native(gate_up: torch.Tensor) -> torch.Tensor:
    rows, both = gate_up.shape
    out = gate_up.new_empty(rows, both // 2)
    multiply = by_dtype("silu_mul", gate_up.dtype, out.numel())
    multiply(gate_up.data_ptr(), out.data_ptr(), rows, both // 2)
    return out


def silu_mul_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """The same, written out."""
    half = gate_up.shape[-1] // 2
    gate, up = gate_up[..., :half], gate_up[..., half:]
    return gate / (1 + torch.exp(-gate)) * up
