"""What must hold for the Triton kernels of norm, rotation and gate: for tests and for GPUs.

References are those of ``kernels``, in float64; every output and every cell that must not be
touched holds NaN before a kernel runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import torch
from cubin import POINTERS, compile_kernel
from hypothesis import given
from hypothesis import strategies as st

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDTHS = (576, 2048, 4096, 5120, 8192)
HEAD_DIMS = (64, 80, 96, 112, 128, 160, 192, 256)
# Query and KV heads: grouped, one KV head, as many as query heads.
HEADS = (32, 8)
EPS = 1e-5

# Half a unit in the last place of a result, with room for float32's own error before it. A whole
# unit of bfloat16, because Triton's interpreter cuts off where a GPU rounds.
TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 2**-7 + 1e-4, torch.float16: 2**-11 + 1e-4}

rows = st.integers(0, 4)
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**31)
widths = st.integers(1, 300) | st.sampled_from((576, 5120))
head_dims = st.integers(1, 40).map(lambda half: 2 * half) | st.sampled_from(HEAD_DIMS)


class Noise:
    """Seeded tensors; a row-strided one stands between columns of NaN."""

    def __init__(self, seed: int, dtype: torch.dtype, device: str = "cpu") -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype, self.device = dtype, device

    def __call__(self, *shape: int) -> torch.Tensor:
        values = torch.randn(*shape, generator=self.generator, dtype=torch.float64)
        return (3 * values).to(self.dtype).to(self.device)

    def strided(self, rows: int, *shape: int) -> torch.Tensor:
        whole = torch.full((rows, shape[0] + 2, *shape[1:]), torch.nan, dtype=self.dtype)
        inner = whole.to(self.device)[:, 1:-1]
        return inner.copy_(self(rows, *shape))


def check_rms_norm(seed: int, rows: int, width: int, dtype: torch.dtype, device: str) -> None:
    from kernels.rms_norm import rms_norm_reference
    from kernels.rms_norm_triton import launch_add_rms_norm, launch_rms_norm

    noise = Noise(seed, dtype, device)
    x, weight = noise.strided(rows, width), noise(width)
    exact = rms_norm_reference(x.double(), weight.double(), EPS)
    _check_close(launch_rms_norm(x, weight, EPS), exact)

    residual = noise.strided(rows, width)
    total, before = x.double() + residual.double(), x.clone()
    normed = launch_add_rms_norm(x, residual, weight, EPS)
    _check_close(residual, total)
    assert torch.equal(x, before)
    # Of what was stored, not of the sum before it was rounded.
    _check_close(normed, rms_norm_reference(residual.double(), weight.double(), EPS))


def check_rms_norm_heads(
    seed: int, rows: int, heads: int, dim: int, dtype: torch.dtype, device: str
) -> None:
    from kernels.rms_norm import rms_norm_reference
    from kernels.rms_norm_triton import launch_rms_norm_heads

    noise = Noise(seed, dtype, device)
    x, weights = noise.strided(rows, heads, dim), noise(heads, dim)
    beside = x._base
    assert beside is not None
    exact = rms_norm_reference(x.double(), weights.double(), EPS)
    launch_rms_norm_heads(x, weights, EPS)
    # Rounded twice: before the weights come in, and after.
    _check_close(x, exact, 2 * TOLERANCE[dtype])
    assert beside[:, [0, -1]].isnan().all()


def check_silu_mul(seed: int, rows: int, width: int, dtype: torch.dtype, device: str) -> None:
    from kernels.silu_mul import silu_mul_reference
    from kernels.silu_mul_triton import launch_silu_mul

    gate_up = Noise(seed, dtype, device).strided(rows, 2 * width)
    gate_up[:, :1] = -200.0  # exp(200) is more than float32 holds
    _check_close(launch_silu_mul(gate_up), silu_mul_reference(gate_up.double()))


def check_rotate_and_store(
    seed: int,
    slots: list[int],
    heads: tuple[int, int],
    dim: int,
    shape: tuple[int, int, int],
    layer: int,
    dtype: torch.dtype,
    device: str,
) -> None:
    """``shape`` of the pool: (blocks, layers, block_size); ``heads``: of Q, of K and V each."""
    from kernels.rotary_triton import launch_rotate_and_store

    query, kv = heads
    blocks, layers, block_size = shape
    noise = Noise(seed, dtype, device)
    qkv = noise.strided(len(slots), query + 2 * kv, dim)
    radians = noise(len(slots), dim // 2).double()
    cos, sin = radians.cos().to(dtype), radians.sin().to(dtype)
    pool = torch.full((blocks, layers, 2, kv, block_size, dim), torch.nan, dtype=dtype)
    pool, before = pool.to(device), qkv.clone()
    where = torch.tensor(slots, dtype=torch.int64, device=device)

    q = launch_rotate_and_store(qkv, (cos, sin), pool, layer, where)

    turned = _turned(qkv.double(), cos.double(), sin.double())
    assert torch.equal(qkv, before)
    _check_close(q, turned[:, :query], scale=qkv)
    for token, slot in enumerate(slots):
        if slot >= 0:
            cell = pool[slot // block_size, layer, :, :, slot % block_size]
            _check_close(cell[0], turned[token, query : query + kv], scale=qkv)
            assert torch.equal(cell[1], qkv[token, query + kv :])
            cell.fill_(torch.nan)
    assert pool.isnan().all()


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _check_close(
    result: torch.Tensor,
    exact: torch.Tensor,
    tolerance: float | None = None,
    scale: torch.Tensor | None = None,
) -> None:
    """``scale``: inputs whose differences the result is; its error is relative to these."""
    tolerance = TOLERANCE[result.dtype] if tolerance is None else tolerance
    largest = 1.0 if scale is None or not scale.numel() else float(scale.abs().max())
    assert result.shape == exact.shape
    torch.testing.assert_close(
        result.double(), exact, rtol=tolerance, atol=4e-6 * largest, equal_nan=False
    )


def check_kernels(device: str = "cpu", examples: int = 25) -> None:
    """In a process with TRITON_INTERPRET=1, or on a GPU."""
    # torch then fills every new tensor with NaN.
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3, device=device).isnan().all()
        _check_kernels(device, examples)
    finally:
        torch.use_deterministic_algorithms(False)


def _check_kernels(device: str, examples: int) -> None:
    check = hypothesis.settings(max_examples=examples, deadline=None, database=None)

    @check
    @given(seeds, rows, widths, dtypes)
    def norms(seed: int, rows: int, width: int, dtype: torch.dtype) -> None:
        check_rms_norm(seed, rows, width, dtype, device)

    @check
    @given(seeds, rows, st.integers(1, 20), head_dims, dtypes)
    def norms_of_heads(seed: int, rows: int, heads: int, dim: int, dtype: torch.dtype) -> None:
        check_rms_norm_heads(seed, rows, heads, dim, dtype, device)

    @check
    @given(seeds, rows, widths, dtypes)
    def gates(seed: int, rows: int, width: int, dtype: torch.dtype) -> None:
        check_silu_mul(seed, rows, width, dtype, device)

    @check
    @given(seeds, st.data(), head_dims, dtypes)
    def rotations(seed: int, data: st.DataObject, dim: int, dtype: torch.dtype) -> None:
        small = st.integers(1, 4)
        kv, group = data.draw(small), data.draw(small)
        shape = (data.draw(small), data.draw(small), data.draw(st.integers(1, 17)))
        cells = st.integers(0, shape[0] * shape[2] - 1)
        slots = data.draw(st.lists(cells, unique=True, max_size=4))
        padded = [*slots, *[-1] * data.draw(st.integers(0, 2))]
        layer = data.draw(st.integers(0, shape[1] - 1))
        check_rotate_and_store(seed, padded, (kv * group, kv), dim, shape, layer, dtype, device)

    for one in (norms, norms_of_heads, gates, rotations):
        one()


Configuration = tuple[str, Any, dict[str, str], dict[str, Any], int]


def compile_kernels(capability: int, dtypes: tuple[str, ...] = tuple(POINTERS)) -> None:
    """Every width and head size × dtype, for a GPU of this capability; a line for each cubin."""
    for dtype in dtypes:
        for name, kernel, arguments, constants, warps in _configurations(POINTERS[dtype]):
            done = compile_kernel(kernel, capability, arguments, constants, num_warps=warps)
            assert not done.spilled, (name, done)
            print(name, dtype, done.registers, "registers")


def _configurations(pointer: str) -> Iterator[Configuration]:
    for width in WIDTHS:
        yield from _of_width(pointer, width)
    for dim in HEAD_DIMS:
        yield from _of_head_dim(pointer, dim)


def _of_width(pointer: str, width: int) -> Iterator[Configuration]:
    import triton

    from kernels.rms_norm_triton import rms_norm_kernel, warps
    from kernels.silu_mul_triton import _TILE, _WARPS, silu_mul_kernel

    tile = triton.next_power_of_2(width)
    arguments = dict.fromkeys(("x", "residual", "weight", "out"), pointer)
    arguments |= {"x_stride": "i32", "residual_stride": "i32", "eps": "fp32"}
    for add in (False, True):
        constants = {"ADD": add, "HIDDEN": width, "TILE": tile}
        yield f"rms_norm {width} {add}", rms_norm_kernel, arguments, constants, warps(tile)
    arguments = {"gate_up": pointer, "out": pointer, "gate_up_stride": "i32"}
    yield f"silu_mul {width}", silu_mul_kernel, arguments, {"WIDTH": width, "TILE": _TILE}, _WARPS


def _of_head_dim(pointer: str, dim: int) -> Iterator[Configuration]:
    from kernels.rms_norm_triton import heads_tiles, rms_norm_heads_kernel, warps
    from kernels.rotary_triton import rotary_tiles, rotary_warps, rotate_and_store_kernel

    query, kv = HEADS
    heads, tile = heads_tiles(query + kv, dim)
    arguments = {"x": pointer, "weights": pointer, "x_stride": "i32", "eps": "fp32"}
    constants = {"HEADS": query + kv, "HEAD_DIM": dim, "HEADS_TILE": heads, "DIM_TILE": tile}
    yield f"norm of heads {dim}", rms_norm_heads_kernel, arguments, constants, warps(heads * tile)

    heads, tile = rotary_tiles(query + 2 * kv, dim)
    arguments = dict.fromkeys(("qkv", "cos", "sin", "pool"), pointer) | {
        "slots": "*i64",
        "q": pointer,
    }
    sizes = ("layer", "layers", "block_size", "qkv_stride", "cos_stride", "sin_stride")
    arguments |= dict.fromkeys(sizes, "i32")
    constants = {"HEADS": query, "KV_HEADS": kv, "HALF": dim // 2}
    constants |= {"HEADS_TILE": heads, "HALF_TILE": tile}
    warps_of_tile = rotary_warps(heads * tile)
    yield f"rotate {dim}", rotate_and_store_kernel, arguments, constants, warps_of_tile
