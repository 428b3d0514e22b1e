"""Norm, gate, linear and rotary kernels against their references."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.linear import Linear, linear_reference
from kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_heads, rms_norm_reference
from kernels.rotary import rotary_angles, rotate, rotate_and_store, rotate_reference
from kernels.silu_mul import silu_mul, silu_mul_reference

rows = st.integers(1, 40)
widths = st.integers(1, 70)


def random(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


@given(rows, widths)
def test_rms_norm(tokens: int, hidden: int) -> None:
    x, weight = random(tokens, hidden), random(hidden)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5))


@given(rows, st.integers(1, 5), widths)
def test_rms_norm_of_heads_that_stand_beside_others(tokens: int, heads: int, dim: int) -> None:
    whole, weights = random(tokens, heads + 2, dim), random(heads, dim)
    x = whole[:, :heads]
    beside = whole[:, heads:].clone()
    expected = rms_norm_reference(x, weights, 1e-5)
    rms_norm_heads(x, weights, 1e-5)
    torch.testing.assert_close(x, expected)
    assert torch.equal(whole[:, heads:], beside)


@given(rows, widths)
def test_rms_norm_of_a_sum(tokens: int, hidden: int) -> None:
    x, residual, weight = random(tokens, hidden), random(tokens, hidden), random(hidden)
    total = x + residual
    normed = add_rms_norm(x, residual, weight, 1e-5)
    torch.testing.assert_close(residual, total)
    torch.testing.assert_close(normed, rms_norm_reference(total, weight, 1e-5))


def test_rms_norm_of_bfloat16_is_computed_more_precisely_than_bfloat16() -> None:
    x, weight = random(64, 576, dtype=torch.bfloat16), random(576, dtype=torch.bfloat16)
    exact = rms_norm_reference(x.double(), weight.double(), 1e-5)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5).double(), exact, rtol=8e-3, atol=1e-3)


@given(rows, widths)
def test_silu_mul(tokens: int, width: int) -> None:
    x = random(tokens, 2 * width)
    torch.testing.assert_close(silu_mul(x), silu_mul_reference(x))


dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])


@given(rows, widths, widths, dtypes, st.booleans())
def test_linear_packed_or_not(
    tokens: int, inputs: int, outputs: int, dtype: torch.dtype, has_bias: bool
) -> None:
    x, weight = random(tokens, inputs, dtype=dtype), random(outputs, inputs, dtype=dtype)
    bias = random(outputs, dtype=dtype) if has_bias else None
    exact = linear_reference(x.double(), weight.double(), None if bias is None else bias.double())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 1e-1}[dtype]
    result = Linear(weight, bias)(x)
    assert result.dtype is dtype
    torch.testing.assert_close(result.double(), exact, rtol=tolerance, atol=tolerance)


def frequencies(dim: int, theta: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=dtype) / dim)


@given(rows, st.integers(1, 5), st.integers(1, 32), st.sampled_from([100.0, 10000.0]))
def test_rotation(tokens: int, heads: int, half: int, theta: float) -> None:
    x, positions = random(tokens, heads, 2 * half), torch.randint(0, 9000, (tokens,))
    expected = rotate_reference(x, positions, theta)
    for scale in (1.0, 1.3):
        angles = rotary_angles(positions, frequencies(2 * half, theta), scale, torch.float64)
        rotated = rotate(x, *angles)
        torch.testing.assert_close(rotated, expected * scale, rtol=1e-9, atol=1e-9)


def test_angles_of_a_bfloat16_model_are_rounded_only_at_the_end() -> None:
    positions = torch.tensor([0, 1, 4001])
    single, double = (frequencies(64, 10000.0, dtype) for dtype in (torch.float32, torch.float64))
    low = rotary_angles(positions, single, 1.0, torch.bfloat16)
    exact = rotary_angles(positions, double, 1.0, torch.float64)
    torch.testing.assert_close(low[0].double(), exact[0], rtol=0, atol=5e-3)


@pytest.mark.parametrize("heads", [2, 6])
def test_keys_are_stored_rotated_values_as_they_are_and_nothing_else_is_touched(heads: int) -> None:
    kv_heads, block_size, dim = 2, 4, 8
    pool = torch.full((5, 3, 2, kv_heads, block_size, dim), 7.0, dtype=torch.float64)
    qkv, positions = random(3, heads + 2 * kv_heads, dim), torch.tensor([3, 4, 0])
    block_ids, offsets = torch.tensor([4, 1, 2]), torch.tensor([3, 0, 0])
    angles = rotary_angles(positions, frequencies(dim, 10000.0), 1.0, torch.float64)
    turned = rotate_reference(qkv[:, : heads + kv_heads], positions, 10000.0)
    values = qkv[:, heads + kv_heads :].clone()

    q = rotate_and_store(qkv, angles, pool, 1, block_ids * block_size + offsets)

    torch.testing.assert_close(q, turned[:, :heads])
    for t in range(3):
        cell = pool[block_ids[t], 1, :, :, offsets[t]]
        torch.testing.assert_close(cell[0], turned[t, heads:])
        torch.testing.assert_close(cell[1], values[t])
        pool[block_ids[t], 1, :, :, offsets[t]] = 7.0
    assert bool((pool == 7.0).all())
