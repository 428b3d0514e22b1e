"""Norms, rotation with the write to the cache, and the gate on every CPU path, against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_variants import cpu_path as cpu_path
from native_variants import poisoned_memory as poisoned_memory

from amounts import examples
from kernels.dispatch import forced, implementation
from kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_heads, rms_norm_reference
from kernels.rotary import rotate, rotate_and_store
from kernels.silu_mul import silu_mul, silu_mul_reference
from native import library

pytestmark = pytest.mark.usefixtures("poisoned_memory")
shared_path = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    max_examples=examples(30),
    deadline=None,
)
rows = st.integers(1, 20)
widths = st.integers(1, 150)
dtypes = st.sampled_from([torch.float32, torch.bfloat16])
# torch's own operations round bfloat16 up to three times where the compiled ones round once.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2}
EPS = 1e-5


def random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape).to(dtype)


def assert_near(result: torch.Tensor, exact: torch.Tensor) -> None:
    allowed = ROUNDING[result.dtype]
    torch.testing.assert_close(result.double(), exact, rtol=allowed, atol=2 * allowed)


def test_each_path_is_the_one_it_is_called(cpu_path: str) -> None:
    expected = "torch" if cpu_path == "torch" else "native"
    assert implementation(torch.empty(1, dtype=torch.bfloat16)) == expected
    assert implementation(torch.empty(1, dtype=torch.float64)) == "torch"


@shared_path
@given(rows, widths, dtypes)
def test_norm(cpu_path: str, tokens: int, width: int, dtype: torch.dtype) -> None:
    x, weight = random(tokens, width, dtype=dtype), random(width, dtype=dtype)
    before = x.clone()
    result = rms_norm(x, weight, EPS)
    assert_near(result, rms_norm_reference(x.double(), weight.double(), EPS))
    assert torch.equal(x, before)


@shared_path
@given(rows, widths, dtypes)
def test_norm_of_a_sum_is_that_of_the_rounded_sum(
    cpu_path: str, tokens: int, width: int, dtype: torch.dtype
) -> None:
    x, residual = random(tokens, width, dtype=dtype), random(tokens, width, dtype=dtype)
    weight, total = random(width, dtype=dtype), x + residual
    result = add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(residual, total)
    assert_near(result, rms_norm_reference(total.double(), weight.double(), EPS))
    assert torch.equal(result, rms_norm(total, weight, EPS))


@shared_path
@given(rows, st.integers(1, 5), widths, dtypes)
def test_norm_of_heads_that_stand_beside_others(
    cpu_path: str, tokens: int, heads: int, dim: int, dtype: torch.dtype
) -> None:
    whole, weights = random(tokens, heads + 2, dim, dtype=dtype), random(heads, dim, dtype=dtype)
    x, beside = whole[:, :heads], whole[:, heads:].clone()
    exact = rms_norm_reference(x.double(), weights.double(), EPS)
    rms_norm_heads(x, weights, EPS)
    assert_near(x, exact)
    assert torch.equal(whole[:, heads:], beside)


@shared_path
@given(rows, widths, dtypes)
def test_gate(cpu_path: str, tokens: int, width: int, dtype: torch.dtype) -> None:
    x = random(tokens, 2 * width, dtype=dtype) * 4
    assert_near(silu_mul(x), silu_mul_reference(x.double()))


def test_gate_far_out(cpu_path: str) -> None:
    gate = torch.tensor([[-1e30, -200.0, -88.0, -20.0, 0.0, 20.0, 88.0, 200.0, 1e30]])
    exact = silu_mul_reference(torch.cat((gate, torch.ones_like(gate)), dim=1).double())
    result = silu_mul(torch.cat((gate, torch.ones_like(gate)), dim=1))
    # The exponential ends at e^88, which only a gate of astronomic size can tell from infinity.
    torch.testing.assert_close(result[:, 1:].double(), exact[:, 1:], rtol=1e-6, atol=1e-35)
    assert bool(result.isfinite().all())


@shared_path
@given(
    tokens=st.integers(1, 12),
    heads=st.integers(1, 5),
    kv_heads=st.integers(1, 3),
    half=st.integers(1, 70),
    block_size=st.sampled_from([1, 5, 16]),
    dtype=dtypes,
)
def test_rotation_and_write(
    cpu_path: str,
    tokens: int,
    heads: int,
    kv_heads: int,
    half: int,
    block_size: int,
    dtype: torch.dtype,
) -> None:
    dim, blocks, layers, layer = 2 * half, 13, 3, 1
    qkv = random(tokens, heads + 2 * kv_heads, dim, dtype=dtype)
    angles = random(tokens, half, dtype=dtype), random(tokens, half, dtype=dtype)
    pool = random(blocks, layers, 2, kv_heads, block_size, dim, dtype=dtype)
    slots = torch.randperm(blocks * block_size)[:tokens]
    whole, wanted = qkv.double(), pool.clone()
    turned = rotate(whole[:, : heads + kv_heads], angles[0].double(), angles[1].double())

    q = rotate_and_store(qkv, angles, pool, layer, slots)

    assert_near(q, turned[:, :heads])
    for t, slot in enumerate(slots.tolist()):
        cell = (slot // block_size, layer, slice(None), slice(None), slot % block_size)
        assert_near(pool[cell][0], turned[t, heads:])
        assert torch.equal(pool[cell][1].double(), whole[t, heads + kv_heads :])
        wanted[cell] = pool[cell]
    assert torch.equal(pool, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hurt", [torch.nan, torch.inf])
def test_numbers_that_are_none_come_through(cpu_path: str, dtype: torch.dtype, hurt: float) -> None:
    for width in (1, 16, 70, 200):
        x, weight = random(3, 2 * width, dtype=dtype), torch.ones(2 * width, dtype=dtype)
        x[1, 0] = hurt
        results = [
            rms_norm(x, weight, EPS),
            add_rms_norm(x, torch.ones_like(x), weight, EPS),
            silu_mul(x),
        ]
        for result in results:
            assert not result[1].isfinite().all()
            assert result[[0, 2]].isfinite().all()
        heads = x.view(3, 2, width)
        rms_norm_heads(heads, torch.ones(2, width, dtype=dtype), EPS)
        assert heads.isfinite().all(-1).tolist() == [[True, True], [False, True], [True, True]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_calls_on_several_threads_give_the_bits_of_single_rows(
    cpu_path: str, dtype: torch.dtype
) -> None:
    if cpu_path == "torch":
        pytest.skip("only the compiled library has threads of its own")
    tokens, width = 1700, 576
    x, weight = random(tokens, width, dtype=dtype), random(width, dtype=dtype)
    qkv = x.view(tokens, 9, 64)
    angles = random(tokens, 32, dtype=dtype), random(tokens, 32, dtype=dtype)
    slots = torch.randperm(110 * 16)[:tokens]
    pools = [torch.zeros(110, 1, 2, 2, 16, 64, dtype=dtype) for _ in range(2)]
    library.set_threads(4)
    normed, gated = rms_norm(x, weight, EPS), silu_mul(x)
    q = rotate_and_store(qkv.clone(), angles, pools[0], 0, slots)
    heads = qkv.clone()
    rms_norm_heads(heads, weight.view(9, 64), EPS)
    library.set_threads(1)
    for t in range(0, tokens, 61):
        row = slice(t, t + 1)
        assert torch.equal(normed[row], rms_norm(x[row], weight, EPS))
        assert torch.equal(gated[row], silu_mul(x[row]))
        head = qkv[row].clone()
        rms_norm_heads(head, weight.view(9, 64), EPS)
        assert torch.equal(heads[row], head)
    again = rotate_and_store(qkv.clone(), angles, pools[1], 0, slots)
    assert torch.equal(q, again)
    assert torch.equal(*pools)


def test_paths_agree_in_float32() -> None:
    if not library.is_available():
        pytest.skip(library.choice().reason)
    x, weight = random(7, 576, dtype=torch.float32), random(576, dtype=torch.float32)
    with forced("torch"):
        expected = rms_norm(x, weight, EPS), silu_mul(x)
    torch.testing.assert_close((rms_norm(x, weight, EPS), silu_mul(x)), expected)
