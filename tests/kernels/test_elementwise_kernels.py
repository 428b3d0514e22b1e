"""Norm, gate, linear and rotary kernels against their references."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.linear import Linear, linear_reference
from kernels.rms_norm import rms_norm, rms_norm_reference
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


def test_rms_norm_of_bfloat16_is_computed_more_precisely_than_bfloat16() -> None:
    x, weight = random(64, 576, dtype=torch.bfloat16), random(576, dtype=torch.bfloat16)
    exact = rms_norm_reference(x.double(), weight.double(), 1e-5)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5).double(), exact, rtol=8e-3, atol=1e-3)


@given(rows, widths)
def test_silu_mul(tokens: int, width: int) -> None:
    x = random(tokens, 2 * width)
    torch.testing.assert_close(silu_mul(x), silu_mul_reference(x))


@given(rows, widths, widths, st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_linear_packed_or_not(tokens: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    x, weight = random(tokens, inputs, dtype=dtype), random(outputs, inputs, dtype=dtype)
    exact = linear_reference(x.double(), weight.double())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 1e-1}[dtype]
    result = Linear(weight)(x)
    assert result.dtype is dtype
    torch.testing.assert_close(result.double(), exact, rtol=tolerance, atol=tolerance)


@given(rows, st.integers(1, 5), st.integers(1, 32), st.sampled_from([100.0, 10000.0]))
def test_rotation(tokens: int, heads: int, half: int, theta: float) -> None:
    x, positions = random(tokens, heads, 2 * half), torch.randint(0, 9000, (tokens,))
    angles = rotary_angles(positions, 2 * half, theta, torch.float64)
    expected = rotate_reference(x, positions, theta)
    torch.testing.assert_close(rotate(x, *angles), expected, rtol=1e-9, atol=1e-9)


def test_angles_of_a_bfloat16_model_are_rounded_only_at_the_end() -> None:
    positions = torch.tensor([0, 1, 4001])
    low, exact = (
        rotary_angles(positions, 64, 10000.0, dtype) for dtype in (torch.bfloat16, torch.float64)
    )
    torch.testing.assert_close(low[0].double(), exact[0], rtol=0, atol=5e-3)


@pytest.mark.parametrize("heads", [2, 6])
def test_keys_are_stored_rotated_values_as_they_are_and_nothing_else_is_touched(heads: int) -> None:
    kv_heads, block_size, dim = 2, 4, 8
    pool = torch.full((5, 2, kv_heads, block_size, dim), 7.0, dtype=torch.float64)
    qkv, positions = random(3, heads + 2 * kv_heads, dim), torch.tensor([3, 4, 0])
    block_ids, offsets = torch.tensor([4, 1, 2]), torch.tensor([3, 0, 0])
    angles = rotary_angles(positions, dim, 10000.0, torch.float64)

    q = rotate_and_store(qkv, angles, pool, block_ids, offsets)

    turned = rotate_reference(qkv[:, : heads + kv_heads], positions, 10000.0)
    torch.testing.assert_close(q, turned[:, :heads])
    for t in range(3):
        cell = pool[block_ids[t], :, :, offsets[t]]
        torch.testing.assert_close(cell[0], turned[t, heads:])
        torch.testing.assert_close(cell[1], qkv[t, heads + kv_heads :])
        pool[block_ids[t], :, :, offsets[t]] = 7.0
    assert bool((pool == 7.0).all())
