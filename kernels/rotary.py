"""Rotary position embedding (Su et al., 2021) of Q and K, and the write of K and V to the cache.

Pairs are (i, i + head_dim / 2), the Hugging Face order. Does not cover: where the frequencies come
from (``engine.rope_frequencies``), rotating only a part of a head.
"""

from __future__ import annotations

import torch

from kernels.compiled import by_dtype
from kernels.dispatch import implementation


def rotary_angles(
    positions: torch.Tensor, frequencies: torch.Tensor, scale: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """``scale`` * cos and ``scale`` * sin, each [T, head_dim / 2], of int64 positions [T].

    ``frequencies`` [head_dim / 2]: radians per position. The angles are computed in their dtype
    and rounded to ``dtype`` at the end.
    """
    angles = positions.to(frequencies.dtype)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    if scale != 1.0:
        cos, sin = cos * scale, sin * scale
    return cos.to(dtype), sin.to(dtype)


def rotate_and_store(
    qkv: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor],
    pool: torch.Tensor,
    layer: int,
    slots: torch.Tensor,
) -> torch.Tensor:
    """Rotates Q and K, writes K and V of ``layer`` to the cache, returns the rotated Q.

    ``qkv`` [T, heads + 2 * kv_heads, head_dim] holds Q, K, V, and may be overwritten; ``angles``
    as `rotary_angles` gives them; ``pool`` [blocks, layers, 2, kv_heads, block_size, head_dim];
    token t goes to ``slots[t]`` (int64 [T]): block id * block_size + offset. On a GPU a token with
    a negative slot is not stored: it pads a batch. Returns [T, heads, head_dim].
    """
    if implementation(qkv) == "triton":
        # Here, so that a machine without a GPU never loads Triton.
        from kernels.rotary_triton import launch_rotate_and_store

        return launch_rotate_and_store(qkv, angles, pool, layer, slots)
    if implementation(qkv) == "native":
        return _native(qkv.contiguous(), angles, pool, layer, slots)
    kv_heads, block_size = pool.shape[3], pool.shape[4]
    heads = qkv.shape[1] - 2 * kv_heads
    rotated = rotate(qkv[:, : heads + kv_heads], *angles)
    by_token = pool[:, layer].permute(0, 3, 1, 2, 4)
    keys_and_values = torch.stack((rotated[:, heads:], qkv[:, heads + kv_heads :]), dim=1)
    by_token[slots // block_size, slots % block_size] = keys_and_values
    return rotated[:, :heads]


def _native(
    qkv: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor],
    pool: torch.Tensor,
    layer: int,
    slots: torch.Tensor,
) -> torch.Tensor:
    """Slots are not checked: one that the pool does not have would be written elsewhere."""
    _, layers, _, kv_heads, block_size, dim = pool.shape
    tokens, all_heads, _ = qkv.shape
    heads = all_heads - 2 * kv_heads
    q = qkv.new_empty(tokens, heads, dim)
    cos, sin = angles
    by_dtype("rotate_and_store", qkv.dtype, qkv.numel())(
        qkv.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        pool.data_ptr(),
        slots.data_ptr(),
        q.data_ptr(),
        tokens,
        heads,
        kv_heads,
        dim,
        layers,
        layer,
        block_size,
    )
    return q


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
