"""The Triton kernel of ``kernels.rotary``: Q and K rotated, K and V written to the paged pool.

One pass: Q, K and V are read once and written once. Loaded on GPUs only, and by tests.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Elements of half a head's tile that a program takes, as whole heads.
_TILE = 512


# A layer's number must not be specialized on: 0, 1 and 16 would each be another kernel.
@triton.jit(do_not_specialize=["layer"])
def rotate_and_store_kernel(
    qkv,
    cos,
    sin,
    pool,
    slots,
    q,
    layer,
    layers,
    block_size,
    qkv_stride,
    cos_stride,
    sin_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HEADS_TILE: tl.constexpr,
    HALF_TILE: tl.constexpr,
):
    """Program (t, i) takes heads i × HEADS_TILE … of token t: those of Q, of K, then of V.

    A negative slot writes nothing to the pool. Offsets are 64-bit: pools exceed 2³¹ elements.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS_TILE + tl.arange(0, HEADS_TILE)
    column = tl.arange(0, HALF_TILE)
    in_half = column < HALF
    inside = (head < HEADS + 2 * KV_HEADS)[:, None] & in_half[None, :]
    is_query, is_value = head < HEADS, head >= HEADS + KV_HEADS

    source = qkv + token * qkv_stride + head[:, None] * (2 * HALF) + column[None, :]
    first = tl.load(source, mask=inside, other=0.0)
    second = tl.load(source + HALF, mask=inside, other=0.0)
    turn_cos = tl.load(cos + token * cos_stride + column, mask=in_half, other=0.0).to(tl.float32)
    turn_sin = tl.load(sin + token * sin_stride + column, mask=in_half, other=0.0).to(tl.float32)
    x, y = first.to(tl.float32), second.to(tl.float32)
    turned_x = (x * turn_cos[None, :] - y * turn_sin[None, :]).to(first.dtype)
    turned_y = (y * turn_cos[None, :] + x * turn_sin[None, :]).to(first.dtype)
    first = tl.where(is_value[:, None], first, turned_x)
    second = tl.where(is_value[:, None], second, turned_y)

    to_query = q + (token * HEADS + head[:, None]) * (2 * HALF) + column[None, :]
    tl.store(to_query, first, mask=inside & is_query[:, None])
    tl.store(to_query + HALF, second, mask=inside & is_query[:, None])

    slot = tl.load(slots + token)
    if slot >= 0:
        block, offset = slot // block_size, slot % block_size
        side, kv_head = is_value.to(tl.int64), (head - HEADS) % KV_HEADS
        row = ((block * layers + layer) * 2 + side) * KV_HEADS + kv_head
        to_pool = pool + ((row * block_size + offset) * (2 * HALF))[:, None] + column[None, :]
        stored = inside & (head >= HEADS)[:, None]
        tl.store(to_pool, first, mask=stored)
        tl.store(to_pool + HALF, second, mask=stored)


def launch_rotate_and_store(
    qkv: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor],
    pool: torch.Tensor,
    layer: int,
    slots: torch.Tensor,
) -> torch.Tensor:
    """Arguments as of ``kernels.rotary.rotate_and_store``; a token's heads are contiguous.

    Returns the rotated Q as a new contiguous tensor; that of a negative slot as well.
    """
    tokens, all_heads, head_dim = qkv.shape
    layers, _, kv_heads, block_size = pool.shape[1:5]
    heads = all_heads - 2 * kv_heads
    q = torch.empty((tokens, heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    if not tokens:
        return q
    cos, sin = angles
    heads_tile, half_tile = rotary_tiles(all_heads, head_dim)
    rotate_and_store_kernel[(tokens, triton.cdiv(all_heads, heads_tile))](
        qkv,
        cos,
        sin,
        pool,
        slots,
        q,
        layer,
        layers,
        block_size,
        qkv.stride(0),
        cos.stride(0),
        sin.stride(0),
        HEADS=heads,
        KV_HEADS=kv_heads,
        HALF=head_dim // 2,
        HEADS_TILE=heads_tile,
        HALF_TILE=half_tile,
        num_warps=rotary_warps(heads_tile * half_tile),
    )
    return q


def rotary_tiles(heads: int, head_dim: int) -> tuple[int, int]:
    """How many heads a program takes, and the power of two that holds half a head."""
    half_tile = triton.next_power_of_2(head_dim // 2)
    return min(max(1, _TILE // half_tile), triton.next_power_of_2(heads)), half_tile


def rotary_warps(elements: int) -> int:
    """Warps for a tile of so many pairs; 4 pairs a thread."""
    return max(1, elements // 128)
