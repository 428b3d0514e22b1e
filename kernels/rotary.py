"""Rotary position embedding (Su et al., 2021) of Q and K, and the write of K and V to the cache.

Pairs are (i, i + head_dim / 2), the Hugging Face order. Plain frequencies only: no scaling.
"""

from __future__ import annotations

import torch


def rotary_angles(
    positions: torch.Tensor, head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, each [T, head_dim / 2], of int64 positions [T].

    The angles are computed in float32 (float64 if that is asked for) and rounded at the end.
    """
    precise = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, head_dim, 2, dtype=precise, device=positions.device) / head_dim
    angles = positions.to(precise)[:, None] * (1.0 / theta**exponents)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate_and_store(
    qkv: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor],
    layer_pool: torch.Tensor,
    block_ids: torch.Tensor,
    offsets: torch.Tensor,
) -> torch.Tensor:
    """Rotates Q and K of ``qkv``, writes K and V to the cache, returns the rotated Q.

    ``qkv`` [T, heads + 2 * kv_heads, head_dim] holds Q, K, V heads in this order; ``layer_pool``
    [blocks, 2, kv_heads, block_size, head_dim] is one layer's view of the pool; token t goes to
    ``offsets[t]`` of block ``block_ids[t]`` (int64 [T]). Returns [T, heads, head_dim].
    """
    kv_heads = layer_pool.shape[2]
    heads = qkv.shape[1] - 2 * kv_heads
    rotated = rotate(qkv[:, : heads + kv_heads], *angles)
    by_token = layer_pool.permute(0, 3, 1, 2, 4)
    values = torch.stack((rotated[:, heads:], qkv[:, heads + kv_heads :]), dim=1)
    by_token[block_ids, offsets] = values
    return rotated[:, :heads]


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [T, heads, head_dim] turned by the angles [T, head_dim / 2] of its positions."""
    half = x.shape[-1] // 2
    cos, sin = cos[:, None], sin[:, None]
    out = x * torch.cat((cos, cos), dim=-1)
    out[..., :half].addcmul_(x[..., half:], sin, value=-1)
    out[..., half:].addcmul_(x[..., :half], sin)
    return out


def rotate_reference(x: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """The same as a multiplication of complex numbers, in the dtype of ``x``."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    turns = torch.polar(
        torch.ones(len(positions), half, dtype=torch.float64),
        positions.to(torch.float64)[:, None] * frequencies,
    )
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double()) * turns[:, None]
    return torch.cat((pairs.real, pairs.imag), dim=-1).to(x.dtype)
