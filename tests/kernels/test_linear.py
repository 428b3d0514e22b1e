"""Products with packed weights on every path of this machine, against float64."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_variants import cpu_path as cpu_path
from native_variants import poisoned_memory as poisoned_memory

from amounts import examples
from kernels.linear import Linear, linear_reference
from native import library

pytestmark = pytest.mark.usefixtures("poisoned_memory")
shared_path = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    max_examples=examples(40),
    deadline=None,
)
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2}


@shared_path
@given(
    rows=st.integers(1, 45),
    columns=st.integers(1, 140),
    depth=st.integers(1, 90),
    has_bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    wide=st.booleans(),
)
def test_any_shape(
    cpu_path: str,
    rows: int,
    columns: int,
    depth: int,
    has_bias: bool,
    dtype: torch.dtype,
    wide: bool,
) -> None:
    x, weight = torch.randn(rows, depth).to(dtype), torch.randn(columns, depth).to(dtype)
    bias = torch.randn(columns).to(dtype) if has_bias else None
    y = Linear(weight, bias)(x, wide=wide)
    exact = linear_reference(x.double(), weight.double(), None if bias is None else bias.double())
    assert y.dtype is (torch.float32 if wide else dtype)
    scale = float(depth**0.5)
    torch.testing.assert_close(
        y.double(), exact, rtol=ROUNDING[dtype], atol=ROUNDING[dtype] * scale
    )


@pytest.mark.parametrize("depth", [576, 1024])  # rows of 1024 are spread where there are many
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_its_company(
    cpu_path: str, dtype: torch.dtype, depth: int
) -> None:
    if cpu_path == "torch":
        pytest.skip("oneDNN chooses an order of summation by the number of rows")
    if dtype is torch.bfloat16 and library.has_matrix_tiles():
        pytest.skip("this CPU's matrix units take over from some rows on")
    linear = Linear(torch.randn(200, depth).to(dtype))
    x = torch.randn(300, depth).to(dtype)
    whole = linear(x)
    for count in (1, 2, 7, 14, 15, 29, 299):
        assert torch.equal(linear(x[:count]), whole[:count])


def test_numbers_that_are_none_come_through(cpu_path: str) -> None:
    x = torch.zeros(3, 64, dtype=torch.bfloat16)
    x[0, 3], x[1, 5] = torch.nan, torch.inf
    y = Linear(torch.ones(40, 64, dtype=torch.bfloat16))(x)
    assert bool(y[0].isnan().all())
    assert bool(y[1].isposinf().all())
    assert bool((y[2] == 0).all())


@shared_path
@given(
    rows=st.integers(1, 130),
    columns=st.sampled_from([1, 15, 16, 31, 500, 512, 513, 1024, 1100]),
    depth=st.sampled_from([2, 64, 2000]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    bad=st.sampled_from([None, torch.nan, torch.inf]),
    threads=st.sampled_from([1, 3]),
)
def test_the_maxima_of_stripes(
    cpu_path: str,
    rows: int,
    columns: int,
    depth: int,
    dtype: torch.dtype,
    bad: float | None,
    threads: int,
) -> None:
    weight, x = torch.randn(columns, depth).to(dtype), torch.randn(rows, depth).to(dtype)
    if bad is not None:
        weight[columns // 2, 1] = bad
    linear = Linear(weight)
    library.set_threads(threads)
    try:
        y, maxima = linear.with_maxima(x)
    finally:
        library.set_threads(1)
    assert torch.equal(y.nan_to_num(), linear(x, wide=True).nan_to_num())
    if cpu_path == "torch":
        assert maxima is None
        return
    padded = torch.nn.functional.pad(y, (0, -columns % 512), value=-torch.inf)
    assert maxima is not None
    # amax gives NaN where there is one.
    expected = padded.view(rows, -1, 32, 16).amax(dim=2)
    torch.testing.assert_close(maxima, expected, rtol=0, atol=0, equal_nan=True)


def test_a_dtype_that_no_kernel_knows(cpu_path: str) -> None:
    x, weight = torch.randn(3, 8, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    torch.testing.assert_close(Linear(weight)(x), linear_reference(x, weight))


def test_several_threads_give_the_same_bits(cpu_path: str) -> None:
    if cpu_path == "torch":
        pytest.skip("only the compiled library has threads of its own")
    linear, x = Linear(torch.randn(1000, 64)), torch.randn(33, 64)
    alone = linear(x)
    for count in (2, 5, 1):
        library.set_threads(count)
        for _ in range(20):
            assert torch.equal(linear(x), alone)


def test_several_callers_at_a_time_get_their_own_products(cpu_path: str) -> None:
    if cpu_path == "torch":
        pytest.skip("only the compiled library has threads of its own")
    linears = [Linear(torch.randn(300, 64)) for _ in range(4)]
    xs = [torch.randn(33, 64) for _ in linears]
    alone = [linear(x) for linear, x in zip(linears, xs, strict=True)]
    library.set_threads(3)
    try:
        with ThreadPoolExecutor(len(linears)) as pool:
            for _ in range(30):
                together = pool.map(lambda i: linears[i](xs[i]), range(len(linears)))
                assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    finally:
        library.set_threads(1)


def test_a_cpu_with_matrix_units_has_onednn_for_many_rows(
    cpu_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN computes the same without such units: only which one is asked is tested here."""
    monkeypatch.setattr(library, "has_matrix_tiles", lambda: True)
    weight, x = torch.randn(200, 64).bfloat16(), torch.randn(40, 64).bfloat16()
    exact = linear_reference(x.double(), weight.double())
    linear = Linear(weight)
    for count in (1, 15, 16, 40):
        torch.testing.assert_close(linear(x[:count]).double(), exact[:count], rtol=0.02, atol=0.1)
